"""Taking a superstep's turns: one call per engine for the whole group, failures by policy."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from shoal.agents.events import FailureAction, OnEvent, TurnDelta, TurnFailed, TurnStarted
from shoal.agents.failures import FailurePolicy
from shoal.agents.prompt import Piece
from shoal.agents.team import Agent, Member, Script
from shoal.agents.turns import Turn
from shoal.core import rng
from shoal.core.budget import Budget, Reservation
from shoal.core.errors import BudgetExhausted, EngineError
from shoal.core.protocols import Completion, Delta, Engine, Grammar, OnDelta, Request, Sampling
from shoal.core.records import Finish, Message, Step, ToolCall, Usage


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one turn; with ``error`` set, nothing usable did."""

    text: str = ""
    finish: Finish = "stop"
    usage: Usage = Usage()
    tool_calls: tuple[ToolCall, ...] = ()
    how: str = "exact"
    error: str | None = None
    engine_down: bool = False


@dataclass(slots=True, eq=False)
class Job:
    """One turn on its way from the plan to the log."""

    turn: Turn
    member: Member
    path: str
    key: str
    superstep: int
    prompt: tuple[Message, ...]
    seen: tuple[str, ...]
    sampling: Sampling
    budget: Budget
    reservation: Reservation | None = None
    recorded: Step | None = None
    model: str | Script | None = None
    answer: Answer = field(default_factory=Answer)
    data: dict[str, Any] = field(default_factory=dict)
    pieces: tuple[Piece, ...] = ()

    @property
    def attempts(self) -> int:
        """How often the turn was tried."""
        return int(self.data.get("attempts", 1))


Nested = Callable[[Job], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Desk:
    """Where turns are taken: the engines by key, nested teams, who listens, what failure does."""

    engines: Mapping[str, Engine]
    nested: Nested
    emit: OnEvent | None
    policy: FailurePolicy

    async def take(self, jobs: Sequence[Job]) -> None:
        """Answer all jobs, trying again as the policy says; each job then has its answer."""
        await self._attempt(jobs)
        retries = self.policy.retries
        for attempt in range(1, max(1, retries) + 1):
            again = [
                job
                for job in jobs
                if (job.answer.error is not None and attempt <= retries)
                or (attempt == 1 and not _chosen(job))
            ]
            again = [job for job in again if self._affords(job)]
            if not again:
                break
            for job in again:
                self._prepare(job, attempt)
            await self._attempt(again)
        if self.policy.model is not None:
            failed = [job for job in jobs if job.answer.error is not None and self._affords(job)]
            for job in failed:
                self._tell(job, "replace")
                job.model = job.data["model"] = self.policy.model
            await self._attempt(failed)
        for job in jobs:
            self._conclude(job)

    def _affords(self, job: Job) -> bool:
        """Book one more call; false where the budget has none, or for a team: its own members
        have tried again."""
        if job.reservation is None:
            return False
        try:
            job.budget.reserve(0).settle(0)
        except BudgetExhausted:
            return False
        job.data["attempts"] = job.attempts + 1
        return True

    def _prepare(self, job: Job, attempt: int) -> None:
        self._tell(job, "retry")
        if job.answer.error is None:  # an unusable choice: the same seed would say it again
            seed = rng.seed_of(job.sampling.seed, attempt)
            job.sampling = replace(job.sampling, seed=seed)

    def _conclude(self, job: Job) -> None:
        answer = job.answer
        if answer.error is not None:
            job.data["error"] = answer.error
            self._tell(job, self.policy.then)
        elif job.turn.choices:
            choice = chosen(answer.text, job.turn.choices)
            if choice is None:
                pick = int(rng.uniform(job.sampling.seed, "choice") * len(job.turn.choices))
                choice = job.turn.choices[pick]
                job.data["fallback"] = True
                self._tell(job, "fallback")
            job.data["choice"] = choice

    def _tell(self, job: Job, action: FailureAction) -> None:
        if self.emit is not None:
            error = job.answer.error or f"answered {job.answer.text!r}, which is no choice"
            self.emit(TurnFailed(job.path, job.superstep, error, action))

    async def _attempt(self, jobs: Sequence[Job]) -> None:
        by_engine: dict[str, list[Job]] = {}
        waits: list[Coroutine[Any, Any, None]] = []
        for job in jobs:
            if self.emit is not None:
                self.emit(TurnStarted(job.path, job.superstep, bool(job.turn.choices)))
            if isinstance(job.model, str):
                by_engine.setdefault(job.model, []).append(job)
            elif isinstance(job.model, Script):
                waits.append(_play(job, job.model))
            else:
                waits.append(self._nest(job))
        waits += [self._generate(self.engines[key], group) for key, group in by_engine.items()]
        if len(waits) == 1:
            await waits[0]
        elif waits:
            await _together(waits)

    async def _nest(self, job: Job) -> None:
        job.answer = await self.nested(job)

    async def _generate(self, engine: Engine, jobs: Sequence[Job]) -> None:
        requests = [Request(job.prompt, job.sampling, _grammar(job.turn)) for job in jobs]
        try:
            completions = await engine.generate(requests, self._listener(jobs))
        except EngineError as error:
            for job in jobs:
                job.answer = Answer(usage=job.answer.usage, error=str(error), engine_down=True)
            return
        for job, completion in zip(jobs, completions, strict=True):
            job.answer = _answer(completion, job.answer.usage)

    def _listener(self, jobs: Sequence[Job]) -> OnDelta | None:
        emit = self.emit
        if emit is None:
            return None

        def on_delta(delta: Delta) -> None:
            job = jobs[delta.index]
            emit(TurnDelta(job.path, job.superstep, delta.text))

        return on_delta


async def _together(waits: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Await all; the first failure cancels the others and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            for wait in waits:
                group.create_task(wait)
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


async def _play(job: Job, script: Script) -> None:
    try:
        text = script.fn(job.prompt, job.sampling.seed)
        job.answer = Answer(await text if inspect.isawaitable(text) else text)
    except Exception as error:  # a member that crashes must not take the team with it
        job.answer = Answer(error=f"{script.name} raised {type(error).__name__}: {error}")


def _grammar(turn: Turn) -> Grammar | None:
    return Grammar("choice", turn.choices) if turn.choices else None


def _answer(completion: Completion, spent: Usage) -> Answer:
    error = completion.error
    if error is None and completion.finish in ("error", "cancelled"):
        error = f"the engine gave up ({completion.finish})"
    return Answer(
        completion.text,
        completion.finish,
        spent + completion.usage,
        completion.tool_calls,
        completion.how,
        error,
    )


def _chosen(job: Job) -> bool:
    """Whether the job's answer is a choice where one was asked for."""
    if not job.turn.choices or job.answer.error is not None:
        return True
    return chosen(job.answer.text, job.turn.choices) is not None


def chosen(text: str, choices: Sequence[str]) -> str | None:
    """The choice a text names: all of it, or the only one among its words; else None."""
    word = text.strip(" \n\t.,;:!?*\"'`()").casefold()
    exact = [choice for choice in choices if choice.casefold() == word]
    if exact:
        return exact[0]
    words = set(re.findall(r"[^\W\d][\w-]*(?:\.[\w-]+)*", text.casefold()))
    named = [choice for choice in choices if choice.casefold() in words]
    return named[0] if len(named) == 1 else None


def model_of(member: Member) -> str | Script | None:
    """The engine key or script that speaks for a member; None for a team."""
    return member.model if isinstance(member, Agent) else None
