"""One team's way through its supersteps: plan, hear, reserve, answer, log, settle; then reduce."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from shoal.agents.answering import Answer, Desk, Job, model_of
from shoal.agents.events import OnEvent, SuperstepEnded, SuperstepStarted, TurnEnded
from shoal.agents.failures import failure_policies
from shoal.agents.material import Material
from shoal.agents.prompt import PromptWriter, handing_back, said, split_common
from shoal.agents.reducers import Reduction, reducers
from shoal.agents.state import State
from shoal.agents.stops import stop_rules
from shoal.agents.team import Agent, Script, Team
from shoal.agents.turns import Turn, turn_rules
from shoal.core import rng
from shoal.core.budget import Budget, Limits
from shoal.core.errors import BudgetExhausted
from shoal.core.log import EventLog
from shoal.core.protocols import Engine, Sampling
from shoal.core.records import Message, Step


@dataclass(slots=True)
class Context:
    """What a run's teams share: engines, log, seed, the turns taken so far, who listens."""

    run_id: str
    engines: Mapping[str, Engine]
    log: EventLog
    seed: int
    preamble: str
    emit: OnEvent | None
    recorded: dict[str, Step]
    steps: list[Step] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a team's work ended; the outcomes are those of ``TeamResult``."""

    result: str | None
    outcome: str
    why: str


class Aborted(Exception):
    """The run stops where it is; its log can be resumed."""


class TeamRun:
    """A team at work inside a run; ``scope`` is its place there ("" or ``2/panel/``)."""

    def __init__(
        self,
        context: Context,
        team: Team,
        task: str,
        material: Material,
        *,
        budget: Budget,
        scope: str = "",
        path: str = "",
    ) -> None:
        self.team = team
        self.state = State(
            team, parts=len(material.pieces), seed=rng.seed_of(context.seed, scope, "rules")
        )
        self._context = context
        self._material = material
        self._scope = scope
        self._path = path
        self._writer = PromptWriter(self.state, task, material, context.preamble)
        self._turn = turn_rules.make(team.protocol.turn)
        self._until = stop_rules.make(team.protocol.until)
        self._reduce = reducers.make(team.protocol.reduce)
        self._policy = failure_policies.make(team.protocol.on_failure)
        self._desk = Desk(context.engines, self._nested, context.emit, self._policy)
        self._budget = budget
        self._budgets = {
            name: budget
            if isinstance(member, Team) or member.limits == Limits()
            else budget.child(member.limits, path + name)
            for name, member in self.state.member.items()
        }
        self._out: set[str] = set()
        self._refused: Turn | None = None
        self._failed: list[str] = []
        self._answered = True

    async def run(self) -> Ending:
        """Superstep after superstep until a rule says stop; raises :class:`Aborted`."""
        state = self.state
        while not (why := self._until(state)):
            plan = self._turn(state)
            turns = [turn for turn in plan.turns if turn.member not in self._out]
            if not turns:
                why = "no member has budget left" if plan.turns else plan.why
                break
            inboxes = self._inboxes(turns)
            await self._superstep(turns, inboxes, last_chance=plan.ends_round)
            state.end_superstep(plan)
            if self._refused is not None:
                break
        return await self._finish(why or "the budget is used up")

    async def _finish(self, why: str) -> Ending:
        reduction = self._reduce(self.state)
        if isinstance(reduction, Turn) and self._refused is None:
            reduction = await self._judged(reduction)
        if self._refused is not None:
            reduction = await self._hand_back(reduction)
            why = "the budget is used up"
        assert isinstance(reduction, Reduction)
        if reduction.data:
            key = f"{self._context.run_id}/{self._scope}reduce"
            self._context.log.append("note", dict(reduction.data), key=key)
        result = reduction.result.strip() if reduction.result is not None else None
        return Ending(result, self._outcome(result), self._because(why))

    def _outcome(self, result: str | None) -> str:
        if self._refused is not None or self._out:
            return "budget_exhausted"
        if result is None:
            return "undecided"
        return "degraded" if self._failed else "done"

    def _because(self, why: str) -> str:
        return "; ".join([why, *self._failed])

    async def _judged(self, turn: Turn) -> Reduction:
        """The judge's answer; notes that do not fit its context together are judged in levels."""
        notes = self.state.proposals()
        while True:
            batches = self._batches(turn, notes)
            steps = await self._superstep([turn] * len(batches), batches)
            self.state.superstep += 1
            answers = tuple(step for step in steps if step is not None and step.finish != "error")
            if len(batches) == 1 or not answers or self._refused is not None:
                break
            notes = answers
        if answers:
            return Reduction(answers[-1].output)
        return self._last_words(notes)

    def _last_words(self, notes: Sequence[Step]) -> Reduction:
        """What is left where nobody could judge; the log says so."""
        said_last = notes[-1].output if notes else None
        return Reduction(said_last, {"fallback": "last", "from": [step.key for step in notes]})

    def _batches(self, turn: Turn, notes: tuple[Step, ...]) -> list[tuple[Step, ...]]:
        member = self.state.member[turn.member]
        if not isinstance(member, Agent) or isinstance(member.model, Script):
            return [notes]
        engine = self._context.engines[member.model]
        context = engine.info.context_tokens
        if context is None or len(notes) < 2:
            return [notes]
        room = context - member.sampling.max_tokens
        if engine.count_tokens(self._writer.messages(turn, self._writer.common(notes), ())) <= room:
            return [notes]
        empty = engine.count_tokens(self._writer.messages(turn, self._writer.common(()), ()))
        batches: list[tuple[Step, ...]] = []
        batch: tuple[Step, ...] = ()
        filled = empty
        for note in notes:
            size = engine.count_tokens((Message("user", said(note)),))
            if batch and filled + size > room:
                batches.append(batch)
                batch, filled = (), empty
            batch, filled = (*batch, note), filled + size
        batches.append(batch)
        return batches if len(batches) < len(notes) else [notes]

    async def _hand_back(self, reduction: Reduction | Turn) -> Reduction:
        """The one turn that what is left of the budget still allows, then the last words."""
        assert self._refused is not None
        turn = reduction if isinstance(reduction, Turn) else Turn(self._refused.member)
        notes = self.state.proposals()
        inboxes = [notes] if isinstance(reduction, Turn) else self._inboxes([turn])
        steps = await self._superstep([turn], inboxes, hand_back=True)
        if not isinstance(reduction, Turn):
            again = self._reduce(self.state)
            assert isinstance(again, Reduction)
            return again
        if steps and steps[0] is not None and steps[0].finish != "error":
            return Reduction(steps[0].output)
        return self._last_words(notes)

    def _inboxes(self, turns: Sequence[Turn]) -> list[tuple[Step, ...]]:
        state = self.state
        made: dict[tuple[int, ...], tuple[Step, ...]] = {}
        for turn in turns:
            hears = state.wiring.hears[turn.member]
            if hears not in made:
                made[hears] = state.wiring.inbox(hears, state.said)
        return [made[state.wiring.hears[turn.member]] for turn in turns]

    async def _superstep(
        self,
        turns: Sequence[Turn],
        inboxes: Sequence[tuple[Step, ...]],
        *,
        last_chance: bool = False,
        hand_back: bool = False,
    ) -> list[Step | None]:
        """Take these turns at once and log them; None stands for a turn the budget refused.

        ``last_chance``: if nobody has answered in this round so far, nobody will.
        """
        emit = self._context.emit
        jobs = self._jobs(turns, inboxes)
        if emit is not None:
            paths = tuple(job.path for job in jobs)
            emit(SuperstepStarted(self.state.superstep, self.state.rounds, paths))
        try:
            admitted = [job for job in jobs if self._admit(job, hand_back=hand_back)]
            open_jobs = [job for job in admitted if job.recorded is None]
            if open_jobs:
                await self._desk.take(open_jobs)
                self._check(admitted, last_chance=last_chance)
            steps = {id(job): self._log(job) for job in admitted}
        finally:
            for job in jobs:
                if job.reservation is not None and job.reservation.open:
                    job.reservation.settle(0)
        if emit is not None:
            emit(SuperstepEnded(self.state.superstep, self._budget.remaining()))
        return [steps.get(id(job)) for job in jobs]

    def _jobs(self, turns: Sequence[Turn], inboxes: Sequence[tuple[Step, ...]]) -> list[Job]:
        """Jobs in order of name; several turns of one member keep the order they came in."""
        state, context = self.state, self._context
        heard, privates = split_common(inboxes)
        common = self._writer.common(heard)
        numbered = len(turns) > 1 and turns[0].member == turns[1].member
        jobs = []
        for index, (turn, inbox, private) in enumerate(zip(turns, inboxes, privates, strict=True)):
            name = turn.member
            label = f"{name}.{index:04}" if numbered else name
            key = f"{context.run_id}/{self._scope}{state.superstep}/{label}"
            jobs.append(
                Job(
                    turn=turn,
                    member=state.member[name],
                    path=self._path + name,
                    key=key,
                    superstep=state.superstep,
                    prompt=self._writer.messages(turn, common, private),
                    seen=tuple(step.key for step in inbox),
                    sampling=self._sampling(name, label),
                    budget=self._budgets[name],
                    recorded=context.recorded.get(key),
                    model=model_of(state.member[name]),
                )
            )
        jobs.sort(key=lambda job: job.key)
        return jobs

    def _sampling(self, name: str, label: str) -> Sampling:
        member = self.state.member[name]
        sampling = member.sampling if isinstance(member, Agent) else Sampling()
        seed = rng.seed_of(self._context.seed, self._scope + label, self.state.superstep)
        return replace(sampling, seed=seed)

    def _admit(self, job: Job, *, hand_back: bool) -> bool:
        """Hold what a turn may cost; shorten it to what is left where it is the last one."""
        if isinstance(job.member, Team):
            return self._refused is None
        need = self._need(job)
        if hand_back:
            return self._shorten(job)
        if self._refused is None:
            try:
                job.reservation = job.budget.reserve(need)
            except BudgetExhausted:
                if job.budget is not self._budget and _covers(self._budget.remaining(), need):
                    self._out.add(job.turn.member)
                    return self._shorten(job)
                self._refused = job.turn
        return self._refused is None

    def _need(self, job: Job) -> int:
        """Tokens a turn may cost at most; 0 where nothing counts them."""
        if not isinstance(job.model, str) or job.budget.remaining().tokens is None:
            return 0
        engine = self._context.engines[job.model]
        return engine.count_tokens(job.prompt) + job.sampling.max_tokens

    def _shorten(self, job: Job) -> bool:
        """Make a turn the member's last, as long as what is left allows; false for nothing."""
        job.hand_back = True
        job.turn = Turn(job.turn.member)
        job.prompt = handing_back(job.prompt)
        left = job.budget.remaining()
        if left.tokens is not None and isinstance(job.model, str):
            prompt = self._context.engines[job.model].count_tokens(job.prompt)
            longest = min(job.sampling.max_tokens, left.tokens - prompt)
            if longest < 1:
                return False
            job.sampling = replace(job.sampling, max_tokens=longest)
        try:
            job.reservation = job.budget.reserve(self._need(job))
        except BudgetExhausted:
            return False
        return True

    def _check(self, jobs: Sequence[Job], *, last_chance: bool) -> None:
        """Raise :class:`Aborted` where the policy or the silence of all asks for it."""
        failed = [job for job in jobs if job.recorded is None and job.answer.error is not None]
        if not failed:
            self._answered = True
            return
        first = f"{failed[0].path}: {failed[0].answer.error}"
        if self._policy.then == "abort":
            raise Aborted(first)
        if any(
            job.recorded is None or job.recorded.finish != "error"
            for job in jobs
            if job not in failed
        ):
            self._answered = True
        elif all(job.answer.engine_down for job in failed):
            raise Aborted(first)
        if last_chance and not self._answered:
            raise Aborted(f"nobody answered in round {self.state.rounds + 1}; {first}")

    def _log(self, job: Job) -> Step:
        """Write a turn to the log (or take the one that is there), and book what it cost."""
        context = self._context
        step = job.recorded
        if step is None:
            step = _step(job)
            context.log.append_step(step)
        elif job.reservation is not None and int(step.data.get("attempts", 1)) > 1:
            job.budget.spend(0, calls=int(step.data["attempts"]) - 1)
        if job.reservation is not None:
            job.reservation.settle(step.usage.asked_tokens)
        if step.finish == "error":
            self._failed.append(
                f"{job.path} failed in superstep {job.superstep + 1}: {step.data.get('error')}"
            )
        elif step.finish == "budget":
            self._out.add(job.turn.member)
        self.state.record(job.turn.member, step)
        context.steps.append(step)
        if context.emit is not None:
            context.emit(TurnEnded(step, recorded=job.recorded is not None))
        return step

    async def _nested(self, job: Job) -> Answer:
        """A member that is a team: its task is what the member would have been told."""
        assert isinstance(job.member, Team)
        run = TeamRun(
            self._context,
            job.member,
            job.prompt[-1].content,
            self._material,
            budget=self._budget.child(job.member.limits, job.path),
            scope=f"{self._scope}{job.superstep}/{job.turn.member}/",
            path=f"{job.path}/",
        )
        try:
            ending = await run.run()
        except Aborted as stopped:
            return Answer(error=str(stopped))
        if ending.result is None:
            return Answer(error=f"found no result ({ending.why})")
        spent = ending.outcome == "budget_exhausted"
        return Answer(ending.result, "budget" if spent else "stop")


def _step(job: Job) -> Step:
    answer = job.answer
    failed = answer.error is not None
    return Step(
        key=job.key,
        member=job.path,
        superstep=job.superstep,
        prompt=job.prompt,
        output="" if failed else answer.text,
        seen=job.seen,
        finish="error" if failed else "budget" if job.hand_back else answer.finish,
        tool_calls=answer.tool_calls,
        data=job.data,
        usage=answer.usage,
        seed=job.sampling.seed,
        how=answer.how,
    )


def _covers(left: Limits, tokens: int) -> bool:
    return (
        (left.tokens is None or left.tokens >= tokens)
        and (left.calls is None or left.calls >= 1)
        and (left.seconds is None or left.seconds > 0)
    )
