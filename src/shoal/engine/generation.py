"""Work in flight: an answer being generated, or hidden states being gathered for scoring."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from shoal.core.protocols import Completion, Request, TokenLogprob
from shoal.core.records import Finish, Usage
from shoal.engine.grammar import Constraint
from shoal.engine.late_repair import LateRepair
from shoal.engine.repair import Repair, Repaired
from shoal.engine.sampler import Row
from shoal.engine.segments import KVSegment
from shoal.engine.tree import Node
from shoal.models.adapters.adapter import Adapter


class TextStream(Protocol):
    """Turns tokens into text piece by piece, never half a character."""

    def step(self, token: int) -> str: ...
    def finish(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of prompt tokens; with a segment, its keys and values are moved, not computed."""

    tokens: tuple[int, ...]
    segment: KVSegment | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Composition:
    """A request whose prompt is given as pieces, some of which may be moved here.

    The pieces before the first moved one are exact, and shared like any prompt's beginning. The
    last piece is computed. ``keep_states`` keeps the final hidden states of private pieces for
    the watch to look at (``Node.all_hidden``).
    """

    request: Request
    pieces: tuple[Piece, ...]
    repair: Repair | None = None
    watch: Watch | None = None
    keep_states: bool = False


class Watch(Protocol):
    """Looks at the cache of a request while it is there; called on the compute thread."""

    def prefilled(self, job: Generation) -> None:
        """The prompt is complete down to ``job.end``."""
        ...

    def ending(self, job: Generation) -> None:
        """The answer is complete; its nodes are about to be let go."""
        ...


class Reuse(Protocol):
    """Finds cache of equal text elsewhere for requests that allow it."""

    def welcome(self, job: Generation) -> None:
        """Take a request on before it is queued; raises :class:`ShoalError` to refuse it."""
        ...


@dataclass(slots=True, eq=False)
class Generation:
    """One request on its way through the engine.

    tokens    prompt and answer so far; ``end`` is the node whose last token is theirs
    decoding  the prompt is computed and ``end`` is a tail that grows
    computed  prompt tokens computed for this request; recomputed after a preemption
    pieces    the prompt in runs, where some are moved here; empty: all of it is exact
    beginning tokens before the first moved run: exact, and shared with others
    repair    which moved tokens are computed again; pending until that is done
    late      its second stage, while the answer is written
    adapter   what its rows go through; the request's salt is that of the adapter then
    """

    request: Request
    prompt_tokens: int
    tokens: list[int]
    max_new: int
    stream: TextStream
    eos_ids: frozenset[int]
    constraint: Constraint | None
    on_text: Callable[[str, tuple[int, ...]], None]
    on_done: Callable[[Completion], None]
    end: Node | None = None
    computed: int = 0
    recomputed: int = 0
    decoding: bool = False
    preempted: bool = False
    finish: Finish | None = None
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    pieces: tuple[Piece, ...] = ()
    repair: Repair | None = None
    repair_pending: bool = False
    repaired: Repaired | None = None
    late: LateRepair | None = None
    repaired_late: int = 0
    beginning: int = 0
    watch: Watch | None = None
    keep_states: bool = False
    adapter: Adapter | None = None
    submitted: float = field(default_factory=time.perf_counter)
    first_token: float | None = None
    _sent: int = 0
    _too_early: int = 0
    _history: set[int] = field(default_factory=set)
    _answered: set[int] = field(default_factory=set)

    @property
    def answer(self) -> list[int]:
        return self.tokens[self.prompt_tokens :]

    @property
    def written(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.prompt_tokens

    def unfinished(self) -> Iterator[Node]:
        """Nodes of the prompt that wait to be computed, from the top."""
        if self.end is not None and not self.decoding:
            for node in self.end.path():
                if self.repair_pending and not node.attached:
                    return  # what follows the exact beginning is the repair's to compute
                if not node.complete:
                    yield node

    def charge(self, count: int) -> None:
        """Book prompt tokens that are computed for this request."""
        if self.preempted:
            self.recomputed += count
        else:
            self.computed += count

    @property
    def approximate(self) -> bool:
        """Whether the cache of this request holds anything but exact keys and values."""
        return any(piece.segment is not None for piece in self.pieces)

    def moved_tokens(self) -> list[bool]:
        """Of each token below the exact beginning, whether it was moved here."""
        moved = [piece.segment is not None for piece in self.pieces for _ in piece.tokens]
        return [*moved, *(False for _ in self.answer)][self.beginning :]

    @property
    def growth(self) -> int:
        """Slots this request may still ask for."""
        return self.max_new - self.written

    @property
    def spare(self) -> int:
        """Slots this request holds and has not filled."""
        return self.end.capacity - len(self.end.tokens) if self.decoding and self.end else 0

    def row(self) -> Row:
        """What the next token's choice depends on."""
        sampling = self.request.sampling
        index = len(self.tokens) - self.prompt_tokens
        history = None
        if sampling.repetition_penalty != 1:
            self._history.update(self.tokens if not self._history else self.tokens[-1:])
            history = torch.tensor(sorted(self._history))
        answered = None
        if sampling.presence_penalty and index:
            self._answered.update(self.tokens[-1:] if self._answered else self.answer)
            answered = torch.tensor(sorted(self._answered))
        early = sampling.ignore_eos or index < sampling.min_tokens
        return Row(
            sampling,
            index,
            history,
            self.constraint.allowed() if self.constraint else None,
            tuple(self.eos_ids) if early and not self.constraint else (),
            answered,
        )

    def accept(self, token: int, logprob: TokenLogprob | None) -> None:
        """Take the chosen token; sets ``finish`` when it was the last."""
        if self.first_token is None:
            self.first_token = time.perf_counter()
        self.tokens.append(token)
        if logprob:
            self.logprobs.append(logprob)
        if self.constraint:
            self.constraint.accept(token)
        ended = token in self.eos_ids
        if not ended:
            self.text += self.stream.step(token)
        cut = self._cut_at_stop()
        if cut or ended or (self.constraint and self.constraint.finished):
            self.finish = "stop"
        elif len(self.tokens) - self.prompt_tokens >= self.max_new:
            self.finish = "length"
        if self.finish and not cut:
            self.text += self.stream.finish()
        self._send((token,))

    def _cut_at_stop(self) -> bool:
        sampling = self.request.sampling
        if len(self.tokens) - self.prompt_tokens < sampling.min_tokens:
            self._too_early = len(self.text)
            return False
        longest = max(map(len, sampling.stop), default=0)
        begin = max(self._too_early, self._sent - longest)
        found = [
            place for stop in sampling.stop if stop and (place := self.text.find(stop, begin)) >= 0
        ]
        if found:
            self.text = self.text[: min(found)]
        return bool(found)

    def _send(self, tokens: tuple[int, ...]) -> None:
        """Pass on text that can no longer become part of a stop string."""
        until = len(self.text)
        if not self.finish:
            for stop in self.request.sampling.stop:
                for size in range(min(len(stop) - 1, until), 0, -1):
                    if self.text.endswith(stop[:size]):
                        until = min(until, len(self.text) - size)
                        break
        piece = self.text[self._sent : max(until, self._sent)]
        self._sent = max(until, self._sent)
        self.on_text(piece, tokens)

    def completion(self, *, token_bytes: int, error: str | None = None) -> Completion:
        """The answer as it stands."""
        now = time.perf_counter()
        first = self.first_token if self.first_token is not None else now
        moved = sum(len(piece.tokens) for piece in self.pieces if piece.segment is not None)
        repaired = 0 if self.repaired is None else len(self.repaired.selected)
        repaired += self.repaired_late
        return Completion(
            text=self.text,
            tokens=tuple(self.answer),
            finish="error" if error else self.finish or "cancelled",
            usage=Usage(
                prompt_tokens=self.prompt_tokens,
                shared_tokens=max(0, self.prompt_tokens - self.computed - moved),
                approx_tokens=moved - repaired,
                repaired_tokens=repaired,
                decoded_tokens=len(self.answer),
                first_token_ms=(first - self.submitted) * 1e3,
                total_ms=(now - self.submitted) * 1e3,
                kv_bytes=(self.computed + len(self.answer)) * token_bytes,
                recomputed_tokens=self.recomputed,
            ),
            logprobs=tuple(self.logprobs),
            error=error,
        )


@dataclass(slots=True, eq=False)
class HiddenStates:
    """Final hidden states of suffixes below one shared prefix (for scoring and embedding).

    ``on_done`` gets one tensor [len(suffix), D] per suffix. Suffixes that begin alike share
    nodes; the nodes are private and freed at the end.
    """

    prefix: Sequence[int]
    suffixes: Sequence[Sequence[int]]
    salt: str
    on_done: Callable[[list[torch.Tensor] | str], None]
    adapter: Adapter | None = None
    end: Node | None = None
    nodes: list[Node] = field(default_factory=list)
    paths: list[list[Node]] = field(default_factory=list)

    def unfinished(self) -> Iterator[Node]:
        """Nodes that wait to be computed, parents before children."""
        above = self.end.path() if self.end is not None else []
        yield from (node for node in (*above, *self.nodes) if not node.complete)

    def charge(self, count: int) -> None:
        """Scores are not billed by token."""

    def collect(self) -> list[torch.Tensor]:
        """The states, once every node is complete."""
        return [torch.cat([_states(node) for node in path]) for path in self.paths]


def _states(node: Node) -> torch.Tensor:
    assert node.all_hidden is not None, "a scored node keeps its hidden states"
    return node.all_hidden


Job = Generation | HiddenStates
