"""ToolIndex: one index of tools for a whole group of agents.

Built once, searched by all, its embedding paid once; tools come and go one at a time. What is
returned exists, in the version that is named.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from shoal.core.errors import ConfigError, InputError, ShoalError, nearest
from shoal.core.records import ToolSpec
from shoal.models.embedding import Embedder
from shoal.tools.catalogue import Catalogue, Refusal
from shoal.tools.retrieval import prompt
from shoal.tools.retrieval.ledger import Ledger, Record
from shoal.tools.retrieval.requests import Step
from shoal.tools.retrieval.settings import Settings
from shoal.tools.retrieval.shelf import Entry, Shelves
from shoal.tools.retrieval.stages import PIPELINE, Lookup, best
from shoal.tools.retrieval.toolset import Growth, ScoredTool, ToolSet, WorkingSet

Source = Catalogue | Iterable[ToolSpec]
Allowed = Callable[[str], bool]


class EmptyIndex(ShoalError):
    """An index without a tool, or a source that has none."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What a source did to an index: names that came, changed, went; how many stayed."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    kept: int = 0
    refused: tuple[Refusal, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stats:
    """An index in numbers: tools, bytes of each leg, searches and calls so far, and of how many
    agents that gave a name."""

    tools: int
    lexical_bytes: int
    dense_bytes: int
    embedder: str
    searches: int
    calls: int
    failures: int
    agents: int


class ToolIndex:
    """Tools to be found by what they do. Safe for several threads.

    embedder     the dense leg's model; None leaves the leg out
    count_tokens counts the tokens of a text; without it they are estimated
    """

    def __init__(
        self,
        settings: Settings = Settings(),
        *,
        embedder: Embedder | None = None,
        count_tokens: Callable[[str], int] = prompt.tokens,
    ) -> None:
        self.settings = settings
        self.ledger = Ledger()
        self._count = count_tokens
        self._shelves = Shelves(settings, embedder, self.ledger)
        self._specs: dict[str, Mapping[str, ToolSpec] | Catalogue] = {}
        self._sets: dict[str, WorkingSet] = {}
        self._searches: Counter[str] = Counter()
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._shelves)

    def __contains__(self, name: object) -> bool:
        return name in self._specs

    def spec(self, name: str) -> ToolSpec:
        """The tool of a name; raises :class:`InputError` with the nearest name for none."""
        with self._lock:
            if name not in self._specs:
                raise InputError(f"There is no tool {name!r}.{nearest(name, self._specs)}")
            return self._specs[name][name]

    def version(self, name: str) -> str:
        """The version a tool is indexed in; raises :class:`InputError` for none."""
        with self._lock:
            if name not in self._specs:
                raise InputError(f"There is no tool {name!r}.{nearest(name, self._specs)}")
            return self._shelves.entry(name).version

    def add(
        self,
        source: Source,
        *,
        label: str = "",
        questions: Mapping[str, Sequence[str]] | None = None,
    ) -> Changes:
        """Index the tools of a source.

        label      names the source, for :meth:`sync`
        questions  questions that tools answer, by the tools' names (a model's enrichment)

        A second tool of a name is refused, unless it is the same; both origins are reported.
        Raises :class:`EmptyIndex` for a source without tools.
        """
        with self._lock:
            return self._add(source, label, questions or {})

    def _add(self, source: Source, label: str, questions: Mapping[str, Sequence[str]]) -> Changes:
        fresh: dict[str, ToolSpec] = {}
        refused = list(source.refused) if isinstance(source, Catalogue) else []
        kept = count = 0
        for spec in source:
            count += 1
            if spec.name in fresh or spec.name in self._specs:
                first = fresh[spec.name] if spec.name in fresh else self.spec(spec.name)
                if first.version == spec.version and first.origin == spec.origin:
                    kept += 1
                else:
                    refused.append(Refusal(spec.name, first.origin, spec.origin))
                continue
            fresh[spec.name] = spec
        if not count:
            raise EmptyIndex(f"The source {label or type(source).__name__!r} holds no tool.")
        warnings = self._shelves.put(fresh.values(), label, questions)
        home: Mapping[str, ToolSpec] | Catalogue = (
            source if isinstance(source, Catalogue) else fresh
        )
        self._specs.update(dict.fromkeys(fresh, home))
        return Changes(
            added=tuple(fresh), kept=kept, refused=tuple(refused), warnings=tuple(warnings)
        )

    def retune(self, settings: Settings) -> None:
        """Search with other settings from now on; what is indexed stays as it is.

        Raises :class:`ConfigError` for settings that index other documents.
        """
        if settings.document_weights != self.settings.document_weights:
            raise ConfigError("Other weights of a document's parts need an index of their own.")
        with self._lock:
            self.settings = settings
            self._shelves.retune(settings)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The index as arrays, to be kept in a file (see :mod:`kept`)."""
        with self._lock:
            return self._shelves.arrays()

    @classmethod
    def of_arrays(
        cls,
        arrays: Mapping[str, NDArray[Any]],
        source: Catalogue,
        settings: Settings,
        embedder: Embedder | None,
    ) -> ToolIndex:
        """An index over a catalogue out of what :meth:`arrays` gave."""
        made = cls(settings, embedder=embedder)
        made._shelves.restore(arrays)
        made._specs = dict.fromkeys(source.names, source)
        return made

    def remove(self, name: str) -> None:
        """Take one tool out; raises :class:`InputError` for none."""
        with self._lock:
            self.version(name)
            self._shelves.take(name)
            del self._specs[name]

    def sync(self, source: Source, *, label: str) -> Changes:
        """Make the tools of a label equal to those of a source; what is the same is not touched.

        A tool that another label has is refused, as by :meth:`add`.
        """
        with self._lock:
            wanted = self._wanted(source)
            present = self._shelves.labelled(label)
            gone = [name for name in present if name not in wanted]
            changed = [
                name
                for name, version in present.items()
                if name in wanted and wanted[name] != version
            ]
            for name in (*gone, *changed):
                self.remove(name)
            new = [n for n in wanted if n not in present or n in changed]
            if not new:
                return Changes(removed=tuple(gone), kept=len(present) - len(gone))
            specs = source if isinstance(source, Catalogue) else {s.name: s for s in source}
            home = specs if isinstance(specs, Catalogue) else None
            added = self._add([specs[name] for name in new], label, {})
            if home is not None:
                self._specs.update(dict.fromkeys(added.added, home))
            return Changes(
                added=tuple(name for name in added.added if name not in changed),
                changed=tuple(name for name in added.added if name in changed),
                removed=tuple(gone),
                kept=len(present) - len(gone) - len(changed),
                refused=added.refused,
                warnings=added.warnings,
            )

    @staticmethod
    def _wanted(source: Source) -> Mapping[str, str]:
        if isinstance(source, Catalogue):
            return source.versions
        if not isinstance(source, Sequence):
            raise ConfigError("A source to sync with is read twice: give a list or a catalogue.")
        wanted: dict[str, str] = {}
        for spec in source:
            wanted.setdefault(spec.name, spec.version)
        return wanted

    def search(
        self,
        query: str,
        k: int = 5,
        *,
        agent: str = "",
        budget_tokens: int | None = None,
        allowed: Allowed | None = None,
    ) -> list[ScoredTool]:
        """The ``k`` tools that fit one need best, best first; fewer where fewer match.

        agent          whose search it is, for statistics
        budget_tokens  what the tools' lines in a prompt may take; tools that do not fit are left
                       out from the end (:meth:`plan` names them)
        allowed        whether this agent may see a tool, by name

        Raises :class:`EmptyIndex` where nothing is indexed.
        """
        stages = tuple(s for s in self.settings.stages if s != "decompose")
        found = self._look(Lookup(query, k), stages, agent, budget_tokens, allowed)
        return list(found.tools)

    def plan(
        self,
        request: str,
        k: int = 8,
        *,
        agent: str = "",
        history: Sequence[str] = (),
        budget_tokens: int | None = None,
        allowed: Allowed | None = None,
        steps: Sequence[Step] | None = None,
    ) -> ToolSet:
        """Tools for a whole request: all stages, ``k`` tools in all however many steps it has.

        history  requests before this one, oldest first
        steps    what the request asks for, where somebody knows better than the rules
        """
        lookup = Lookup(request, k, tuple(history), tuple(steps or ()))
        stages = self.settings.stages
        if steps:
            stages = tuple(s for s in stages if s not in ("rewrite", "decompose"))
        found = self._look(lookup, stages, agent, budget_tokens, allowed)
        if agent:
            self.working_set(agent).grow(found.tools)
        return found

    def _look(
        self,
        lookup: Lookup,
        stages: Sequence[str],
        agent: str,
        budget_tokens: int | None,
        allowed: Allowed | None,
    ) -> ToolSet:
        if lookup.k < 1:
            raise ConfigError(f"k is {lookup.k}, but at least one tool must be asked for.")
        seconds: dict[str, float] = {}
        with self._lock:
            if not len(self):
                raise EmptyIndex("There is no tool in this index: add a source first.")
            wide = lookup.k
            while True:
                state = self._run(replace(lookup, k=wide), stages, seconds)
                tools = [self._scored(*one) for one in state.chosen]
                seen = [t for t in tools if allowed is None or allowed(t.name)][: lookup.k]
                if len(seen) >= lookup.k or wide >= len(self) or len(tools) < wide:
                    break
                wide = min(wide * 8, len(self))
            self._searches[agent] += 1
            kept, over, spent = self._within(seen, budget_tokens)
            for tool in kept:
                self.ledger.shown(tool.name, tool.version)
        return ToolSet(
            tuple(kept), tuple(step.text for step in state.steps), tuple(over), spent, seconds
        )

    def _run(self, state: Lookup, stages: Sequence[str], seconds: dict[str, float]) -> Lookup:
        for name, stage in PIPELINE.items():
            started = time.perf_counter()
            if name in stages:
                state = stage(state, self._shelves)
            elif name == "fit":
                state = best(state, self._shelves)
            if name == "decompose" and not state.steps:
                state = replace(state, steps=(Step(state.request),))
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started
        return state

    def _scored(self, slot: int, score: float, step: int) -> ScoredTool:
        entry: Entry = self._shelves.at(slot)
        return ScoredTool(entry.name, entry.version, round(score, 6), entry.origin, step)

    def _within(
        self, tools: Sequence[ScoredTool], budget: int | None
    ) -> tuple[list[ScoredTool], list[ScoredTool], int]:
        """Tools whose lines fit a budget, in order; those that do not; tokens spent."""
        if budget is None:
            return list(tools), [], 0
        kept: list[ScoredTool] = []
        over: list[ScoredTool] = []
        spent = self._count(prompt.HEADING)
        for tool in tools:
            cost = self._count(prompt.line(self._specs[tool.name][tool.name]))
            if spent + cost > budget:
                over.append(tool)
            else:
                kept.append(tool)
                spent += cost
        return kept, over, spent if kept else 0

    def record(self, name: str, *, ok: bool, cost: float = 0.0) -> Record:
        """Say how a call of a tool ended: it counts when tools are ranked, for every agent.

        Raises :class:`InputError` for a tool that is not here.
        """
        with self._lock:
            version = self.version(name)
            record = self.ledger.called(name, version, ok=ok, cost=cost)
            self._shelves.learned(name, record.success)
            return record

    def working_set(self, agent: str, most: int = 64) -> WorkingSet:
        """The tools an agent has in its prompt; made when first asked for, with room for most."""
        with self._lock:
            return self._sets.setdefault(agent, WorkingSet(most))

    def grow(self, agent: str, tools: Sequence[ScoredTool]) -> Growth:
        """Put tools into an agent's working set; what is not indexed any more leaves it."""
        with self._lock:
            working = self.working_set(agent)
            gone = working.drop_missing(self.__contains__)
            growth = working.grow([tool for tool in tools if tool.name in self])
            return replace(growth, evicted=(*gone, *growth.evicted))

    def stats(self) -> Stats:
        """The index in numbers."""
        with self._lock:
            records = self.ledger.records.values()
            return Stats(
                tools=len(self),
                lexical_bytes=self._shelves.lexical_bytes,
                dense_bytes=self._shelves.dense_bytes,
                embedder=self._shelves.embedder_name,
                searches=self._searches.total(),
                calls=sum(record.calls for record in records),
                failures=sum(record.failures for record in records),
                agents=len({*self._searches, *self._sets} - {""}),
            )
