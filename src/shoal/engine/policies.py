"""Who is admitted next, how far an answer is expected to grow, how long cache is kept.

Policies for :class:`~shoal.engine.scheduler.Scheduler`: first come first served, which keeps what
was computed until memory is needed, and longest prefix first, which is what SGLang does (Zheng et
al., arXiv 2312.07104). The policy of jobs known ahead of time is
:class:`shoal.engine.batch.planned.Planned`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Protocol

from shoal.engine.generation import Generation, HiddenStates, Job
from shoal.engine.lengths import AnswerLengths, kind_of
from shoal.engine.outlook import Growth
from shoal.engine.tree import PrefixTree

WINDOW = 1024
"""Waiting jobs among which the longest prefix is looked for; those behind them wait."""


class Policy(Protocol):
    """The queue of a scheduler. All is called on the thread that plans steps.

    keeps  whether what a finished job computed stays findable until memory is needed
    """

    keeps: bool

    def add(self, jobs: Iterable[Job]) -> None:
        """Take jobs that have just arrived."""
        ...

    def put_back(self, job: Job) -> None:
        """Take back a running job whose memory was needed; it comes before all others."""
        ...

    def remove(self, job: Job) -> None:
        """Forget a waiting job, if it is one."""
        ...

    def head(self, tree: PrefixTree) -> Job | None:
        """The job to be admitted next."""
        ...

    def growth(self, job: Generation) -> Growth:
        """How many more slots an answer is expected to ask for, and whether it ends then."""
        ...

    def shared(self, job: Generation) -> tuple[str, int]:
        """The scope in which a job's prompt is shared, and how many of its tokens are."""
        ...

    def placed(self, job: Job, tree: PrefixTree) -> None:
        """A job has its slots and is running now."""
        ...

    def ended(self, job: Job, tree: PrefixTree) -> None:
        """A job has ended for good and let go of its slots."""
        ...

    def make_way(self, tree: PrefixTree) -> bool:
        """Give up memory that the policy holds, as nothing runs without; whether it held any."""
        ...

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Job]: ...
    def __contains__(self, job: object) -> bool: ...


class ArrivalOrder:
    """First come, first served; everything stays findable.

    expects  admit by what answers are expected to need, each tenant's by its own; otherwise
             every answer may grow to its limit
    """

    keeps = True

    def __init__(self, *, expects: bool = True) -> None:
        self._waiting: OrderedDict[Job, None] = OrderedDict()
        self._lengths = AnswerLengths() if expects else None

    def add(self, jobs: Iterable[Job]) -> None:
        self._waiting.update(dict.fromkeys(jobs))

    def put_back(self, job: Job) -> None:
        self._waiting[job] = None
        self._waiting.move_to_end(job, last=False)

    def remove(self, job: Job) -> None:
        self._waiting.pop(job, None)

    def head(self, tree: PrefixTree) -> Job | None:
        return next(iter(self._waiting), None)

    def growth(self, job: Generation) -> Growth:
        if self._lengths is None:
            return Growth(job.growth, ends=True)
        return self._lengths.growth(job, _kind(job))

    def shared(self, job: Generation) -> tuple[str, int]:
        return job.request.salt, len(job.tokens)

    def placed(self, job: Job, tree: PrefixTree) -> None:
        """Nothing to note."""

    def ended(self, job: Job, tree: PrefixTree) -> None:
        if self._lengths is not None and isinstance(job, Generation):
            self._lengths.add(job, _kind(job))

    def make_way(self, tree: PrefixTree) -> bool:
        return False

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._waiting)

    def __contains__(self, job: object) -> bool:
        return job in self._waiting


class LongestPrefix(ArrivalOrder):
    """The waiting job of whose prompt most is cached comes first; ties by arrival.

    Jobs that lost their memory come before all others, so that they end.
    """

    def __init__(self) -> None:
        super().__init__()
        self._first: list[Job] = []

    def put_back(self, job: Job) -> None:
        super().put_back(job)
        self._first.append(job)

    def remove(self, job: Job) -> None:
        super().remove(job)
        if job in self._first:
            self._first.remove(job)

    def head(self, tree: PrefixTree) -> Job | None:
        if self._first:
            return self._first[-1]
        window = islice(self._waiting, WINDOW)
        return max(window, key=lambda job: _cached(job, tree), default=None)


def _kind(job: Generation) -> object:
    return job.request.salt, kind_of(job.request)


def _cached(job: Job, tree: PrefixTree) -> int:
    """Tokens of a job's prompt that need not be computed for it."""
    if isinstance(job, HiddenStates):
        return tree.match(job.prefix, job.salt)
    return tree.match(job.tokens, job.request.salt)
