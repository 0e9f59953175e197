"""An engine that is turned by hand, on a clock of CPU seconds: other load does not matter."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.core.protocols import Completion, Request, Sampling
from shoal.engine.generation import Generation
from shoal.engine.local import LocalEngine


@dataclass(frozen=True)
class Arrival:
    """A prompt that comes at a second of the trace's clock."""

    at: float
    tenant: int
    tokens: tuple[int, ...]
    answer: int


@dataclass
class Served:
    """What became of it; seconds of the trace's clock."""

    first: float = 0.0
    last: float = 0.0
    done: Completion | None = None


class Clock:
    """CPU seconds that the trace has taken."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Timed(LocalEngine):
    """An engine that is turned by hand, on a clock of CPU seconds."""

    clock: Clock

    @property
    def pool(self):  # type: ignore[no-untyped-def]
        """Where its cache lies."""
        return self._pool

    def turn(self) -> None:
        """One step; on the compute thread."""
        self._stepper.step()


class Play:
    """A trace on its way through an engine; ``reuse`` says whether prompts may be moved."""

    def __init__(self, engine: Timed, arrivals: Sequence[Arrival], *, reuse: bool) -> None:
        self.engine, self.arrivals, self._reuse = engine, arrivals, reuse
        self.served = [Served() for _ in arrivals]
        self._jobs: dict[Generation, Served] = {}
        self._coming = 0

    @property
    def over(self) -> bool:
        """Whether everything was answered."""
        return self._coming == len(self.arrivals) and not self.engine.scheduler.busy

    def turn(self) -> None:
        """Take what has come and do one step; on the compute thread."""
        engine, clock = self.engine, self.engine.clock
        if not engine.scheduler.busy:
            clock.now = max(clock.now, self.arrivals[self._coming].at)
        began = time.thread_time()
        while self._coming < len(self.arrivals) and self.arrivals[self._coming].at <= clock.now:
            served = self.served[self._coming]
            job = self._job(self.arrivals[self._coming], served)
            if self._reuse and engine.reuse is not None:
                engine.reuse.welcome(job)
            self._jobs[job] = served
            engine.scheduler.submit([job])
            self._coming += 1
        engine.turn()
        clock.now += time.thread_time() - began
        for job, one in list(self._jobs.items()):
            if job.first_token is not None and not one.first:
                one.first = clock.now
            if one.done is not None:
                one.last = clock.now
                del self._jobs[job]

    def _job(self, arrival: Arrival, served: Served) -> Generation:
        sampling = Sampling(max_tokens=arrival.answer, ignore_eos=True)
        return Generation(
            request=Request((), sampling, salt=f"tenant {arrival.tenant}"),
            prompt_tokens=len(arrival.tokens),
            tokens=list(arrival.tokens),
            max_new=arrival.answer,
            stream=self.engine.model.tokenizer.stream(),
            eos_ids=self.engine.model.tokenizer.eos_ids,
            constraint=None,
            on_text=lambda text, tokens: None,
            on_done=lambda completion: setattr(served, "done", completion),
        )


def play(*plays: Play) -> None:
    """Play them beside each other, always the one whose clock is behind; on the compute thread.

    One after the other, a slow minute of the machine would be one arm's alone, and in a queue it
    would grow.
    """
    while under_way := [one for one in plays if not one.over]:
        min(under_way, key=lambda one: one.engine.clock.now).turn()
