"""Rewires: how a team changes while it works. Each is a pure function of what has happened.

After a round the rule may let members leave or join, or give them other roles; the change is
logged and follows again from the log. Dynamic teams: DyLAN's deactivation of weak agents,
AgentVerse's recruitment (collaboration survey, arXiv 2501.06322, coordination: dynamic).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from shoal.agents.rules import Call, Member, Members, Names, Registry, parse
from shoal.agents.turns import Turn
from shoal.agents.votes import ballot, tally
from shoal.core import rng

if TYPE_CHECKING:
    from shoal.agents.state import State
    from shoal.agents.team import Team


@dataclass(frozen=True, slots=True)
class Change:
    """Who leaves, who joins, who gets which role, and why; nothing is a change too."""

    leave: tuple[str, ...] = ()
    join: tuple[str, ...] = ()
    roles: Mapping[str, str] = field(default_factory=dict)
    why: str = ""

    def __bool__(self) -> bool:
        return bool(self.leave or self.join or self.roles)


NO_CHANGE = Change()

Rewire = Callable[["State"], Change | tuple[Turn, ...]]
"""Asked after each round; it may first want choices made (turns taken at once) and is then asked
again."""

rewires: Registry[Rewire] = Registry("rewire", "shoal.rewires")

Credit = Callable[["State"], Mapping[str, float]]

credits_: Registry[Credit] = Registry("credit", "shoal.credits")
"""How much each member who takes part has added so far."""

Recruiter = Callable[["State", tuple[str, ...]], tuple[str, ...]]

recruiters: Registry[Recruiter] = Registry("recruit", "shoal.recruiters")
"""Who of those on the bench should join now."""


@rewires.register("none")
def none() -> Rewire:
    """The team stays as it is."""
    return lambda state: NO_CHANGE


@credits_.register("agreement")
def agreement() -> Credit:
    """In how many rounds a member answered as most did (ties count for all that are tied)."""

    def credit(state: State) -> Mapping[str, float]:
        counts = dict.fromkeys(state.names, 0.0)
        rounds: dict[int, dict[str, str]] = {}
        for name in state.names:
            for step in state.said[name]:
                rounds.setdefault(step.superstep, {})[name] = ballot(step.output)
        for answers in rounds.values():
            votes = tally(answers.values())
            most = max(votes.values())
            for name, answer in answers.items():
                counts[name] += votes[answer] == most
        return counts

    return credit


@credits_.register("brevity")
def brevity() -> Credit:
    """Minus the tokens that a member has cost."""
    return lambda state: {
        name: -float(sum(step.usage.asked_tokens for step in state.said[name]))
        for name in state.names
    }


@rewires.register("prune")
def prune(
    keep: Annotated[int, Field(ge=1)],
    by: str = "agreement",
    but: Members = (),
    after: Annotated[int, Field(ge=1)] = 1,
) -> Rewire:
    """After round ``after`` only the ``keep`` members with most credit go on, ``but`` these.

    Of equal credit the first declared stay.
    """
    credit = credits_.make(by)

    def rule(state: State) -> Change:
        names = state.names_except(but)
        if state.rounds < after or len(names) <= keep:
            return NO_CHANGE
        worth = credit(state)
        order = sorted(names, key=lambda name: -worth.get(name, 0.0))
        return Change(leave=tuple(sorted(order[keep:])), why=f"kept {keep} by {by}")

    return rule


@rewires.register("recruit")
def recruit(by: str, bench: Members, most: Annotated[int, Field(ge=1)] = 1) -> Rewire:
    """Members on the ``bench`` take no part until ``by`` (a recruiter) asks for them.

    At most ``most`` join after a round.
    """
    recruiter = recruiters.make(by)

    def rule(state: State) -> Change:
        waiting = tuple(
            name
            for name in state.everyone
            if state.member[name].name in bench and name not in state.active
        )
        joined = recruiter(state, waiting)[:most] if waiting else ()
        return Change(join=joined, why=f"recruited by {by}") if joined else NO_CHANGE

    return rule


@recruiters.register("next")
def next_() -> Recruiter:
    """The first that is left."""
    return lambda state, bench: bench[:1]


@recruiters.register("disagreement")
def disagreement() -> Recruiter:
    """The first that is left, as long as the members' last answers differ."""

    def recruiter(state: State, bench: tuple[str, ...]) -> tuple[str, ...]:
        votes = tally(ballot(step.output) for step in state.proposals())
        return bench[:1] if len(votes) > 1 else ()

    return recruiter


@rewires.register("promote")
def promote(role: str, by: str = "agreement", but: Members = ()) -> Rewire:
    """Who has most credit gets this role, the one who had it its own again."""
    credit = credits_.make(by)

    def rule(state: State) -> Change:
        worth = credit(state)
        names = state.names_except(but)
        best = max(names, key=lambda name: worth.get(name, 0.0))
        held = [name for name, given in state.roles.items() if given == role]
        if held == [best]:
            return NO_CHANGE
        own = {name: _own_role(state, name) for name in held}
        return Change(roles=own | {best: role}, why=f"promoted by {by}")

    return rule


@rewires.register("assign_roles")
def assign_roles(by: Member, roles: Names, after: Annotated[int, Field(ge=1)] = 1) -> Rewire:
    """After round ``after`` a member chooses each other's role, held to these."""

    def rule(state: State) -> Change | tuple[Turn, ...]:
        others = state.names_except((by,))
        if state.rounds != after:
            return NO_CHANGE
        made = [step for step in state.choices_of(by) if step.superstep == state.superstep - 1]
        chosen = [str(step.data["choice"]) for step in made]
        if len(chosen) == len(others) and set(chosen) <= set(roles):
            return Change(roles=dict(zip(others, chosen, strict=True)), why=f"assigned by {by}")
        return tuple(Turn(by, roles, f"Which role should {name} have?") for name in others)

    return rule


@rewires.register("dropout")
def dropout(p: Annotated[float, Field(ge=0, lt=1)], but: Members = ()) -> Rewire:
    """Each member sits out the next round with probability ``p``; never all of them.

    Draws follow from the run's seed, the round and the member's name.
    """

    def rule(state: State) -> Change:
        names = tuple(n for n in state.everyone if state.member[n].name not in but)
        draws = {name: rng.uniform(state.seed, "dropout", state.rounds, name) for name in names}
        out = {name for name in names if draws[name] < p}
        if len(out) == len(names):
            out.discard(max(names, key=lambda name: draws[name]))
        leave = tuple(name for name in names if name in out and name in state.active)
        join = tuple(name for name in names if name not in out and name not in state.active)
        return Change(leave, join, why=f"dropout({p:g})")

    return rule


def benched(team: Team) -> tuple[str, ...]:
    """The members that take no part at the start: those a recruiting rule names as its bench."""
    rule = team.protocol.rewire
    if not isinstance(rule, str | Call):
        return ()
    call = parse(rule) if isinstance(rule, str) else rule
    return rewires.members_of(call) if call.name == "recruit" else ()


def _own_role(state: State, name: str) -> str:
    return str(getattr(state.member[name], "role", ""))
