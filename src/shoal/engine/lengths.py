"""How long answers are expected to get, from those that came before.

The Past-Future scheduler (Gong et al., ASPLOS 2025, arXiv 2507.10150): a request may have far more
tokens than most use, so an answer of which n tokens are written is expected to have the length of
one that was longer than n, drawn anew at every step. Answers under way are expected to be as
unlike each other then as those before them were, and to end one after the other
(:mod:`shoal.engine.outlook`). BatchLLM (arXiv 2412.03594) expects the mean and one standard
deviation of all of them at once.

Departures: answers are told apart by kind; and until some have ended, where the papers say nothing
or the limit, one is expected to be twice as long as the longest so far, and nobody counts on it to
end then: too little costs prompts that are read again, at most once for every doubling.
"""

from __future__ import annotations

import random
from bisect import bisect_right, insort
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from shoal.core.protocols import Request
from shoal.engine.generation import Generation
from shoal.engine.outlook import Growth

SEEN = 8
"""Answers of a kind that must have ended before their lengths are believed."""
UNSEEN = 32
"""Tokens that an answer is expected to have before there is any."""
RECENT = 256
"""Answers of a kind that are remembered, those that ended last."""
KINDS = 1024
"""Kinds that are remembered, those asked for last."""


def kind_of(request: Request) -> object:
    """Requests that ask alike are expected to be answered at like length."""
    sampling, grammar = request.sampling, request.grammar
    held_to = grammar.kind if grammar else ""
    return sampling.max_tokens, sampling.ignore_eos, sampling.stop, held_to


@dataclass(slots=True)
class Lengths:
    """Lengths of one kind of answers; ``longest`` also of those that have not ended."""

    longest: int = 0
    _recent: deque[int] = field(default_factory=deque)
    _sorted: list[int] = field(default_factory=list)

    def add(self, length: int) -> None:
        """Take one more."""
        if len(self._recent) == RECENT:
            del self._sorted[bisect_right(self._sorted, self._recent.popleft()) - 1]
        self._recent.append(length)
        insort(self._sorted, length)
        self.longest = max(self.longest, length)

    @property
    def known(self) -> bool:
        return len(self._recent) >= SEEN

    @property
    def mean(self) -> float:
        return sum(self._recent) / len(self._recent) if self._recent else 0.0

    def drawn(self, written: int, luck: float) -> int:
        """The length of one that was longer than ``written``, by a number in [0, 1); one more
        token where none was."""
        self.longest = max(self.longest, written)
        if not self.known:
            return max(UNSEEN, 2 * self.longest)
        shorter = bisect_right(self._sorted, written)
        longer = len(self._sorted) - shorter
        return self._sorted[shorter + int(luck * longer)] if longer else written + 1


class AnswerLengths:
    """What has been seen of every kind of answers."""

    def __init__(self) -> None:
        self._kinds: OrderedDict[object, Lengths] = OrderedDict()
        self._luck = random.Random(0)

    def of(self, kind: object) -> Lengths:
        """What has been seen of a kind."""
        found = self._kinds.setdefault(kind, Lengths())
        self._kinds.move_to_end(kind)
        if len(self._kinds) > KINDS:
            self._kinds.popitem(last=False)
        return found

    def add(self, job: Generation, kind: object) -> None:
        """An answer has ended; those that were broken off say nothing of how long one gets."""
        if job.finish in ("stop", "length"):
            self.of(kind).add(job.written)

    def growth(self, job: Generation, kind: object) -> Growth:
        """Of an answer under way, or to come; at least one slot while it may have any."""
        sampling = job.request.sampling
        if sampling.ignore_eos and not sampling.stop and job.request.grammar is None:
            return Growth(job.growth, True)  # it ends at its limit
        seen = self.of(kind)
        length = max(seen.drawn(job.written, self._luck.random()), sampling.min_tokens)
        slots = max(1, length - job.written)
        return Growth(min(job.growth, slots), seen.known or slots >= job.growth)
