"""Mechanisms by name in team files, offered through entry points.

reduce = {settle = "facility_location", rule = "median", low = 0, high = 100}
payoff = "public_goods"
rewire = {recruit = "hire(common-noise)", bench = ["ann", "bob"]}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from shoal.agents.payoffs import Payoff, worths
from shoal.agents.reducers import Reducer
from shoal.agents.rewires import Recruiter
from shoal.agents.rules import NOBODY, Rule, Shares
from shoal.core.errors import ConfigError
from shoal.mechanisms.goods.contribution_game import Game
from shoal.mechanisms.location.rules import find_rule
from shoal.mechanisms.location.teams import settle
from shoal.mechanisms.protocol import Opening

if TYPE_CHECKING:
    from shoal.agents.state import State


def settle_rule(
    mechanism: Literal["facility_location"] = "facility_location",
    rule: str = "uniform-phantom",
    low: float = 0.0,
    high: float = 1.0,
    weights: Shares = NOBODY,  # type: ignore[assignment]
) -> Reducer:
    """One number out of the last number in each member's last answer, by a strategyproof rule."""
    return settle(find_rule(rule), low=low, high=high, weights=weights)


def public_goods(
    gamma: float = 1.5,
    rho: float = 1.8,
    penalty: float = 1.5,
    bar: float | None = None,
    worth: Rule = "number",
) -> Payoff:
    """The rewards of a sequential public goods game among all who answered, in their order.

    A contribution is what a member's last answer is worth, brought into [0.1, 1]. The bar is
    0.85 a member where it is left out.
    """
    of = worths.make(worth)

    def share(state: State, result: str | None) -> Mapping[str, float]:
        proposals = state.proposals()
        n = len(state.names)
        if not proposals or n < 2:
            return {}
        game = Game(n, gamma, rho, penalty, 0.85 * n if bar is None else bar)
        given = [min(max(of(step.output), game.low), game.high) for step in proposals]
        rewards = game.rewards(given)
        names = [step.member.rpartition("/")[2] for step in proposals]
        return {name: float(reward) for name, reward in zip(names, rewards, strict=True)}

    told = (
        "You all share what every one of you contributes, and all lose where together you "
        "contribute too little; your own effort costs you."
    )
    return Payoff(told, share)


def hire(problem: str = "common-noise") -> Recruiter:
    """Those whom the best correlated contract of a hiring problem recommends to work.

    The problem is a packaged one with as many agents as sit on the bench, taken in order.
    """

    def recruiter(state: State, bench: tuple[str, ...]) -> tuple[str, ...]:
        from shoal.mechanisms.hiring.information_acquisition import (
            InformationAcquisition,
            solve_correlated,
        )
        from shoal.mechanisms.hiring.sheets import named_problem

        case = named_problem(problem)
        if state.rounds > 1:
            return ()  # who was not hired after the first round is not asked again
        if len(bench) != case.agents:
            raise ConfigError(
                f"The hiring problem {problem!r} is for {case.agents} agents, but "
                f"{len(bench)} sit on the bench: {', '.join(bench) or 'nobody'}."
            )
        contract = solve_correlated(case)
        opening = Opening(f"round-{state.rounds}", bench, seed=state.seed)
        efforts = InformationAcquisition(case, contract).recommendation(opening)
        return tuple(name for name, effort in zip(bench, efforts, strict=True) if effort)

    return recruiter
