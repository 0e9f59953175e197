"""Payoffs: what a result is worth to whom. Cooperation, competition and what lies between.

A payoff tells members what they play for (in their prompts) and computes each one's share when
the work is over; shares are logged and read by credit and training. Collaboration survey (arXiv
2501.06322): cooperation shares one worth, competition is zero-sum, coopetition mixes both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from shoal.agents.payloads import json_in
from shoal.agents.rules import NOBODY, Member, Registry, Rule, Shares
from shoal.agents.votes import ballot

if TYPE_CHECKING:
    from shoal.agents.state import State

Share = Callable[["State", str | None], Mapping[str, float]]
"""Each member's share, given what has happened and the result."""


@dataclass(frozen=True, slots=True)
class Payoff:
    """What members are told, and how shares are computed; without a ``share`` nothing is."""

    told: str = ""
    share: Share | None = None


payoffs: Registry[Payoff] = Registry("payoff", "shoal.payoffs")

Worth = Callable[[str], float]

worths: Registry[Worth] = Registry("worth", "shoal.worths")
"""What a text is worth by itself."""

_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


@worths.register("right")
def right(answer: str) -> Worth:
    """1 for this answer, else 0."""
    return lambda text: float(ballot(text) == ballot(answer))


@worths.register("number")
def number() -> Worth:
    """The last number in what the text answers, 0 where there is none."""

    def worth(text: str) -> float:
        found = _NUMBER.findall(ballot(text).replace(",", ""))
        return float(found[-1]) if found else 0.0

    return worth


@payoffs.register("none")
def none() -> Payoff:
    """Nothing is computed, and members are told nothing."""
    return Payoff()


@payoffs.register("shared")
def shared(worth: Rule = "number") -> Payoff:
    """Everybody gets what the result is worth."""
    of = worths.make(worth)

    def share(state: State, result: str | None) -> Mapping[str, float]:
        return dict.fromkeys(state.names, of(result) if result is not None else 0.0)

    return Payoff("All of you gain what the common result is worth.", share)


@payoffs.register("individual")
def individual(worth: Rule = "number", scale: Shares = NOBODY) -> Payoff:  # type: ignore[assignment]
    """Everybody gets what its own last answer is worth, times its ``scale`` (else 1)."""
    of = worths.make(worth)

    def share(state: State, result: str | None) -> Mapping[str, float]:
        return {name: _own(state, name, of) * scale.get(name, 1.0) for name in state.names}

    return Payoff("You gain what your own answer is worth.", share)


@payoffs.register("zero_sum")
def zero_sum(worth: Rule = "number") -> Payoff:
    """Everybody gets what its own last answer is worth above the mean of all."""
    of = worths.make(worth)

    def share(state: State, result: str | None) -> Mapping[str, float]:
        own = {name: _own(state, name, of) for name in state.names}
        mean = sum(own.values()) / len(own)
        return {name: value - mean for name, value in own.items()}

    return Payoff("What you gain the others lose: your answer must be better than theirs.", share)


@payoffs.register("mixed")
def mixed(alpha: Annotated[float, Field(ge=0, le=1)] = 0.5, worth: Rule = "number") -> Payoff:
    """``alpha`` of what the result is worth, and the rest of what its own answer is worth."""
    common, own = shared(worth).share, individual(worth).share
    assert common is not None
    assert own is not None

    def share(state: State, result: str | None) -> Mapping[str, float]:
        ours, mine = common(state, result), own(state, result)
        return {name: alpha * ours[name] + (1 - alpha) * mine[name] for name in state.names}

    told = f"You gain {alpha:.0%} of the common result's worth and {1 - alpha:.0%} of your own's."
    return Payoff(told, share)


@payoffs.register("scored")
def scored(by: Member) -> Payoff:
    """Shares are the numbers by name in the last JSON object that a member (a referee) said."""

    def share(state: State, result: str | None) -> Mapping[str, float]:
        said = state.last(by)
        found = json_in(said.output) if said is not None else {}
        return {
            name: float(value)
            for name in state.names
            if isinstance(value := found.get(name), int | float)
        }

    return Payoff(f"{by} keeps the score.", share)


def _own(state: State, name: str, worth: Worth) -> float:
    step = state.last(name)
    return worth(step.output) if step is not None else 0.0
