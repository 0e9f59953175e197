"""Cache-aware order: what is mostly cached comes first, ages, and leaves others their share.

KVShare (arXiv 2503.16525) orders requests by hit rate. Priority is

    p = cached tokens / prompt tokens + a · wait / SLO

with a = 0.5, so a request is overtaken only by those that arrive within SLO / a after it. Tenants
pay for tokens that are computed, divided by their weight (start-time fair queueing: Goyal et al.,
SIGCOMM 1996); who is more than ``slack`` tokens ahead of a tenant that waits must let it pass.
Among equals, requests that read the segment that was read last come first.

Departures: the paper gives no ageing and no shares; without them whoever resembles the cache
starves everybody else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Protocol

from shoal.core.errors import ConfigError
from shoal.engine.generation import Generation, HiddenStates, Job
from shoal.engine.kvshare.tenants import tenant_of
from shoal.engine.policies import ArrivalOrder
from shoal.engine.tree import PrefixTree

WINDOW = 256
"""Oldest waiting jobs among which the next one is chosen."""
SLO = 2.0
"""Seconds to the first token that a request should wait at most."""
AGEING = 0.5
SLACK = 4096
ADMITTED = 512
"""Prompt tokens that may be on their way to a first token before another job is chosen: what is
chosen later finds more, and overtakes."""
TOGETHER = 0.05
"""What reading the same segment as the job before is worth."""


@dataclass(frozen=True, slots=True)
class Reach:
    """What a job would find now: cached tokens, and the segment most of them come from."""

    tokens: int
    segment: bytes = b""


class Finder(Protocol):
    """Looks for what is cached of a job's prompt, and gets the job ready to be placed."""

    def reach(self, job: Job, tree: PrefixTree) -> Reach:
        """What the job would find, without changing anything."""
        ...

    def prepare(self, job: Job, tree: PrefixTree) -> None:
        """The job is the next one to be placed, if there is room."""
        ...

    def placed(self, job: Job) -> None:
        """The job has its slots."""
        ...

    def ended(self, job: Job) -> None:
        """The job has ended, however that was."""
        ...


class ExactPrefixes:
    """Finds what the prefix tree holds."""

    def reach(self, job: Job, tree: PrefixTree) -> Reach:
        if isinstance(job, HiddenStates):
            return Reach(tree.match(job.prefix, job.salt))
        return Reach(tree.match(job.tokens, job.request.salt))

    def prepare(self, job: Job, tree: PrefixTree) -> None:
        """Nothing to get ready."""

    def placed(self, job: Job) -> None:
        """Nothing to note."""

    def ended(self, job: Job) -> None:
        """Nothing to note."""


class PreparedOrder(ArrivalOrder):
    """First come, first served, of jobs that a finder gets ready."""

    def __init__(self, finder: Finder | None = None) -> None:
        super().__init__()
        self.finder: Finder = finder or ExactPrefixes()

    def head(self, tree: PrefixTree) -> Job | None:
        job = self._next(tree)
        if job is not None:
            self.finder.prepare(job, tree)
        return job

    def _next(self, tree: PrefixTree) -> Job | None:
        return super().head(tree)

    def shared(self, job: Generation) -> tuple[str, int]:
        salt, shared = super().shared(job)
        if job.pieces:  # nothing from the first moved run on is anybody else's
            exact = takewhile(lambda piece: piece.segment is None, job.pieces)
            shared = sum(len(piece.tokens) for piece in exact)
        return salt, shared

    def placed(self, job: Job, tree: PrefixTree) -> None:
        self.finder.placed(job)

    def ended(self, job: Job, tree: PrefixTree) -> None:
        super().ended(job, tree)
        self.finder.ended(job)


class HitRateOrder(PreparedOrder):
    """Implements :class:`~shoal.engine.policies.Policy`.

    ageing  a of the priority; 0 is hit rate alone, which starves what is not cached
    slo     seconds to the first token that a request should wait at most
    slack   tokens that a tenant may be ahead of another that waits; infinite: no shares
    weight  of a tenant, by name
    clock   seconds
    """

    def __init__(
        self,
        finder: Finder | None = None,
        *,
        ageing: float = AGEING,
        slo: float = SLO,
        slack: float = SLACK,
        weight: Callable[[str], float] = lambda tenant: 1.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(finder)
        if ageing < 0 or slo <= 0 or slack < 0:
            raise ConfigError(
                f"Hit-rate order takes ageing and slack from 0 and an SLO above it, not {ageing}, "
                f"{slack} and {slo}."
            )
        self._ageing, self._slo, self._slack = ageing, slo, slack
        self._weight, self._clock = weight, clock
        self._arrived: dict[Job, float] = {}
        self._first: list[Job] = []  # lost their memory while they ran
        self._served: dict[str, float] = {}  # tenant -> tokens computed for it, by weight
        self._chosen: tuple[Job, Reach] | None = None
        self._under_way: dict[Job, None] = {}  # placed, and without a first token
        self._last = b""

    def add(self, jobs: Iterable[Job]) -> None:
        jobs = list(jobs)
        now = self._clock()
        busy = {_tenant(job) for job in self._waiting}
        for tenant in {_tenant(job) for job in jobs} - busy:
            # Nobody comes with credit for the time in which nothing of it waited.
            floor = min((self._served[other] for other in busy), default=0.0)
            self._served[tenant] = max(self._served.get(tenant, 0.0), floor)
        self._arrived.update(dict.fromkeys(jobs, now))
        super().add(jobs)

    def put_back(self, job: Job) -> None:
        super().put_back(job)
        self._under_way.pop(job, None)
        self._first.append(job)

    def remove(self, job: Job) -> None:
        super().remove(job)
        if job in self._first:
            self._first.remove(job)

    def placed(self, job: Job, tree: PrefixTree) -> None:
        super().placed(job, tree)
        self._under_way[job] = None
        if self._chosen is not None and self._chosen[0] is job:
            reach, tenant = self._chosen[1], _tenant(job)
            cost = _length(job) - reach.tokens
            cost += job.growth if isinstance(job, Generation) else 0
            self._served[tenant] += cost / self._weight(tenant)
            self._last = reach.segment

    def ended(self, job: Job, tree: PrefixTree) -> None:
        super().ended(job, tree)
        self._arrived.pop(job, None)
        self._under_way.pop(job, None)

    def _next(self, tree: PrefixTree) -> Job | None:
        self._chosen = None
        for job in [each for each in self._under_way if _answers(each)]:
            del self._under_way[job]
        if sum(map(_length, self._under_way)) >= ADMITTED:
            return None
        if self._first:
            return self._first[-1]
        window = list(islice(self._waiting, WINDOW))
        if not window:
            return None
        limit = min(self._served[_tenant(job)] for job in window) + self._slack
        reaches = {
            job: self.finder.reach(job, tree)
            for job in window
            if self._served[_tenant(job)] <= limit
        }
        now = self._clock()
        job = max(reaches, key=lambda job: self._priority(job, reaches[job], now))
        self._chosen = job, reaches[job]
        return job

    def _priority(self, job: Job, reach: Reach, now: float) -> float:
        """Share of the prompt that is cached, and how long the job has waited."""
        share = reach.tokens / max(1, _length(job))
        together = TOGETHER if reach.segment and reach.segment == self._last else 0.0
        return share + together + self._ageing * (now - self._arrived[job]) / self._slo


def _answers(job: Job) -> bool:
    return isinstance(job, Generation) and job.decoding


def _tenant(job: Job) -> str:
    return tenant_of(job.salt if isinstance(job, HiddenStates) else job.request.salt)


def _length(job: Job) -> int:
    if isinstance(job, HiddenStates):
        return len(job.prefix) + sum(map(len, job.suffixes))
    return len(job.tokens)
