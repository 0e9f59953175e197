"""One turn of the crank: plan, one forward pass, choose tokens, hand answers on.

No threads and no files here: the loop can be driven by hand in a test.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from shoal.core.errors import ShoalError
from shoal.core.protocols import TokenLogprob
from shoal.engine.adapters import EngineAdapters
from shoal.engine.attention import StepAttention, Work
from shoal.engine.generation import Generation, HiddenStates
from shoal.engine.late_repair import LateRepair
from shoal.engine.pool import KVPool
from shoal.engine.repair import repair
from shoal.engine.sampler import Row, choose
from shoal.engine.scheduler import Job, Scheduler
from shoal.engine.segments import place
from shoal.models.loading import Model


@dataclass(slots=True)
class Counters:
    """What an engine has done since it was opened.

    tokens_computed  rows that went through the first layer, counted there
    tokens_generated tokens chosen
    steps            forward passes
    """

    tokens_computed: int = 0
    tokens_generated: int = 0
    steps: int = 0


class Stepper:
    """Runs the scheduler's plans on a model."""

    def __init__(
        self, model: Model, pool: KVPool, scheduler: Scheduler, adapters: EngineAdapters
    ) -> None:
        self.model = model
        self.adapters = adapters
        self.pool = pool
        self.scheduler = scheduler
        self.counters = Counters()
        scheduler.write = functools.partial(place, pool, model.decoder)

    @torch.inference_mode()
    def step(self) -> None:
        """Compute one batch of tokens and finish what it finishes."""
        works = self.scheduler.plan()
        self.adapters.take(work.adapter for work in works)
        works.sort(key=self._place)  # readers of one span side by side
        if works:
            self._forward(works)
        self._repair_some()
        self._choose()
        self._collect()

    def _forward(self, works: Sequence[Work]) -> None:
        ids: list[int] = []
        positions: list[int] = []
        for work in works:
            end = work.start + work.count
            ids += work.node.tokens[work.start : end]
            positions += range(work.node.position + work.start, work.node.position + end)
        late = self._late_repairs(works)
        attend = StepAttention(works, self.pool, {row: stage for row, (_, stage) in late.items()})
        decoder = self.adapters.through([(work.adapter, work.count) for work in works])
        hidden_TD = decoder.forward(torch.tensor(ids), torch.tensor(positions), attend)
        self.counters.steps += 1
        self.counters.tokens_computed += attend.tokens_computed

        row = 0
        for work in works:
            node = work.node
            states_TD = hidden_TD[row : row + work.count]
            row += work.count
            if work.start < node.filled:
                continue  # a moved token, computed again
            if node.keep_hidden:
                before = [] if node.all_hidden is None else [node.all_hidden]
                node.all_hidden = torch.cat([*before, states_TD])
            node.filled += work.count
            if node.complete:
                node.last_hidden = states_TD[-1].clone()
        if late:
            computed = {(id(work.node), work.start) for work in works}
            for job, stage in late.values():
                count = sum((id(node), place) in computed for node, place in stage.rows())
                stage.stepped(count)
                job.repaired_late += count
                if stage.ended:
                    job.late = None

    def _late_repairs(self, works: Sequence[Work]) -> dict[int, tuple[Generation, LateRepair]]:
        """Answers whose moved tokens are still watched, by the row of their newest token."""
        ends = {
            id(job.end): (job, job.late)
            for job in self.scheduler.running
            if isinstance(job, Generation) and job.decoding and job.late is not None
        }
        found: dict[int, tuple[Generation, LateRepair]] = {}
        row = 0
        for work in works if ends else ():
            if (watched := ends.get(id(work.node))) is not None:
                found[row] = watched
            row += work.count
        return found

    def _place(self, work: Work) -> tuple[int, ...]:
        """Where a work stands: by adapter, and in the tree depth first."""
        spans = (node.start for node in work.node.path())
        return (self.adapters.order(work.adapter), *spans, work.start)

    def _repair_some(self) -> None:
        """Repair what was admitted first, about as many rows as a step has: answers wait for it."""
        before = self.counters.tokens_computed
        for job in self.scheduler.running:
            if self.counters.tokens_computed - before >= self.scheduler.rows:
                return
            if isinstance(job, Generation) and job.repair_pending:
                self._repair(job)

    def _repair(self, job: Generation) -> None:
        """Compute a request that was put together from elsewhere, once its beginning is there."""
        assert job.end is not None and job.repair is not None
        path = job.end.path()
        own = [node for node in path if node.position >= job.beginning]
        if not all(node.complete for node in path[: -len(own)]):
            return
        moved_A = torch.tensor(job.moved_tokens())
        done = repair(self.model.decoder, self.pool, path, job.beginning, job.repair, moved_A)
        for node in own:
            first = node.position - job.beginning
            states_TD = done.states_AD[first : first + len(node.tokens)]
            node.filled = len(node.tokens)
            node.last_hidden = states_TD[-1].clone()
            node.all_hidden = states_TD if node.keep_hidden else None
        self.counters.tokens_computed += done.rows
        job.charge(len(moved_A) - int(moved_A.sum()))
        job.repair_pending, job.repaired = False, done
        job.late, job.repaired_late = None, 0
        if job.repair.late is not None:
            stage = LateRepair.of(
                job.repair.late,
                path,
                job.beginning,
                moved_A,
                done,
                self.model.config.layers,
                job.repair.seed,
            )
            job.late = None if stage.ended else stage

    def _choose(self) -> None:
        ready: list[Generation] = []
        rows: list[Row] = []
        hidden: list[torch.Tensor] = []
        for job in list(self.scheduler.running):
            if isinstance(job, Generation) and job.end is not None and job.end.complete:
                assert job.end.last_hidden is not None, "an end that was computed kept its state"
                if not job.decoding and job.watch is not None:
                    job.watch.prefilled(job)
                if not job.max_new:
                    job.finish = "length"
                    self._end(job)
                    continue
                try:
                    rows.append(job.row())
                except ShoalError as error:
                    self._end(job, str(error))
                    continue
                ready.append(job)
                hidden.append(job.end.last_hidden)
        if not ready:
            return
        choice = choose(self.model.decoder.logits(torch.stack(hidden)), rows)
        self.counters.tokens_generated += len(ready)
        for job, token, logprob in zip(ready, choice.tokens, choice.logprobs, strict=True):
            try:
                job.accept(token, self._named(token, logprob) if logprob else None)
            except ShoalError as error:
                self._end(job, str(error))
                continue
            if job.finish:
                self._end(job)
            elif job in self.scheduler.running:  # growing another may have preempted it
                self.scheduler.grow(job)

    def _named(self, token: int, logprob: tuple[float, list[tuple[int, float]]]) -> TokenLogprob:
        decode = self.model.tokenizer.decode
        own, top = logprob
        return TokenLogprob(token, decode([token]), own, tuple((t, decode([t]), p) for t, p in top))

    def _collect(self) -> None:
        for job in list(self.scheduler.running):
            if isinstance(job, HiddenStates) and next(job.unfinished(), None) is None:
                states = job.collect()
                self.scheduler.finish(job)
                job.on_done(states)

    def _end(self, job: Generation, error: str | None = None) -> None:
        if job.watch is not None and job.finish in ("stop", "length"):
            job.watch.ending(job)
        self.scheduler.finish(job)
        job.on_done(job.completion(token_bytes=self.pool.token_bytes, error=error))

    def cancel(self, job: Job) -> None:
        """Stop a job where it is; a generation is answered with what it has."""
        if job not in self.scheduler.running and job not in self.scheduler.waiting:
            return
        if isinstance(job, Generation):
            job.finish = "cancelled"
            self._end(job)
        else:
            self.scheduler.finish(job)
