"""Reducers: how the members' last words become one result.

A reducer returns the result; or the turn of a member whose answer is the result; or turns to be
taken at once before it is asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from shoal.agents.rules import Member, Names, Registry
from shoal.agents.turns import Turn
from shoal.agents.votes import ballot, tally
from shoal.core import rng

if TYPE_CHECKING:
    from shoal.agents.state import State


@dataclass(frozen=True, slots=True)
class Reduction:
    """A result (None: the rule found none) and how it came about, which is logged."""

    result: str | None
    data: Mapping[str, Any] = field(default_factory=dict)


Reducer = Callable[["State"], Reduction | Turn | tuple[Turn, ...]]

reducers: Registry[Reducer] = Registry("reduce")


@reducers.register("last")
def last() -> Reducer:
    """The last word spoken (the last in order of name where several spoke at once)."""

    def reduce(state: State) -> Reduction:
        proposals = state.proposals()
        return Reduction(proposals[-1].output if proposals else None)

    return reduce


@reducers.register("concat")
def concat() -> Reducer:
    """All members' last words, in the order they were declared, under their names."""

    def reduce(state: State) -> Reduction:
        texts = [f"{name}: {step.output}" for name in state.names if (step := state.last(name))]
        return Reduction("\n\n".join(texts) if texts else None)

    return reduce


@reducers.register("vote")
def vote(method: Literal["plurality", "majority"] = "plurality", choices: Names = ()) -> Reducer:
    """The answer most members gave; a tie is broken by the run's seed, and the log says so.

    Their last words are the votes; with ``choices`` each casts a ballot that is held to them.
    ``majority`` asks for more than half of the votes and finds no result without.
    """

    def reduce(state: State) -> Reduction | tuple[Turn, ...]:
        if not choices:
            said = {ballot(step.output): step.output for step in reversed(state.proposals())}
            return _elected(state, tally(map(ballot, _outputs(state))), said, method)
        cast = [state.choice_of(name, at=state.superstep - 1) for name in state.names]
        votes = [choice for choice in cast if choice in choices]
        if not votes:
            voters = (name for name in state.names if name in state.speakers - state.out)
            return tuple(Turn(name, choices, "How do you vote?") for name in voters)
        return _elected(state, tally(votes), {choice: choice for choice in choices}, method)

    return reduce


def _outputs(state: State) -> list[str]:
    return [step.output for step in state.proposals()]


def _elected(
    state: State, votes: Mapping[str, int], answers: Mapping[str, str], method: str
) -> Reduction:
    if not votes:
        return Reduction(None)
    most = max(votes.values())
    tied = sorted(vote for vote, count in votes.items() if count == most)
    data: dict[str, Any] = {"votes": votes}
    if method == "majority" and 2 * most <= sum(votes.values()):
        return Reduction(None, data)
    winner = tied[0]
    if len(tied) > 1:
        winner = tied[int(rng.uniform(state.seed, "vote", *tied) * len(tied))]
        data["tie"] = {"between": tied, "drawn": winner}
    return Reduction(answers[winner], data)


@reducers.register("judge")
def judge(member: Member) -> Reducer:
    """A member reads all last words and answers; its answer is the result."""
    return lambda state: Turn(member)
