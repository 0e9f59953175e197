"""The game that agents really play: they choose among a few settings, whose scores were measured.

A model does not choose its contribution. It is set in some way, and then its texts score high or
low as the task has it. So the rewards of a profile of settings are means over tasks, and whether a
bar is reached is a share of them. Equilibria are found as on a grid of contributions: by backward
induction, ties included. What the constants must be for settings that contribute to be the only
equilibrium can so be found on tasks to learn from, before anybody learns.

It takes for granted that what an agent scores does not hang on what it heard of others.

Legend: K settings, n agents, B tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from shoal.core.errors import ConfigError, InputError
from shoal.mechanisms.goods.contribution_game import Floats, Game
from shoal.mechanisms.goods.subgame_perfect import at_once, in_sequence


@dataclass(frozen=True, slots=True)
class Choice:
    """One profile: the setting of each agent in order, and what it brings on average."""

    settings: tuple[int, ...]
    contributions: tuple[float, ...]
    rewards: tuple[float, ...]
    bar_hit: float

    @property
    def welfare(self) -> float:
        """The sum of all rewards."""
        return float(np.sum(self.rewards))


class MeasuredGame:
    """``scores`` and ``efforts`` [K, n, B] of each setting, agent and task.

    Raises :class:`InputError` for scores that are no contributions, efforts outside of [0, 1] and
    shapes that differ, :class:`ConfigError` for agents other than the game's.
    """

    def __init__(self, game: Game, scores: ArrayLike, efforts: ArrayLike) -> None:
        self.game = game
        self.scores_KnB = np.asarray(scores, dtype=np.float64)
        self.efforts_KnB = np.asarray(efforts, dtype=np.float64)
        if self.scores_KnB.ndim != 3 or self.scores_KnB.shape != self.efforts_KnB.shape:
            raise InputError(
                f"Scores of shape {self.scores_KnB.shape} and efforts of shape "
                f"{self.efforts_KnB.shape} are not both settings x agents x tasks."
            )
        settings, agents, tasks = self.scores_KnB.shape
        if not settings or not tasks:
            raise InputError(f"There are {settings} settings and {tasks} tasks: give some of both.")
        if agents != game.agents:
            raise ConfigError(f"The game is for {game.agents} agents, but {agents} were measured.")
        game.rewards(np.moveaxis(self.scores_KnB, 1, -1), np.moveaxis(self.efforts_KnB, 1, -1))

    def in_sequence(self) -> tuple[Choice, ...]:
        """Outcomes of all pure SPNE: each sees the settings of those before it, not the scores."""
        return self._choices(in_sequence(self._reward(i) for i in reversed(self._agents)))

    def at_once(self) -> tuple[Choice, ...]:
        """All pure Nash equilibria where nobody knows another's setting."""
        return self._choices(at_once(self._reward(i) for i in reversed(self._agents)))

    def of(self, *settings: int) -> Choice:
        """What one profile brings."""
        c = [self.scores_KnB[k, i] for i, k in enumerate(settings)]
        spent = [self.efforts_KnB[k, i] for i, k in enumerate(settings)]
        rewards = self.game.rewards(np.stack(c, axis=-1), np.stack(spent, axis=-1)).mean(axis=0)
        return Choice(
            tuple(settings),
            tuple(float(one.mean()) for one in c),
            tuple(rewards.tolist()),
            float(self.game.reaches_bar(np.sum(c, axis=0)).mean()),
        )

    @property
    def _agents(self) -> range:
        return range(self.game.agents)

    def _reward(self, i: int) -> Floats:
        """The mean reward of agent ``i`` in all profiles, [K] * n."""
        columns = [self._along(self.scores_KnB, j) for j in self._agents]
        reward = self.game.reward_of(i, columns, self._along(self.efforts_KnB, i))
        full = np.broadcast_shapes(reward.shape, *(one.shape for one in columns))
        mean: Floats = np.broadcast_to(reward, full).mean(axis=-1)
        return mean

    def _along(self, values_KnB: Floats, i: int) -> Floats:
        """Values of agent ``i`` along its own axis of all profiles, [1, .., K, .., 1, B]."""
        shape = [1] * self.game.agents + [values_KnB.shape[-1]]
        shape[i] = values_KnB.shape[0]
        return values_KnB[:, i].reshape(shape)

    def _choices(self, kept: np.ndarray) -> tuple[Choice, ...]:
        return tuple(self.of(*profile) for profile in np.argwhere(kept).tolist())
