"""All pure equilibria of a contribution game on a grid, exact: in sequence, and at once.

Backward induction over sets (arXiv 2508.02076, Theorem 1): walking from the last agent to the
first, an outcome stays if its agent gets no less by it than the best of what every other
contribution leads to at worst. What stays at the end are the outcomes of all pure subgame-perfect
equilibria (SPNE), those that rest on how a later agent breaks a tie included.

Legend: n agents, m of them still to move, g grid points; arrays [g] * m hold all profiles.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shoal.core.errors import ConfigError
from shoal.mechanisms.goods.contribution_game import ROUNDING, Floats, Game

STEP = 0.05
MOST_PROFILES = 20_000_000  # 160 MB for the rewards of one agent


@dataclass(frozen=True, slots=True)
class Equilibrium:
    """The outcome of an equilibrium: contributions and rewards of all n agents, in order."""

    contributions: tuple[float, ...]
    rewards: tuple[float, ...]
    reaches_bar: bool
    free_riders: tuple[int, ...]

    @property
    def total(self) -> float:
        """What all contribute together."""
        return float(np.sum(self.contributions))

    @property
    def welfare(self) -> float:
        """The sum of all rewards."""
        return float(np.sum(self.rewards))


def grid_of(game: Game, step: float = STEP) -> Floats:
    """Contributions [g] from low to high in steps; raises :class:`ConfigError` if none fit.

    Steps that do not divide the interval are made a little smaller.
    """
    if not 0 < step <= game.high - game.low + ROUNDING:
        raise ConfigError(
            f"The step is {step}, but must be above 0 and at most {game.high - game.low:g}."
        )
    points = int(np.ceil((game.high - game.low) / step - ROUNDING)) + 1
    return np.linspace(game.low, game.high, points).round(12)


def sequential(
    game: Game, *, step: float = STEP, after: Sequence[float] = ()
) -> tuple[Equilibrium, ...]:
    """The outcomes of all pure SPNE, each agent seeing what those before it contributed.

    ``after`` are contributions already made, on or off the path and the grid: then these are the
    equilibria of the subgame that they leave. Raises :class:`ConfigError` for a step that does
    not fit, a grid of too many profiles, or ``after`` that leaves nobody to move.
    """
    c, first = _profiles(game, step, after)
    moving = reversed(range(first, game.agents))
    return _outcomes(game, c, in_sequence(game.reward_of(i, c) for i in moving))


def simultaneous(game: Game, *, step: float = STEP) -> tuple[Equilibrium, ...]:
    """All pure Nash equilibria where nobody sees another's contribution; rewards are the same.

    Raises as :func:`sequential` does.
    """
    c, _ = _profiles(game, step, ())
    return _outcomes(game, c, at_once(game.reward_of(i, c) for i in reversed(range(game.agents))))


def in_sequence(rewards: Iterable[Floats]) -> NDArray[np.bool_]:
    """Which profiles [g] * m are outcomes of pure SPNE of any game with these rewards.

    ``rewards`` are of each of m agents in all profiles, the last mover's first; the agent that
    moves first chooses along the first axis.
    """
    kept: NDArray[np.bool_] = np.ones((), dtype=bool)
    for behind, reward in enumerate(rewards):
        axis = reward.ndim - 1 - behind
        later = tuple(range(axis + 1, reward.ndim))
        worst = np.where(kept, reward, np.inf).min(axis=later, keepdims=True)
        kept = kept & (reward >= worst.max(axis=axis, keepdims=True) - ROUNDING)
    return kept


def at_once(rewards: Iterable[Floats]) -> NDArray[np.bool_]:
    """Which profiles are pure Nash equilibria where all choose at once; as :func:`in_sequence`."""
    kept: NDArray[np.bool_] = np.ones((), dtype=bool)
    for behind, reward in enumerate(rewards):
        axis = reward.ndim - 1 - behind
        kept = kept & (reward >= reward.max(axis=axis, keepdims=True) - ROUNDING)
    return kept


def reply(game: Game, earlier: Sequence[float], *, step: float = STEP) -> float:
    """What the next agent contributes in equilibrium after ``earlier``; the least of tied ones."""
    return min(
        one.contributions[len(earlier)] for one in sequential(game, step=step, after=earlier)
    )


def _profiles(game: Game, step: float, after: Sequence[float]) -> tuple[list[Floats], int]:
    """Contributions of all n that broadcast to all profiles [g] * m, and who moves first."""
    if len(after) >= game.agents:
        raise ConfigError(f"After {len(after)} contributions nobody of {game.agents} is to move.")
    if after:
        game.rewards(after)  # raises for what is no contribution
    grid = grid_of(game, step)
    moving = game.agents - len(after)
    if len(grid) ** moving > MOST_PROFILES:
        raise ConfigError(
            f"{moving} agents with {len(grid)} contributions each make too many profiles "
            f"({len(grid) ** moving:.1e}): take a larger step than {step:g}."
        )
    made = [np.full((1,) * moving, c) for c in after]
    chosen = list(np.meshgrid(*[grid] * moving, indexing="ij", sparse=True))
    return made + chosen, len(after)


def _outcomes(game: Game, c: Sequence[Floats], kept: NDArray[np.bool_]) -> tuple[Equilibrium, ...]:
    profiles = np.stack([np.broadcast_to(one, kept.shape)[kept] for one in c], axis=-1)
    return tuple(outcome(game, profile.tolist()) for profile in profiles)


def outcome(game: Game, contributions: Sequence[float]) -> Equilibrium:
    """What contributions of all n agents give; whether they are an equilibrium is not checked."""
    return Equilibrium(
        contributions=tuple(contributions),
        rewards=tuple(game.rewards(contributions).tolist()),
        reaches_bar=bool(game.reaches_bar(sum(contributions))),
        free_riders=tuple(i for i, c in enumerate(contributions) if game.rides_free(c)),
    )
