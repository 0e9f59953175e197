"""The actor around a stepper: commands and steps are functions in one queue.

All of it happens on the compute thread; a busy engine queues its next step behind whatever
arrived meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from shoal.core.errors import EngineError
from shoal.engine.compute import compute
from shoal.engine.generation import Generation
from shoal.engine.scheduler import Job
from shoal.engine.step import Stepper


class Actor:
    """Runs jobs to their ends; they answer through their own callbacks."""

    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper
        self._scheduler = stepper.scheduler
        self._failure: str | None = None
        self._stepping = False

    async def run(self, jobs: Sequence[Job], answers: Sequence[asyncio.Future[Any]]) -> None:
        """Submit jobs as one group and wait for their answers; on cancellation take them back.

        Raises :class:`EngineError` once the engine was closed or has failed.
        """
        if self._failure is not None:
            raise EngineError(self._failure)
        compute.submit(lambda: self._submit(jobs))
        try:
            await asyncio.gather(*answers)
        except asyncio.CancelledError:
            compute.submit(lambda: self._cancel(jobs))
            raise

    async def close(self) -> None:
        """Give up jobs under way and refuse new ones."""
        await asyncio.wrap_future(compute.future(lambda: self._abandon("The engine is closed.")))

    def _submit(self, jobs: Sequence[Job]) -> None:
        self._scheduler.submit(jobs)
        if self._failure is not None:  # closed while the jobs were on their way
            self._abandon(self._failure)
        elif not self._stepping:
            self._stepping = True
            self._step()

    def _step(self) -> None:
        try:
            self._stepper.step()
        except Exception as error:
            self._abandon(f"The engine stopped: {type(error).__name__}: {error}.")
        self._stepping = self._scheduler.busy
        if self._stepping:
            compute.submit(self._step)

    def _cancel(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self._stepper.cancel(job)

    def _abandon(self, why: str) -> None:
        self._failure = why
        for job in [*self._scheduler.running, *self._scheduler.waiting]:
            if isinstance(job, Generation):
                done = job.completion(token_bytes=self._stepper.pool.token_bytes, error=why)
                job.on_done(replace(done, error_kind="engine"))
            else:
                job.on_done(why)
            self._scheduler.finish(job)


def call_on(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    """Run on the event loop, unless that has ended meanwhile."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(function)


def resolve(answer: asyncio.Future[Any], value: object) -> None:
    """Hand over an answer; a text says why there is none."""
    if answer.done():
        return
    if isinstance(value, str):
        answer.set_exception(EngineError(value))
    else:
        answer.set_result(value)
