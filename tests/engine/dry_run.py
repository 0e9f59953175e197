"""A scheduler without a model: nodes count as computed at once, answers have given lengths."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from shoal.core.protocols import Completion, Request, Sampling, Segment
from shoal.engine.generation import Generation
from shoal.engine.policies import Policy
from shoal.engine.pool import ExtentAllocator
from shoal.engine.scheduler import Scheduler
from shoal.engine.tree import PrefixTree

STATE = torch.zeros(1)


class Silent:
    """A text stream that says nothing."""

    def step(self, token: int) -> str:
        return ""

    def finish(self) -> str:
        return ""


class DryRun:
    """Drives a scheduler; ``ended`` are ids of requests in the order in which they ended."""

    def __init__(
        self, capacity: int, *, policy: Policy | None = None, sharing: bool = True, rows: int = 64
    ) -> None:
        self.slots = ExtentAllocator(capacity)
        self.scheduler = Scheduler(
            PrefixTree(self.slots), sharing=sharing, rows=rows, policy=policy
        )
        self.started: list[str] = []
        self.ended: list[str] = []
        self._ends: dict[str, int] = {}
        self.steps = 0

    def job(
        self, prompt: Sequence[int], *, answer: int = 1, limit: int | None = None, salt: str = ""
    ) -> Generation:
        """A request whose answer has ``answer`` tokens; not submitted yet."""
        sampling = Sampling(max_tokens=limit or answer)
        request = Request((Segment(tokens=tuple(prompt)),), sampling, salt=salt)
        self._ends[request.id] = answer
        return Generation(
            request=request,
            prompt_tokens=len(prompt),
            tokens=list(prompt),
            max_new=limit or answer,
            stream=Silent(),
            eos_ids=frozenset({-1}),
            constraint=None,
            on_text=lambda text, tokens: None,
            on_done=self._done,
        )

    def _done(self, completion: Completion) -> None:
        """Ends are noted in ``step``."""

    def submit(self, jobs: Sequence[Generation]) -> None:
        self.scheduler.submit(jobs)

    def step(self) -> None:
        """One turn, as the engine's stepper does it."""
        before = set(self.scheduler.running)
        for work in self.scheduler.plan():
            node = work.node
            assert node.filled == work.start, "nothing is computed twice or over a gap"
            above = node.path()[:-1]
            assert all(each.filled == len(each.tokens) or each in self._now for each in above)
            self._now.add(node)
            node.filled += work.count
            if node.complete:
                node.last_hidden = STATE
        self._now.clear()
        self.started += [
            job.request.id
            for job in self.scheduler.running
            if isinstance(job, Generation) and job not in before
        ]
        self.steps += 1
        for job in list(self.scheduler.running):
            assert isinstance(job, Generation)
            if job.end is None or not job.end.complete or job not in self.scheduler.running:
                continue
            produced = len(job.answer) + 1
            last = produced == self._ends[job.request.id]
            job.accept(-1 if last else produced % 7, None)
            if job.finish:
                self.scheduler.finish(job)
                self.ended.append(job.request.id)
            else:
                self.scheduler.grow(job)

    _now: set[object] = set()  # noqa: RUF012  (nodes of the step under way)

    def run(self, limit: int = 100_000) -> None:
        """Until nothing is left."""
        for _ in range(limit):
            if not self.scheduler.busy:
                return
            self.step()
        raise AssertionError(f"not done after {limit} steps")
