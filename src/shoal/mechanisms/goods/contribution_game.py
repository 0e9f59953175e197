"""A public goods game played in a fixed order, with synergy, an equal share and a common bar.

"Everyone Contributes! Incentivizing Strategic Cooperation in Multi-LLM Systems via Sequential
Public Goods Games" (arXiv 2508.02076), Definition 1. The reward is put together from the parts the
paper describes, as its equations were not at hand:

    R_i = - kappa(c_i)                     own cost, strictly convex
          + gamma c_i H_i                  synergy: H_1 = 0, H_i = mean(c_1 .. c_{i-1})
          + (rho / n) sum_j c_j            equal share of what all contribute
          - P [sum_j c_j < B]              the same penalty for all where the bar is missed

Legend: n agents in order, B profiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shoal.core.errors import ConfigError, InputError

Floats = NDArray[np.float64]

ROUNDING = 1e-9
"""Totals this little below the bar reach it: sums of decimal fractions are not exact."""

FREE_RIDING = 0.05
"""Who contributes at most this much more than the least possible rides free."""


@dataclass(frozen=True, slots=True)
class Cost:
    """kappa(c) = linear c + quadratic c², in units of reward.

    Raises :class:`ConfigError` unless linear >= 0 and quadratic > 0: only a strictly convex cost
    leaves each agent one best contribution on either side of the bar.
    """

    linear: float = 1.0
    quadratic: float = 0.05

    def __post_init__(self) -> None:
        for name, value in (("linear", self.linear), ("quadratic", self.quadratic)):
            if not math.isfinite(value) or value < 0:
                raise ConfigError(
                    f"The {name} part of the cost is {value}, but must be finite and >= 0."
                )
        if self.quadratic == 0:
            raise ConfigError("The quadratic part of the cost is 0, so the cost is not convex.")

    def __call__(self, c: Floats | float) -> Floats:
        """kappa of each contribution."""
        c = np.asarray(c, dtype=np.float64)
        return c * (self.linear + self.quadratic * c)

    def marginal(self, c: float) -> float:
        """kappa'(c)."""
        return self.linear + 2 * self.quadratic * c


@dataclass(frozen=True, slots=True)
class Game:
    """The constants of the game; contributions lie in [low, high].

    agents   n, at least 2, in a fixed order
    gamma    weight of the synergy with those before
    rho      what one unit contributed yields for all together
    penalty  P, what each loses where the bar is missed
    bar      B, the total that the group must reach

    Raises :class:`ConfigError`, naming the constant, for any that makes no sense, and for a bar
    that nobody can reach. ``rho >= n`` is allowed, as then contributing pays by itself:
    :func:`~shoal.mechanisms.goods.alignment.check_game` warns of it.
    """

    agents: int = 3
    gamma: float = 1.5
    rho: float = 1.8
    penalty: float = 1.5
    bar: float = 2.55
    cost: Cost = Cost()
    low: float = 0.1
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.agents < 2:
            raise ConfigError(f"A public goods game needs at least 2 agents, not {self.agents}.")
        for name in ("gamma", "rho", "penalty", "bar"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ConfigError(f"The {name} is {value}, but must be finite and >= 0.")
        if not 0 < self.low < self.high < math.inf:
            raise ConfigError(
                f"Contributions in [{self.low}, {self.high}] make no sense: give a low end above "
                "0 and below the high end."
            )
        most = self.agents * self.high
        if self.bar > most + ROUNDING:
            raise ConfigError(
                f"The bar is unreachable: it is {self.bar:g}, and {self.agents} agents contribute "
                f"{most:g} at most."
            )

    def reaches_bar(self, total: Floats | float) -> NDArray[np.bool_]:
        """Whether totals reach the bar, up to rounding."""
        return np.asarray(total) >= self.bar - ROUNDING

    def rides_free(self, c: float) -> bool:
        """Whether a contribution is within 0.05 of the least possible."""
        return c <= self.low + FREE_RIDING + ROUNDING

    def reward_of(self, i: int, c: Sequence[Floats], effort: Floats | None = None) -> Floats:
        """R_i of all profiles that the contributions ``c`` of all who took part broadcast to.

        The share is always that of all n agents, also where some took no part. The cost is that of
        ``effort`` where it is known apart from what came of it.
        """
        total = sum(c[1:], c[0])
        synergy = self.gamma * c[i] * (sum(c[1:i], c[0]) / i) if i else 0.0
        missed = np.where(self.reaches_bar(total), 0.0, self.penalty)
        spent = self.cost(c[i] if effort is None else effort)
        return synergy - spent + self.rho / self.agents * total - missed

    def synergies(self, c: Sequence[float]) -> Floats:
        """H_i [m] of contributions in order: 0, then the mean of those before."""
        before = np.cumsum(c)[:-1] / np.arange(1, len(c))
        return np.concatenate(([0.0], before))

    def rewards(self, c: ArrayLike, efforts: ArrayLike | None = None) -> Floats:
        """Rewards [..., m] of contributions [..., m] in order, m <= n where some took no part.

        ``efforts`` [..., m] in [0, 1], such as shares of a token budget, cost what a contribution
        of that size would; left out, contributions cost what they are. Raises :class:`InputError`
        for a contribution that is no number in [low, high] and for an effort outside of [0, 1].
        """
        c_Bn = np.asarray(c, dtype=np.float64)
        if c_Bn.ndim == 0 or not 1 <= c_Bn.shape[-1] <= self.agents:
            raise InputError(
                f"{self.agents} agents make at most as many contributions in a row, and at least "
                f"one, not shape {c_Bn.shape}."
            )
        wrong = ~((c_Bn >= self.low - ROUNDING) & (c_Bn <= self.high + ROUNDING))
        if wrong.any():
            raise InputError(
                f"The contribution {c_Bn[wrong][0]} is no number in [{self.low:g}, {self.high:g}]."
            )
        columns = list(np.moveaxis(c_Bn, -1, 0))
        spent: list[Floats | None] = [None] * len(columns)
        if efforts is not None:
            spent_Bn = np.broadcast_to(np.asarray(efforts, dtype=np.float64), c_Bn.shape)
            wrong = ~((spent_Bn >= 0) & (spent_Bn <= 1 + ROUNDING))
            if wrong.any():
                raise InputError(f"The effort {spent_Bn[wrong][0]} is no number in [0, 1].")
            spent = list(np.moveaxis(spent_Bn, -1, 0))
        return np.stack([self.reward_of(i, columns, one) for i, one in enumerate(spent)], axis=-1)
