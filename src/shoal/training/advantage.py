"""Advantages of groups of episodes: pure functions from a batch of rows to weighted columns.

GRPO is "DeepSeekMath" (arXiv 2402.03300); ``scale="none"`` is Dr. GRPO (arXiv 2503.20783); RLOO is
"Back to Basics" (arXiv 2402.14740); MaxRL is arXiv 2602.02710. Deviations are sample deviations
(n - 1), and statistics are over episodes: ``over="rows"`` counts every step of an episode, as some
implementations do, so that long episodes weigh more.

A group is dead where its episodes' returns are exactly equal; deciding by a deviation in floating
point would find differences where there are none.

Shapes: R rows, E episodes, G groups, C columns.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from shoal.core.errors import ConfigError
from shoal.training.rows import Batch, Bools, Floats, Ints

EPS = 1e-6
Norm = Literal["std", "none", "batch"]
Over = Literal["episodes", "rows"]


@dataclass(frozen=True, slots=True, eq=False)
class Advantages:
    """What the loss weighs the tokens of each row with.

    columns_CR, weights_CR  the loss is the weighted sum of the losses of the columns
    dead_R                  rows of groups whose returns are exactly equal
    stats                   what there is to tell of this batch, by name
    """

    columns_CR: Floats
    weights_CR: Floats
    dead_R: Bools
    stats: Mapping[str, float] = field(default_factory=dict)

    @property
    def silent(self) -> Bools:
        """Rows that no column gives a gradient, [R]."""
        silent: Bools = (self.columns_CR * self.weights_CR == 0).all(axis=0)
        return silent

    def of(self, rows: Ints) -> Advantages:
        """The advantages of some rows."""
        return Advantages(
            self.columns_CR[:, rows], self.weights_CR[:, rows], self.dead_R[rows], self.stats
        )

    def only(self, rows: Bools) -> Advantages:
        """The same credit for the rows of a mask, and none for all others."""
        return replace(self, columns_CR=self.columns_CR * rows)

    @property
    def total(self) -> Floats:
        """The weighted sum of the columns, what a row is credited with: [R]."""
        total: Floats = (self.columns_CR * self.weights_CR).sum(axis=0)
        return total


def advantages(batch: Batch, value_R: Floats, **stats: float) -> Advantages:
    """One column, with what is told of every batch."""
    return Advantages(
        value_R[None],
        np.ones((1, batch.size)),
        dead_groups(batch)[batch.group_R],
        {**group_stats(batch), "advantage.mean": float(value_R.mean()) if batch.size else 0.0}
        | stats,
    )


def mean_by(code: Ints, value: Floats, codes: int) -> Floats:
    """The mean of the values of each code; 0 where there are none."""
    count = np.bincount(code, minlength=codes)
    mean: Floats = np.bincount(code, value, minlength=codes) / np.maximum(count, 1)
    return mean


def std_by(code: Ints, value: Floats, codes: int) -> Floats:
    """The sample deviation (n - 1) of each code; exactly 0 for one value and for equal ones."""
    count = np.bincount(code, minlength=codes)
    centred = value - mean_by(code, value, codes)[code]
    square = np.bincount(code, centred * centred, minlength=codes)
    std: Floats = np.sqrt(square / np.maximum(count - 1, 1))
    std[_equal(code, value, codes)] = 0.0
    return std


def centred_by(code: Ints, value: Floats, codes: int, *, std: bool) -> Floats:
    """Each value minus its code's mean, over the deviation if asked; exactly 0 for equal values."""
    centred = value - mean_by(code, value, codes)[code]
    centred[_equal(code, value, codes)[code]] = 0.0
    return centred / (std_by(code, value, codes)[code] + EPS) if std else centred


def _equal(code: Ints, value: Floats, codes: int) -> Bools:
    low, high = np.full(codes, np.inf), np.full(codes, -np.inf)
    np.minimum.at(low, code, value)
    np.maximum.at(high, code, value)
    return low >= high


def dead_groups(batch: Batch) -> Bools:
    """Groups whose episodes' returns are exactly equal, [G]; a group of one is dead."""
    return _equal(batch.group_E, batch.return_E, batch.groups)


def group_stats(batch: Batch) -> dict[str, float]:
    """Shares of groups: all at the least reward, all equal above it, mixed; of one episode."""
    if not batch.groups:
        return {}
    dead_G = dead_groups(batch)
    wrong_G = all_wrong(batch)
    size_G = np.bincount(batch.group_E, minlength=batch.groups)
    return {
        "groups.all_wrong": float(wrong_G.mean()),
        "groups.all_right": float((dead_G & ~wrong_G).mean()),
        "groups.mixed": float((~dead_G).mean()),
        "groups.of_one": float((size_G == 1).mean()),
    }


def all_wrong(batch: Batch) -> Bools:
    """Groups whose episodes all got the least reward that the environment declares, [G]."""
    high_G = np.full(batch.groups, -np.inf)
    np.maximum.at(high_G, batch.group_E, batch.return_E)
    return high_G <= batch.reward_min


def returns(batch: Batch, gamma: float) -> Floats:
    """Discounted rewards from each step to its episode's end, [R]; O(rows)."""
    total_R = batch.reward_R.copy()
    later_E = np.zeros(batch.episodes)
    order = np.argsort(-batch.t_R, kind="stable")
    cuts = np.flatnonzero(np.diff(batch.t_R[order])) + 1
    for rows in np.split(order, cuts):  # all steps t, the last first
        episodes = batch.episode_R[rows]
        total_R[rows] += gamma * later_E[episodes]
        later_E[episodes] = total_R[rows]
    return total_R


def grpo(
    batch: Batch, *, scale: Norm = "std", over: Over = "episodes", invalid_penalty: float = 0.0
) -> Advantages:
    """Every step of an episode: its return minus its group's mean, over the deviation.

    ``scale`` "none" does not divide, "batch" divides by the deviation of all episodes.
    ``invalid_penalty`` is taken from the score of the row alone whose action was not understood.
    """
    return advantages(batch, episode_advantage(batch, scale, over, invalid_penalty))


def episode_advantage(
    batch: Batch, scale: Norm = "std", over: Over = "episodes", invalid_penalty: float = 0.0
) -> Floats:
    """Equation 3 of GiGPO, [R]; a group of one gets 0, with a warning."""
    warn_lone(batch)
    score_R = batch.return_E[batch.episode_R] - invalid_penalty * ~batch.valid_R
    if over == "rows":
        code, value, back = batch.group_R, score_R, np.arange(batch.size)
    else:
        code, value, back = batch.group_E, batch.return_E, batch.episode_R
    mean_G = mean_by(code, value, batch.groups)
    dead_R = _equal(code, value, batch.groups)[code][back]
    centred_R = np.where(dead_R, score_R - value[back], score_R - mean_G[batch.group_R])
    if scale == "none":
        return centred_R
    if scale == "batch":
        spread = float(batch.return_E.std(ddof=1)) if batch.episodes > 1 else 0.0
        return centred_R / (spread + EPS)
    std_G = std_by(code, value, batch.groups)
    # Where all episodes are equal there is no scale to divide by; a penalty stays what it is.
    return centred_R / np.where(std_G > 0, std_G + EPS, 1.0)[batch.group_R]


def warn_lone(batch: Batch) -> None:
    """Say once that a group of one compares with nothing."""
    size_G = np.bincount(batch.group_E, minlength=batch.groups)
    if (size_G == 1).any():
        warnings.warn(
            f"{int((size_G == 1).sum())} of {batch.groups} groups have one episode, whose "
            "group-relative advantage is 0: sample more episodes a task.",
            stacklevel=2,
        )


def rloo(batch: Batch) -> Advantages:
    """Return minus the mean of the group's other episodes, [R]; unbiased."""
    warn_lone(batch)
    size_G = np.bincount(batch.group_E, minlength=batch.groups)
    centred_E = centred_by(batch.group_E, batch.return_E, batch.groups, std=False)
    factor_G = size_G / np.maximum(size_G - 1, 1)
    return advantages(batch, (centred_E * factor_G[batch.group_E])[batch.episode_R])


def reinforce(batch: Batch, *, scale: bool = True) -> Advantages:
    """Return minus the mean of the whole batch, over its deviation: no groups at all."""
    whole_E = np.zeros(batch.episodes, dtype=np.int64)
    value_E = centred_by(whole_E, batch.return_E, 1, std=scale)
    return advantages(batch, value_E[batch.episode_R])


def gdpo(batch: Batch) -> Advantages:
    """GRPO of every part of the reward by itself, added up: a small part keeps its say.

    Raises :class:`ConfigError` where rewards have no parts.
    """
    if not batch.parts_E:
        raise ConfigError(
            f"Rewards of {batch.environment} are not made of parts, so that there is nothing to "
            "scale apart: take grpo."
        )
    warn_lone(batch)
    scaled = [
        centred_by(batch.group_E, part_E, batch.groups, std=True)
        for part_E in batch.parts_E.values()
    ]
    whole_E: Floats = np.sum(scaled, axis=0)
    return advantages(batch, whole_E[batch.episode_R])


def max_rl(batch: Batch) -> Advantages:
    """(Return - mean) / mean of the group: hard tasks weigh more; 0 where nothing was reached.

    Returns are counted from the least reward, which MaxRL takes to be 0.
    """
    reached_E = batch.return_E - batch.reward_min
    mean_G = mean_by(batch.group_E, reached_E, batch.groups)
    centred_E = centred_by(batch.group_E, reached_E, batch.groups, std=False)
    value_E = centred_E / np.where(mean_G > 0, mean_G, 1.0)[batch.group_E]
    return advantages(batch, value_E[batch.episode_R])


def step_return(batch: Batch, *, gamma: float = 0.95, scale: bool = True) -> Advantages:
    """Discounted return of a step minus the mean of all steps of its group: no states at all."""
    value_R = centred_by(batch.group_R, returns(batch, gamma), batch.groups, std=scale)
    return advantages(batch, value_R)
