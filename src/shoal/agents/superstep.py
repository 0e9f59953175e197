"""One superstep: what each member hears, what it may cost, one call per engine, the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from shoal.agents.answering import Desk, Job, Nested, model_of
from shoal.agents.events import OnEvent, SuperstepEnded, SuperstepStarted, TurnEnded
from shoal.agents.failures import failure_policies
from shoal.agents.outside import Outside
from shoal.agents.payloads import Heard
from shoal.agents.prompt import PromptWriter, handing_back, split_common
from shoal.agents.state import State
from shoal.agents.strategies import held
from shoal.agents.team import Agent, Team
from shoal.agents.turns import Turn
from shoal.agents.world import World
from shoal.core import rng
from shoal.core.budget import Budget, Limits
from shoal.core.errors import BudgetExhausted
from shoal.core.log import EventLog
from shoal.core.protocols import Engine, Sampling
from shoal.core.records import Step


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
    outside: Outside = field(default_factory=Outside)
    steps: list[Step] = field(default_factory=list)


class Aborted(Exception):
    """The run stops where it is; its log can be resumed."""

    def __init__(self, why: str, *, engine_down: bool = False) -> None:
        super().__init__(why)
        self.engine_down = engine_down


class SuperstepRunner:
    """Takes the turns of one team's supersteps; ``scope`` is its place in the run.

    refused   the first turn the team's budget could not cover: the work is over
    failed    a sentence for each turn that failed and was passed over
    answered  whether anybody has answered in the round that is going on
    """

    def __init__(
        self,
        context: Context,
        state: State,
        writer: PromptWriter,
        budget: Budget,
        nested: Nested,
        *,
        scope: str,
        path: str,
    ) -> None:
        self.refused: Turn | None = None
        self.failed: list[str] = []
        self.answered = False
        self._context = context
        self._state = state
        self._writer = writer
        self._scope = scope
        self._path = path
        self._reuses = state.wiring.carries("kv")
        self._policy = failure_policies.make(state.team.protocol.on_failure)
        self._desk = Desk(
            context.engines, nested, context.emit, self._policy, context.log, context.outside
        )
        self._budget = budget
        self._budgets = {
            name: budget
            if isinstance(member, Team) or member.limits == Limits()
            else budget.child(member.limits, path + name)
            for name, member in state.member.items()
        }

    def inboxes(self, turns: Sequence[Turn]) -> list[tuple[Heard, ...]]:
        """What channels carry to each of these turns' members as the superstep begins."""
        state = self._state
        made: dict[tuple[int, ...], tuple[Heard, ...]] = {}
        for turn in turns:
            hears = state.wiring.hears[turn.member]
            if hears not in made:
                made[hears] = state.wiring.inbox(hears, state.carried())
        return [made[state.wiring.hears[turn.member]] for turn in turns]

    async def take(
        self,
        turns: Sequence[Turn],
        inboxes: Sequence[tuple[Heard, ...]],
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
            emit(SuperstepStarted(self._state.superstep, self._state.rounds, paths))
        try:
            admitted = [job for job in jobs if self._admit(job, hand_back=hand_back)]
            await self._answer(admitted)
            self._check(admitted, last_chance=last_chance)
            steps = {id(job): self._log(job) for job in admitted}
        finally:
            for job in jobs:
                if job.reservation is not None and job.reservation.open:
                    job.reservation.settle(0)
        if emit is not None:
            emit(SuperstepEnded(self._state.superstep, self._budget.remaining()))
        return [steps.get(id(job)) for job in jobs]

    async def _answer(self, jobs: Sequence[Job]) -> None:
        """Have all turns taken that the log does not hold; book those it holds.

        Members that are teams run beside the others, but after them and one after the other
        where all spend from one bounded budget: who gets the last of it is no matter of timing.
        """
        left = self._budget.remaining()
        bounded = left.tokens is not None or left.calls is not None
        now = [job for job in jobs if not (bounded and isinstance(job.member, Team))]
        later = [job for job in jobs if bounded and isinstance(job.member, Team)]
        for group in (now, *([job] for job in later)):
            for job in group:
                if job.recorded is not None:
                    self._recall(job, job.recorded)
            await self._desk.take([job for job in group if job.recorded is None])

    def _recall(self, job: Job, step: Step) -> None:
        """Book what a logged turn cost beside its reservation: retries, and turns inside it."""
        if job.reservation is not None:
            more = int(step.data.get("attempts", 1)) - 1 + int(step.data.get("requests", 1)) - 1
            job.budget.spend(0, calls=more)
        if isinstance(job.member, Team):
            inside = step.data["inside"]
            self._budget.spend(inside["tokens"], calls=inside["calls"])
            for key, inner in self._context.recorded.items():
                if key.startswith(f"{job.key}/"):
                    self._keep(inner, recorded=True)

    def _jobs(self, turns: Sequence[Turn], inboxes: Sequence[tuple[Heard, ...]]) -> list[Job]:
        """Jobs in order of name; several turns of one member keep the order they came in."""
        state, context = self._state, self._context
        heard, privates = split_common(inboxes)
        common = self._writer.common(heard)
        numbered = len(turns) > 1 and turns[0].member == turns[1].member
        keys: dict[int, tuple[str, ...]] = {}  # members that hear the same share one inbox
        for inbox in inboxes:
            if id(inbox) not in keys:
                keys[id(inbox)] = tuple(one.key for one in inbox)
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
                    seen=keys[id(inbox)],
                    sampling=self._sampling(turn, label),
                    budget=self._budgets[name],
                    recorded=context.recorded.get(key),
                    model=model_of(state.member[name]),
                )
            )
            if isinstance(jobs[-1].model, World):
                jobs[-1].heard = tuple((one.speaker, one.step.output) for one in inbox)
            if self._reuses:
                pieces = self._writer.pieces(turn, (*heard, *private))
                jobs[-1].pieces = pieces
                reusable = [piece.name for piece in pieces if piece.reusable]
                if reusable:
                    jobs[-1].data["reusable"] = reusable
        jobs.sort(key=lambda job: job.key)
        return jobs

    def _sampling(self, turn: Turn, label: str) -> Sampling:
        member = self._state.member[turn.member]
        sampling = member.sampling if isinstance(member, Agent) else Sampling()
        seed = rng.seed_of(self._context.seed, self._scope + label, self._state.superstep)
        if turn.choices:
            sampling = held(sampling, turn.choices)
        return replace(sampling, seed=seed)

    def _admit(self, job: Job, *, hand_back: bool) -> bool:
        """Hold what a turn may cost; shorten it to what is left where it is the last one."""
        if isinstance(job.member, Team):
            return self.refused is None and not hand_back
        before = job.recorded
        if hand_back or (before is not None and before.data.get("hand_back")):
            return self._shorten(job)
        need = self._need(job)
        if before is not None:
            job.reservation = job.budget.hold(need)
            return True
        if self.refused is None:
            try:
                job.reservation = job.budget.reserve(need)
            except BudgetExhausted:
                if job.budget is not self._budget and _covers(self._budget.remaining(), need):
                    self._state.out.add(job.turn.member)
                    return self._shorten(job)
                self.refused = job.turn
        return self.refused is None

    def _need(self, job: Job) -> int:
        """Tokens a turn may cost at most; 0 where nothing counts them."""
        if not isinstance(job.model, str) or job.budget.remaining().tokens is None:
            return 0
        engine = self._context.engines[job.model]
        return engine.count_tokens(job.prompt) + job.sampling.max_tokens

    def _shorten(self, job: Job) -> bool:
        """Make a turn the member's last, as long as what is left allows; false for nothing.

        The member is told so, unless what is left is too little even for that.
        """
        job.data["hand_back"] = True
        job.turn = Turn(job.turn.member)
        told = handing_back(job.prompt)
        left = job.budget.remaining().tokens
        if left is None or not isinstance(job.model, str):
            job.prompt = told
        else:
            count = self._context.engines[job.model].count_tokens
            if left > count(told):
                job.prompt = told
            longest = min(job.sampling.max_tokens, left - count(job.prompt))
            if longest < 1:
                return False
            job.sampling = replace(job.sampling, max_tokens=longest)
        hold = job.budget.reserve if job.recorded is None else job.budget.hold
        try:
            job.reservation = hold(self._need(job))
        except BudgetExhausted:
            return False
        return True

    def _check(self, jobs: Sequence[Job], *, last_chance: bool) -> None:
        """Raise :class:`Aborted` where the policy, a dead engine or general silence asks for it."""
        new = [job for job in jobs if job.recorded is None]
        failed = [job for job in new if job.answer.error is not None]
        if not failed:
            return
        first = f"{failed[0].path}: {failed[0].answer.error}"
        if self._policy.then == "abort":
            raise Aborted(first)
        if len(failed) == len(new) and all(job.answer.engine_down for job in failed):
            raise Aborted(first, engine_down=True)
        before = (job.recorded for job in jobs if job.recorded is not None)
        answered = self.answered or any(step.finish != "error" for step in before)
        if last_chance and not answered and len(failed) == len(new):
            raise Aborted(f"nobody answered in round {self._state.rounds + 1}; {first}")

    def _log(self, job: Job) -> Step:
        """Write a turn to the log (or take the one that is there), and book what it cost."""
        step = job.recorded
        if step is None:
            step = _step(job)
            self._context.log.append_step(step)
        if job.reservation is not None:
            job.reservation.settle(step.usage.asked_tokens)
        if step.finish == "error":
            self.failed.append(f"{job.path} failed: {step.data.get('error')}")
        else:
            self.answered = True
        self._state.record(job.turn.member, step)
        self._keep(step, recorded=job.recorded is not None)
        return step

    def _keep(self, step: Step, *, recorded: bool) -> None:
        self._context.steps.append(step)
        if self._context.emit is not None:
            self._context.emit(TurnEnded(step, recorded))


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
        finish="error" if failed else "budget" if job.data.get("hand_back") else answer.finish,
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
