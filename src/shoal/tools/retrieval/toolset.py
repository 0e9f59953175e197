"""Tools chosen for an agent, in an order that only grows, so that cached prefixes hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from shoal.core.errors import ConfigError
from shoal.core.records import ToolSpec
from shoal.tools.retrieval import prompt


@dataclass(frozen=True, slots=True)
class ScoredTool:
    """A tool that was found: in which version, how well it fits, and for which step."""

    name: str
    version: str
    score: float
    origin: str = ""
    step: int = 0


@dataclass(frozen=True, slots=True)
class ToolSet:
    """What a request got.

    tools       the tools found, best of each step first
    steps       what the request was taken to ask for
    over        found, but left out since the budget of tokens was spent
    tokens      of the lines of ``tools``, estimated unless the index counts them
    seconds     time of each stage
    """

    tools: tuple[ScoredTool, ...]
    steps: tuple[str, ...]
    over: tuple[ScoredTool, ...] = ()
    tokens: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tools, in order."""
        return tuple(tool.name for tool in self.tools)


@dataclass(frozen=True, slots=True)
class Growth:
    """What a turn did to a working set: new tools, evicted ones, and whether the prefix holds."""

    added: tuple[str, ...]
    evicted: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()

    @property
    def prefix_holds(self) -> bool:
        """Whether a prompt that lists the tools begins as it did the turn before."""
        return not (self.evicted or self.moved)


class WorkingSet:
    """The tools one agent has in its prompt; nobody else's searches enlarge it.

    A tool keeps its place as long as its version does. Above ``most`` those that were asked for
    longest ago go, which ends the cached prefix; so does a tool that has changed.
    """

    def __init__(self, most: int = 64) -> None:
        if most < 1:
            raise ConfigError(f"A working set of {most} tools holds nothing: give at least 1.")
        self.most = most
        self._versions: dict[str, str] = {}
        self._used: dict[str, int] = {}
        self._turn = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Names in the order of the prompt."""
        return tuple(self._versions)

    def grow(self, tools: Sequence[ScoredTool]) -> Growth:
        """Add what a search has found; the first ``most`` of it, if it is more."""
        self._turn += 1
        moved = [t.name for t in tools if self._versions.get(t.name, t.version) != t.version]
        for name in moved:
            del self._versions[name]
        added = [t.name for t in tools[: self.most] if t.name not in self._versions]
        for tool in tools[: self.most]:
            self._versions[tool.name] = tool.version
            self._used[tool.name] = self._turn
        oldest = sorted(self._versions, key=lambda name: self._used[name])
        evicted = oldest[: max(0, len(self._versions) - self.most)]
        self._drop(evicted)
        return Growth(
            tuple(name for name in added if name not in moved), tuple(evicted), tuple(moved)
        )

    def drop_missing(self, exists: Callable[[str], bool]) -> tuple[str, ...]:
        """Take out tools that are gone; returns their names."""
        gone = [name for name in self._versions if not exists(name)]
        self._drop(gone)
        return tuple(gone)

    def block(self, spec_of: Callable[[str], ToolSpec]) -> str:
        """The lines of a prompt for all tools of the set."""
        return prompt.block(spec_of(name) for name in self._versions)

    def _drop(self, names: Sequence[str]) -> None:
        for name in names:
            del self._versions[name], self._used[name]
