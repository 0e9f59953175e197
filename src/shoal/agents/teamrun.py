"""One team at work: superstep after superstep until it stops, then one result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.agents.answering import Answer, Job
from shoal.agents.material import Material
from shoal.agents.payloads import PLAIN, Heard
from shoal.agents.payoffs import payoffs
from shoal.agents.prompt import PromptWriter
from shoal.agents.reducers import Reduction, reducers
from shoal.agents.rewires import NO_CHANGE, Change, rewires
from shoal.agents.state import State
from shoal.agents.stops import stop_rules
from shoal.agents.superstep import Aborted, Context, SuperstepRunner
from shoal.agents.team import Agent, Team
from shoal.agents.turns import Turn, turn_rules
from shoal.core import rng
from shoal.core.budget import Budget
from shoal.core.records import Message, Step

Reduced = Reduction | Turn | tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a team's work ended; the outcomes are those of ``TeamResult``."""

    result: str | None
    outcome: str
    why: str


class TeamRun:
    """A team inside a run; ``scope`` is its place there ("" or ``2/panel/``), ``path`` its
    members' common name."""

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
        seed = rng.seed_of(context.seed, scope, "rules")
        self._state = State(team, parts=len(material.pieces), seed=seed)
        self._writer = PromptWriter(self._state, task, material, context.preamble)
        self._runner = SuperstepRunner(
            context, self._state, self._writer, budget, self._nested, scope=scope, path=path
        )
        self._context = context
        self._material = material
        self._scope = scope
        self._turn = turn_rules.make(team.protocol.turn)
        self._until = stop_rules.make(team.protocol.until)
        self._reduce = reducers.make(team.protocol.reduce)
        self._payoff = payoffs.make(team.protocol.payoff)
        self._rewire = (
            None if team.protocol.rewire == "none" else rewires.make(team.protocol.rewire)
        )
        self._state.stake = self._payoff.told
        self._budget = budget

    async def run(self) -> Ending:
        """Superstep after superstep until a rule says stop; raises :class:`Aborted`."""
        state, idle = self._state, 0
        while not (why := self._until(state)):
            plan = self._turn(state)
            if not plan.turns:
                why = plan.why
                break
            turns = [turn for turn in plan.turns if turn.member not in state.out]
            idle = 0 if turns else idle + 1
            if idle > len(state.names):
                why = "no member has budget left"
                break
            if turns:
                await self._runner.take(
                    turns, self._runner.inboxes(turns), last_chance=plan.ends_round
                )
            state.end_superstep(ends_round=plan.ends_round)
            if plan.ends_round:
                self._runner.answered = False
                await self._rewired()
            if self._runner.refused is not None:
                break
        return await self._finish(why or "the budget is used up")

    async def _rewired(self) -> None:
        """Let the rewire rule change the team; what it changed is logged."""
        if self._rewire is None or self._runner.refused is not None or self._until(self._state):
            return
        change = self._rewire(self._state)
        if isinstance(change, tuple):
            await self._runner.take(change, self._runner.inboxes(change))
            self._state.end_superstep(ends_round=False)
            again = self._rewire(self._state)
            change = again if isinstance(again, Change) else NO_CHANGE
            self._state.rewire(NO_CHANGE)
        if not change:
            return
        self._state.rewire(change)
        said = {"leave": list(change.leave), "join": list(change.join)}
        key = f"{self._context.run_id}/{self._scope}{self._state.superstep}/rewire"
        body = {"rewire": said | {"roles": dict(change.roles), "why": change.why}}
        self._context.log.append("note", body, key=key)

    async def _finish(self, why: str) -> Ending:
        reduced = self._reduce(self._state)
        if isinstance(reduced, tuple) and reduced and self._runner.refused is None:
            await self._runner.take(reduced, self._runner.inboxes(reduced))
            self._state.end_superstep(ends_round=False)
            reduced = self._reduce(self._state)
        reduction = reduced
        if isinstance(reduction, Turn) and self._runner.refused is None:
            reduction = await self._judged(reduction)
        if self._runner.refused is not None:
            reduction = await self._hand_back(self._runner.refused, reduced)
            why = "the budget is used up"
        if not isinstance(reduction, Reduction):
            reduction = self._last_words(self._state.proposals())
        if reduction.data:
            key = f"{self._context.run_id}/{self._scope}reduce"
            self._context.log.append("note", reduction.data, key=key)
        result = reduction.result.strip() if reduction.result is not None else None
        if self._payoff.share is not None:
            shares = dict(self._payoff.share(self._state, result))
            key = f"{self._context.run_id}/{self._scope}payoff"
            self._context.log.append("note", {"payoff": shares}, key=key)
        return Ending(result, self._outcome(result), self._because(why))

    def _outcome(self, result: str | None) -> str:
        if self._runner.refused is not None or self._state.out:
            return "budget_exhausted"
        if result is None:
            return "undecided"
        return "degraded" if self._runner.failed else "done"

    def _because(self, why: str) -> str:
        if not self._runner.failed:
            return why
        first, *others = self._runner.failed
        return f"{why}; {first}" + (f" (and {len(others)} more)" if others else "")

    async def _judged(self, turn: Turn) -> Reduction:
        """The judge's answer; notes that do not fit its context together are judged in levels."""
        notes = self._notes(turn)
        while True:
            batches = self._batches(turn, notes)
            steps = await self._runner.take([turn] * len(batches), batches)
            self._state.end_superstep(ends_round=False)
            answers = tuple(step for step in steps if step is not None and step.finish != "error")
            if len(batches) == 1 or not answers or self._runner.refused is not None:
                break
            notes = tuple(Heard(step, PLAIN) for step in answers)
        if answers:
            return Reduction(answers[-1].output)
        return self._last_words([one.step for one in notes])

    def _notes(self, turn: Turn) -> tuple[Heard, ...]:
        """What a judge reads: everybody's last word, also where no channel carries it."""
        carried = self._state.wiring.inbox(
            self._state.wiring.hears[turn.member], self._state.carried()
        )
        forms = {one.key: one for one in carried}
        return tuple(forms.get(step.key) or Heard(step, PLAIN) for step in self._state.proposals())

    def _last_words(self, notes: Sequence[Step]) -> Reduction:
        """What is left where nobody could judge; the log says so."""
        said_last = notes[-1].output if notes else None
        return Reduction(said_last, {"fallback": "last", "from": [step.key for step in notes]})

    def _batches(self, turn: Turn, notes: tuple[Heard, ...]) -> list[tuple[Heard, ...]]:
        member = self._state.member[turn.member]
        if not isinstance(member, Agent) or not isinstance(member.model, str):
            return [notes]
        engine = self._context.engines[member.model]
        context = engine.info.context_tokens
        if context is None or len(notes) < 2:
            return [notes]
        room = context - member.sampling.max_tokens
        if engine.count_tokens(self._writer.messages(turn, self._writer.common(notes), ())) <= room:
            return [notes]
        empty = engine.count_tokens(self._writer.messages(turn, self._writer.common(()), ()))
        batches: list[tuple[Heard, ...]] = []
        batch: tuple[Heard, ...] = ()
        filled = empty
        for note in notes:
            size = engine.count_tokens((Message("user", note.text),))
            if batch and filled + size > room:
                batches.append(batch)
                batch, filled = (), empty
            batch, filled = (*batch, note), filled + size
        batches.append(batch)
        return batches if len(batches) < len(notes) else [notes]

    async def _hand_back(self, refused: Turn, reduced: Reduced) -> Reduction:
        """The one turn that what is left of the budget still allows, then the last words.

        It is the judge's where there is one, else that of the first member who was refused.
        """
        notes = self._state.proposals()
        if isinstance(reduced, Turn):
            steps = await self._runner.take([reduced], [self._notes(reduced)], hand_back=True)
            if steps[0] is not None and steps[0].finish != "error":
                return Reduction(steps[0].output)
        else:
            turn = Turn(refused.member)
            await self._runner.take([turn], self._runner.inboxes([turn]), hand_back=True)
            again = self._reduce(self._state)
            if isinstance(again, Reduction):
                return again
        return self._last_words(notes)

    async def _nested(self, job: Job) -> Answer:
        """A member that is a team: its task is what the member would have been told.

        What its turns cost is booked as they are taken; their sum is kept with this one.
        """
        assert isinstance(job.member, Team)
        budget = self._budget.child(job.member.limits, job.path)
        run = TeamRun(
            self._context,
            job.member,
            job.prompt[-1].content,
            self._material,
            budget=budget,
            scope=f"{self._scope}{job.superstep}/{job.turn.member}/",
            path=f"{job.path}/",
        )
        try:
            ending = await run.run()
        except Aborted as stopped:
            return Answer(error=str(stopped), engine_down=stopped.engine_down)
        finally:
            job.data["inside"] = {"tokens": budget.used_tokens, "calls": budget.used_calls}
        if ending.outcome == "budget_exhausted":
            return Answer(ending.result or "", "budget")
        if ending.result is None:
            return Answer(error=f"found no result ({ending.why})")
        return Answer(ending.result)
