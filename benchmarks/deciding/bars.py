"""A bar that agents can reach, and a cost of tokens and a share under which reaching it pays: found
on sums to learn from, before anything is learnt.

Six settings are measured, of each agent. A game is taken if, by its solver,

- in sequence there is one equilibrium, and nobody speaks briefly in it;
- all at once there is one, too, and nobody speaks briefly in any: policies that learn do not reason
  back from the end;
- it is a dilemma: without synergy and penalty all would speak briefly;
- the check of its constants passes, for contributions from the least to the best that was measured.

Of those it is the one in which speaking in full brings most, where that brings least: to each
agent, in equilibrium and where all are set as policies are before they learn.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from deciding.trio import LONGEST, RANGES, Room
from shoal.core.claims import Bench
from shoal.mechanisms.goods.alignment import check_game
from shoal.mechanisms.goods.contribution_game import Cost, Game
from shoal.mechanisms.goods.measured_game import Choice, MeasuredGame

SETTINGS = {
    "cautious, brief": (0, 0, 0, 0, 0, 0),
    "middle, brief": (0.5, 0.5, 0.5, 0, 0.5, 0.5),
    "cautious": (0, 0, 0, 1, 0, 0),
    "mild": (0.5, 0.5, 0.5, 1, 0, 0),
    "middle": (0.5, 0.5, 0.5, 0.5, 0.5, 0.5),
    "wild": (1, 1, 1, 1, 1, 1),
}
"""Outputs of a policy: temperature, top-p, top-k, token limit, repetition and presence penalty."""
BRIEF = {0, 1}
MIDDLE, MIDDLE_BRIEF = 4, 1
COSTS = tuple(round(0.05 * k, 2) for k in range(20, 5, -1))
"""Of LONGEST tokens, in units of reward; the published one is 1."""
SHARES = (1.8, 1.35, 0.9)
"""What one unit contributed yields for all; the published one is 1.8."""
BARS = tuple(round(0.05 * k, 2) for k in range(8, 52))


@dataclass(frozen=True, slots=True)
class Measured:
    """Scores and efforts [6, 3, B] of the settings, by agent and sum."""

    scores: np.ndarray
    efforts: np.ndarray

    def game(self, game: Game) -> MeasuredGame:
        """The game that agents play who choose among the settings."""
        return MeasuredGame(game, self.scores, self.efforts)

    def scalar(self, game: Game) -> Game | None:
        """The same constants for agents that choose any contribution between what was measured.

        None where such agents cannot reach the bar, or effort brings nothing.
        """
        scores, efforts = self.scores.mean(axis=(1, 2)), self.efforts.mean(axis=(1, 2))
        low, high = int(scores[list(BRIEF)].argmin()), int(scores.argmax())
        more, gained = efforts[high] - efforts[low], scores[high] - scores[low]
        if more <= 0 or gained <= 0 or game.bar > 3 * scores[high]:
            return None
        slope = more / gained
        cost = Cost(game.cost.linear * slope, game.cost.quadratic * slope)
        return replace(game, cost=cost, low=float(scores[low]), high=float(scores[high]))


async def measure(room: Room) -> Measured:
    """What each setting brings each agent on the room's sums, hearing nobody."""
    settings = [RANGES.sampling(outputs) for outputs in SETTINGS.values()]
    said = await asyncio.gather(
        *(room.say(one, i, limit=one.max_tokens) for one in settings for i in range(3))
    )
    scores = [
        await room.grade([(t, one.text or "") for t, one in zip(room.tasks, row, strict=True)])
        for row in said
    ]
    efforts = [[one.tokens / LONGEST for one in row] for row in said]
    shape = len(settings), 3, len(room.tasks)
    return Measured(np.reshape(scores, shape), np.reshape(efforts, shape))


def choose(bench: Bench, found: Measured) -> Game:
    """The game to be played; the published one where no other passes."""
    for k, name in enumerate(SETTINGS):
        bench.arm(
            f"measured setting: {name}",
            contribution=float(found.scores[k].mean()),
            right=float((found.scores[k] > 0.5).mean()),
            tokens=float(found.efforts[k].mean() * LONGEST),
        )
    margins = {
        game: margin
        for linear, rho, bar in product(COSTS, SHARES, BARS)
        if (margin := _margin(found, game := _game(linear, rho, bar))) is not None
    }
    chosen = max(margins, key=margins.__getitem__, default=Game())
    for name, game in (("published game", Game()), ("chosen game", chosen)):
        _foretell(bench, name, found, game)
    bench.arm(
        "games that were tried",
        tried=len(COSTS) * len(SHARES) * len(BARS),
        passed=len(margins),
        **({"least_gain_of_the_chosen": margins[chosen]} if margins else {}),
    )
    return chosen


def _game(linear: float, rho: float, bar: float) -> Game:
    return Game(rho=rho, bar=bar, cost=Cost(linear, 0.05 * linear))


def _margin(found: Measured, game: Game) -> float | None:
    """The least that speaking in full brings, or None where the game does not pass."""
    scalar = found.scalar(game)
    if scalar is None:
        return None
    played = found.game(game)
    outcomes, at_once = played.in_sequence(), played.at_once()
    if (
        len(outcomes) != 1
        or not at_once
        or _brief(outcomes[0])
        or any(map(_brief, at_once))
        or not all(_brief(one) == 3 for one in _plain(found, game).in_sequence())
        or not check_game(scalar).aligned
    ):
        return None
    middles = played.of(*[MIDDLE] * 3)
    gains = [_gain(played, outcomes[0], i, BRIEF) for i in range(3)]
    gains += [_gain(played, middles, i, {MIDDLE_BRIEF}) for i in range(3)]
    return min(gains)


def _plain(found: Measured, game: Game) -> MeasuredGame:
    return found.game(replace(game, gamma=0, penalty=0))


def _gain(played: MeasuredGame, one: Choice, i: int, instead: set[int]) -> float:
    """What agent ``i`` has more by its setting than by the best of others ``instead``."""
    others = [
        played.of(*(k if j == i else own for j, own in enumerate(one.settings))) for k in instead
    ]
    return one.rewards[i] - max(other.rewards[i] for other in others)


def _brief(one: Choice) -> int:
    """How many agents speak briefly."""
    return sum(k in BRIEF for k in one.settings)


def _foretell(bench: Bench, name: str, found: Measured, game: Game) -> None:
    """What the solver says of a game, before anything is learnt."""
    played, scalar = found.game(game), found.scalar(game)
    sequence, at_once = played.in_sequence(), played.at_once()
    best = played.of(*[int(found.scores.mean(axis=(1, 2)).argmax())] * 3)
    bench.arm(
        f"{name}, foretold",
        bar=game.bar,
        cost_of_50_tokens=game.cost.linear,
        share=game.rho,
        equilibria_in_sequence=len(sequence),
        brief_in_sequence=max(map(_brief, sequence)),
        equilibria_at_once=len(at_once),
        brief_at_once=max(map(_brief, at_once), default=0),
        brief_without_synergy_and_penalty=min(map(_brief, _plain(found, game).in_sequence())),
        bar_hit_at_best=best.bar_hit,
        check_passes=float(scalar is not None and check_game(scalar).aligned),
    )
