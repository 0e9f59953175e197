"""A group answers in a fixed order, and everyone is rewarded by what the whole of it contributed.

"Everyone Contributes!" (arXiv 2508.02076): each sees what those before it said, the last word is
the group's answer, and the reward of :mod:`shoal.mechanisms.goods.contribution_game` makes
contributing the only equilibrium among agents that weigh it. Reports are texts, scored by an
evaluator after the round, or the contributions themselves. Rewards are utilities, which nobody is
paid.

It departs from the paper in what happens to an empty text, which scores the least possible, and to
an agent that says nothing, or only after one behind it: the next ones see a gap, and its share
goes to nobody.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from shoal.core.errors import ConfigError
from shoal.mechanisms.goods.alignment import conditions
from shoal.mechanisms.goods.contribution_game import ROUNDING, Game
from shoal.mechanisms.goods.subgame_perfect import Equilibrium, grid_of, sequential, simultaneous
from shoal.mechanisms.protocol import (
    Audit,
    Counterexample,
    Decision,
    Opening,
    Report,
    ReportError,
)

Observe = Literal["none", "last", "all"]
"""Whose contributions an agent sees: nobody's, the one before it, everyone's before it."""

ASSUMES = (
    "A contribution is a number that its agent chooses, at a cost the game knows.",
    "Everybody knows the constants, sees all contributions before its own, and reasons back from "
    "the end.",
    "The evaluator's scores are the contributions: nobody can fool it.",
    "A language model chooses words, not its score, and reasons as it was trained to: the "
    "equilibrium says what would serve it, not what it does.",
)

REACHES_BAR, NO_FREE_RIDING, ONE_EQUILIBRIUM = (
    "the bar is reached",
    "nobody rides free",
    "one equilibrium",
)


@dataclass(frozen=True)
class PublicGoods:
    """A round in which agents contribute in the order of the opening; nothing is paid.

    The outcome is the last contribution. Utilities are the rewards R_i of those who contributed.
    Raises :class:`ConfigError` for an ``observe`` that there is not.
    """

    game: Game = field(default_factory=Game)
    observe: Observe = "all"
    most_paid: float = field(default=0.0, init=False)
    assumes: tuple[str, ...] = field(default=ASSUMES, init=False)

    def __post_init__(self) -> None:
        if self.observe not in get_args(Observe):
            known = ", ".join(get_args(Observe))
            raise ConfigError(f"Agents observe one of {known}, not {self.observe!r}.")

    @property
    def name(self) -> str:
        game, cost = self.game, self.game.cost
        return (
            f"public_goods(n={game.agents}, gamma={game.gamma:g}, rho={game.rho:g}, "
            f"penalty={game.penalty:g}, bar={game.bar:g}, cost={cost.linear:g}c+"
            f"{cost.quadratic:g}c^2, [{game.low:g}, {game.high:g}], observe={self.observe})"
        )

    @property
    def guarantees(self) -> frozenset[str]:
        """What is proved of the constants, where everyone sees all contributions before its own."""
        if not _sees_all(self.observe, self.game.agents):
            return frozenset()
        filling, _, no_room = conditions(self.game)
        promises = {REACHES_BAR: filling.holds, NO_FREE_RIDING: no_room.holds}
        return frozenset(promise for promise, holds in promises.items() if holds)

    def message(self, opening: Opening, agent: str, earlier: Sequence[Report]) -> dict[str, Any]:
        """Where the agent stands, and the contributions before it that it may see, in order.

        ``contribution`` is None where somebody before it has not spoken. Raises
        :class:`ConfigError` for a round that is not the game's: as many agents, all equal.
        """
        self._fits(opening)
        position = opening.agents.index(agent)
        first = {"none": position, "last": max(0, position - 1), "all": 0}[self.observe]
        said = {report.agent: report.value for report in _in_time(opening, earlier)}
        return {
            "position": position + 1,
            "of": len(opening.agents),
            "earlier": [
                {"agent": one, "contribution": said.get(one)}
                for one in opening.agents[first:position]
            ],
        }

    def check(self, opening: Opening, agent: str, value: Any) -> str | float:
        """A text, to be scored when the round is settled, or a number in [low, high]."""
        if isinstance(value, str):
            return value
        return self._contribution(agent, value, "contributes")

    def settle(self, opening: Opening, reports: Sequence[Report], observed: Any = None) -> Decision:
        """The last contribution, and everyone's reward.

        ``observed`` maps agents to the scores of their texts, or to ``{"score": …, "effort": …}``
        where the effort, a share of what it might have spent, costs instead of the score. Raises
        :class:`ReportError` where nobody contributed, a text has no score in [low, high] (without
        it no reward is known), or efforts are known of some only.
        """
        self._fits(opening)
        in_time = _in_time(opening, reports)
        if not in_time:
            raise ReportError("Nobody has contributed, so there is no answer and no reward.")
        agents = [report.agent for report in in_time]
        c = [self._scored(report, observed or {}) for report in in_time]
        efforts = _efforts(in_time, observed or {})
        rewards = self.game.rewards(c, efforts).tolist()
        total = math.fsum(c)
        return Decision(
            in_time[-1].value,
            utilities=dict(zip(agents, rewards, strict=True)),
            how="the last contribution; rewards exact",
            details={
                "contributions": dict(zip(agents, c, strict=True)),
                "efforts": dict(zip(agents, efforts or (), strict=efforts is not None)),
                "synergies": dict(zip(agents, self.game.synergies(c).tolist(), strict=True)),
                "total": total,
                "reaches_bar": bool(self.game.reaches_bar(total)),
                "welfare": math.fsum(rewards),
                "free_riders": [
                    agent for agent, one in zip(agents, c, strict=True) if self.game.rides_free(one)
                ],
                "empty": [report.agent for report in in_time if _is_empty(report.value)],
                "late": [report.agent for report in reports if report.agent not in agents],
            },
        )

    def audit(self, agents: int) -> Audit:
        """Solve the game for that many agents on a grid: every profile is tried.

        Shortfalls are in units of contribution, and in welfare where equilibria are several.
        Raises :class:`ConfigError` where agents see only the last contribution of several: that
        game has no subgames to solve from the end.
        """
        game = replace(self.game, agents=agents)
        if _sees_all(self.observe, agents):
            equilibria = sequential(game)
        elif self.observe == "none":
            equilibria = simultaneous(game)
        else:
            raise ConfigError(
                "Games in which agents see the last contribution only are not solved here: audit "
                "those with observe 'all' or 'none'."
            )
        profiles = len(grid_of(game)) ** agents
        promises = (REACHES_BAR, NO_FREE_RIDING, ONE_EQUILIBRIUM)
        found = tuple(_broken(game, equilibria))
        return Audit(self.name, dict.fromkeys(promises, profiles), found, exhaustive=True)

    def _fits(self, opening: Opening) -> None:
        if len(opening.agents) != self.game.agents:
            raise ConfigError(
                f"The game is for {self.game.agents} agents, but {len(opening.agents)} take part."
            )
        if any(opening.weight(agent) != 1 for agent in opening.agents):
            raise ConfigError("A public good is shared equally: leave out the weights.")

    def _scored(self, report: Report, scores: Mapping[str, Any]) -> float:
        if _is_empty(report.value):
            return self.game.low
        if not isinstance(report.value, str):
            return float(report.value)
        score = scores.get(report.agent)
        if isinstance(score, Mapping):
            score = score.get("score")
        return self._contribution(report.agent, score, "is scored")

    def _contribution(self, agent: str, value: Any, verb: str) -> float:
        low, high = self.game.low, self.game.high
        known = isinstance(value, int | float) and not isinstance(value, bool)
        if not (known and low - ROUNDING <= value <= high + ROUNDING):
            raise ReportError(
                f"{agent!r} {verb} {value!r}, which is not a number within [{low:g}, {high:g}]."
            )
        return float(value)


def _sees_all(observe: Observe, agents: int) -> bool:
    return observe == "all" or (observe == "last" and agents == 2)


def _is_empty(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()


def _efforts(reports: Sequence[Report], observed: Mapping[str, Any]) -> list[float] | None:
    """What each spent, or None where nothing is known of that."""
    given = [observed.get(report.agent) for report in reports]
    spent = [one.get("effort") if isinstance(one, Mapping) else None for one in given]
    if not any(one is not None for one in spent):
        return None
    found = []
    for report, one in zip(reports, spent, strict=True):
        known = isinstance(one, int | float) and not isinstance(one, bool)
        if not known or not 0 <= (effort := float(one or 0)) <= 1 + ROUNDING:
            raise ReportError(f"The effort of {report.agent!r} is {one!r}, no number in [0, 1].")
        found.append(effort)
    return found


def _in_time(opening: Opening, reports: Sequence[Report]) -> list[Report]:
    """Reports in order, without those that came after one of an agent further back."""
    in_time: list[Report] = []
    for report in reports:
        place = opening.agents.index
        if not in_time or place(report.agent) > place(in_time[-1].agent):
            in_time.append(report)
    return in_time


def _broken(game: Game, equilibria: Sequence[Equilibrium]) -> list[Counterexample]:
    def found(promise: str, shortfall: float, one: Equilibrium, sentence: str) -> Counterexample:
        c = list(one.contributions)
        place = ", ".join(f"{each:.4g}" for each in c)
        case = {"contributions": c, "rewards": list(one.rewards)}
        return Counterexample(promise, shortfall, f"In the equilibrium ({place}) {sentence}", case)

    broken = []
    least = min(equilibria, key=lambda one: one.total, default=None)
    if least is not None and not least.reaches_bar:
        short = game.bar - least.total
        broken.append(found(REACHES_BAR, short, least, f"the bar is missed by {short:.4g}."))
    riding = next((one for one in equilibria if one.free_riders), None)
    if riding is not None:
        i = riding.free_riders[0]
        c = riding.contributions[i]
        sentence = f"agent {i + 1} contributes {c:.4g}."
        broken.append(found(NO_FREE_RIDING, game.high - c, riding, sentence))
    if len(equilibria) > 1:
        worst = min(equilibria, key=lambda one: one.welfare)
        lost = max(one.welfare for one in equilibria) - worst.welfare
        sentence = f"the group has {lost:.4g} less than in the best of {len(equilibria)}."
        broken.append(found(ONE_EQUILIBRIUM, lost, worst, sentence))
    return broken
