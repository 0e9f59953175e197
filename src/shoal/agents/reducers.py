"""Reducers: how the members' last words become one result.

A reducer returns the result, or the turn of a member whose answer is the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from shoal.agents.rules import Member, Registry
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


Reducer = Callable[["State"], Reduction | Turn]

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
def vote(method: Literal["plurality", "majority"] = "plurality") -> Reducer:
    """The answer most members gave; a tie is broken by the run's seed, and the log says so.

    ``majority`` asks for more than half of the votes and finds no result without.
    """

    def reduce(state: State) -> Reduction:
        proposals = state.proposals()
        votes = tally(proposals)
        if not votes:
            return Reduction(None)
        most = max(votes.values())
        tied = sorted(answer for answer, count in votes.items() if count == most)
        data: dict[str, Any] = {"votes": votes}
        if method == "majority" and 2 * most <= len(proposals):
            return Reduction(None, data)
        winner = tied[0]
        if len(tied) > 1:
            winner = tied[int(rng.uniform(state.seed, "vote", *tied) * len(tied))]
            data["tie"] = {"between": tied, "drawn": winner}
        return Reduction(
            next(step.output for step in proposals if ballot(step.output) == winner), data
        )

    return reduce


@reducers.register("judge")
def judge(member: Member) -> Reducer:
    """A member reads all last words and answers; its answer is the result."""
    return lambda state: Turn(member)
