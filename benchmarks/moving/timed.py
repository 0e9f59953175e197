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

    def play(self, arrivals: Sequence[Arrival], reuse: bool) -> list[Served]:
        """Serve prompts as they come; on the compute thread."""
        clock, served = self.clock, [Served() for _ in arrivals]
        jobs: dict[Generation, Served] = {}
        coming = 0
        while coming < len(arrivals) or self.scheduler.busy:
            if not self.scheduler.busy:
                clock.now = max(clock.now, arrivals[coming].at)
            began = time.thread_time()
            while coming < len(arrivals) and arrivals[coming].at <= clock.now:
                job = self._job(arrivals[coming], served[coming])
                if reuse and self.reuse is not None:
                    self.reuse.welcome(job)
                jobs[job] = served[coming]
                self.scheduler.submit([job])
                coming += 1
            self._stepper.step()
            clock.now += time.thread_time() - began
            for job, one in list(jobs.items()):
                if job.first_token is not None and not one.first:
                    one.first = clock.now
                if one.done is not None:
                    one.last = clock.now
                    del jobs[job]
        return served

    def _job(self, arrival: Arrival, served: Served) -> Generation:
        sampling = Sampling(max_tokens=arrival.answer, ignore_eos=True)
        return Generation(
            request=Request((), sampling, salt=f"tenant {arrival.tenant}"),
            prompt_tokens=len(arrival.tokens),
            tokens=list(arrival.tokens),
            max_new=arrival.answer,
            stream=self.model.tokenizer.stream(),
            eos_ids=self.model.tokenizer.eos_ids,
            constraint=None,
            on_text=lambda text, tokens: None,
            on_done=lambda completion: setattr(served, "done", completion),
        )
