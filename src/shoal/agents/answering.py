"""Taking a superstep's turns: one call per engine for the whole group, failures by policy."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from shoal.agents.events import FailureAction, OnEvent, TurnDelta, TurnFailed, TurnStarted
from shoal.agents.failures import FailurePolicy
from shoal.agents.lockstep import Voice, write_together
from shoal.agents.outside import Human, Model, Outside, Remote, Script
from shoal.agents.prompt import Piece
from shoal.agents.strategies import Session, described, strategies
from shoal.agents.team import Agent, Member
from shoal.agents.turns import Turn
from shoal.agents.votes import chosen
from shoal.agents.world import World
from shoal.core import rng
from shoal.core.budget import Budget, Reservation
from shoal.core.errors import BudgetExhausted, EngineError, ShoalError
from shoal.core.log import EventLog
from shoal.core.protocols import (
    Completion,
    Delta,
    Engine,
    Grammar,
    OnDelta,
    Request,
    Sampling,
    Segment,
)
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
    model: Model | None = None
    answer: Answer = field(default_factory=Answer)
    data: dict[str, Any] = field(default_factory=dict)
    pieces: tuple[Piece, ...] = ()
    heard: tuple[tuple[str, str], ...] = ()

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
    log: EventLog
    outside: Outside

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
        joint: list[Job] = []
        waits: list[Coroutine[Any, Any, None]] = []
        for job in jobs:
            if self.emit is not None:
                self.emit(TurnStarted(job.path, job.superstep, bool(job.turn.choices)))
            if job.turn.joint:
                joint.append(job)
            elif isinstance(job.model, str) and _at_once(job):
                by_engine.setdefault(job.model, []).append(job)
            elif isinstance(job.model, str):
                waits.append(self._deliberate(job, self.engines[job.model]))
            elif job.model is not None:
                waits.append(self._reach(job, job.model))
            else:
                waits.append(self._nest(job))
        if joint:
            waits.append(self._agree(joint))
        waits += [self._generate(self.engines[key], group) for key, group in by_engine.items()]
        if len(waits) == 1:
            await waits[0]
        elif waits:
            await _together(waits)

    async def _nest(self, job: Job) -> None:
        job.answer = await self.nested(job)

    async def _reach(self, job: Job, model: Script | Human | Remote | World) -> None:
        request = _request(job)
        spent = job.answer.usage
        try:
            completion = await self.outside.answer(model, job.path, request, job.heard)
        except ShoalError as error:
            job.answer = Answer(usage=spent, error=str(error))
        else:
            job.answer = _answer(completion, spent)

    async def _deliberate(self, job: Job, engine: Engine) -> None:
        """A turn of several requests, by the member's strategy."""
        assert isinstance(job.member, Agent)
        spent = job.answer.usage
        session = Session(
            job, engine, self.log, job.member.kit, self._listener([job]), again=job.attempts > 1
        )
        try:
            completion = await strategies.make(job.member.strategy)(session)
        except EngineError as error:
            down = session.requests < 2
            job.answer = Answer(usage=spent + session.usage, error=str(error), engine_down=down)
        else:
            answer = _answer(replace(completion, usage=session.usage), spent)
            job.answer = replace(answer, tool_calls=tuple(session.calls), how=session.how)
        finally:
            session.release()
        job.data.update(described(session))

    async def _agree(self, jobs: Sequence[Job]) -> None:
        """One answer for all, token by token; the first member's sampling holds."""
        voices = []
        for job in jobs:
            if not isinstance(job.model, str):
                for each in jobs:
                    each.answer = Answer(error=f"{job.path} has no engine to write together with")
                return
            voices.append(Voice(self.engines[job.model], job.prompt))
        try:
            completions = await write_together(voices, jobs[0].sampling)
        except EngineError as error:
            for job in jobs:
                job.answer = Answer(usage=job.answer.usage, error=str(error))
            return
        for job, completion in zip(jobs, completions, strict=True):
            job.answer = _answer(completion, job.answer.usage)

    async def _generate(self, engine: Engine, jobs: Sequence[Job]) -> None:
        requests = [_request(job) for job in jobs]
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


def _at_once(job: Job) -> bool:
    """Whether a turn is one request."""
    plain = not isinstance(job.member, Agent) or job.member.strategy == "answer"
    return plain or bool(job.turn.choices) or "hand_back" in job.data


def _request(job: Job) -> Request:
    """What an engine is asked; a turn's first request bears the name of the turn.

    Words whose cache a channel carries are placeholders, named by their place among them: an
    engine that learns how contexts change a cache learns it place by place.
    """
    name = job.key if job.attempts == 1 else f"{job.key}/{job.attempts}"
    words = [piece.text for piece in job.pieces if piece.reusable]
    placeholders = tuple(Segment(text, name=f"heard {at}") for at, text in enumerate(words))
    return Request(job.prompt, job.sampling, _grammar(job.turn), placeholders=placeholders, id=name)


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


def model_of(member: Member) -> Model | None:
    """What speaks for a member; None for a team."""
    return member.model if isinstance(member, Agent) else None
