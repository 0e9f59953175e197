"""Rules that place one number among many reports: some cannot be gamed, some can.

Agents i = 1..n have ideal points x_i in [0, 1]; the group sets one y; agent i's utility is
u_i = 1 - |y - x_i|. "Strategyproof and Proportionally Fair Facility Location" (arXiv 2111.01566)
shows that exactly one strategyproof rule treats groups in proportion to their size: the Uniform
Phantom. Phantom mechanisms are Moulin's (1980); Random Rank is that of arXiv 2205.14798.

With reports in descending order x_(1) >= ... >= x_(n) and C_i the share of weight of the first i,
every phantom mechanism is y = max(p_0, max_i min(x_(i), p_i)), and the Uniform Phantom has
p_i = C_i: no phantom is built and no median taken. Weights are an addition to the paper: with
whole numbers they equal cloning agent i w_i times, and the guarantees hold for weights that the
agents cannot choose.

Legend: x reports, w weights, c shares C_i; arrays are [..., n], one profile a row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from shoal.core.errors import ConfigError, nearest

Floats = NDArray[np.float64]

Promise = Literal[
    "strategyproof",  # nobody gains by a lie
    "group-strategyproof",  # no coalition of which everyone gains
    "anonymous",  # who says it does not matter
    "unanimous",  # all at c: y = c
    "proportional",  # all at 0 or 1: y is the share of ones
    "individual fair share",  # u_i >= 1/n
    "unanimous fair share",  # a share s of the group at one point: their u_i >= s
    "proportional fairness",  # a share s of the group within r: their u_i >= s - r
]
PROMISES: tuple[Promise, ...] = get_args(Promise)
TRUTHFUL: frozenset[Promise] = frozenset(("strategyproof", "group-strategyproof", "anonymous"))


class Rule(ABC):
    """A way to choose y that does not ask who reports what."""

    name: ClassVar[str] = ""
    guarantees: ClassVar[frozenset[Promise]] = frozenset()

    @abstractmethod
    def place(self, x: Floats, c: Floats) -> Floats:
        """y [...] for reports [..., n] in descending order and shares of weight [..., n]."""

    def __call__(self, x: Floats, w: Floats | None = None) -> Floats:
        """y [...] for reports [..., n] in [0, 1], in any order, and weights [n]."""
        return self.place(*descending(x, w))

    def draws(self, n: int) -> Sequence[Rule]:
        """The rules this one draws from, each as likely; a rule without chance is its own."""
        return (self,)

    def drawn(self, chance: float) -> Rule:
        """The rule that a draw from [0, 1) decides on."""
        return self


@dataclass(frozen=True)
class UniformPhantom(Rule):
    """The share of the group that reports at least y is y; a group gets what its size deserves."""

    name = "uniform-phantom"
    guarantees = frozenset(PROMISES)

    def place(self, x: Floats, c: Floats) -> Floats:
        return _highest(np.minimum(x, c))


@dataclass(frozen=True)
class Phantoms(Rule):
    """Any phantom mechanism: the median of n reports and n-1 phantoms, or n+1 (not unanimous).

    Raises :class:`ConfigError` for phantoms that descend or leave [0, 1], for weights, and for
    groups of another size.
    """

    positions: tuple[float, ...]

    name = "phantoms"
    guarantees = TRUTHFUL

    def __post_init__(self) -> None:
        p = np.asarray(self.positions, dtype=np.float64)
        if not ((p >= 0).all() and (p <= 1).all() and (np.diff(p) >= 0).all()):
            raise ConfigError(f"Phantoms must ascend within [0, 1], unlike {self.positions}.")

    def place(self, x: Floats, c: Floats) -> Floats:
        n = x.shape[-1]
        if not np.allclose(c, np.arange(1, n + 1) / n, rtol=0, atol=1e-12):
            raise ConfigError("Fixed phantoms know no weights: use the uniform phantom.")
        if len(self.positions) not in (n - 1, n + 1):
            raise ConfigError(
                f"{n} reports need {n - 1} phantoms, or {n + 1} without unanimity, "
                f"not {len(self.positions)}."
            )
        p = np.asarray(self.positions, dtype=np.float64)
        p = p if len(p) == n + 1 else np.concatenate(([0.0], p, [1.0]))
        return _highest(np.maximum(p[0], np.minimum(x, p[1:])))


@dataclass(frozen=True)
class FairSharePhantoms(Rule):
    """Half of the phantoms at 1/n, half at 1 - 1/n: the best welfare under individual fair share.

    With an even group the odd one is at 1/n.
    """

    name = "fair-share-phantoms"
    guarantees = TRUTHFUL | {"unanimous", "individual fair share"}

    def place(self, x: Floats, c: Floats) -> Floats:
        n = x.shape[-1]
        p = np.where(c == 1, 1.0, np.where(c > 0.5, 1 - 1 / n, 1 / n))
        return _highest(np.minimum(x, p))


@dataclass(frozen=True)
class OrderStatistic(Rule):
    """The highest report that more than a share ``above`` of the group reaches."""

    above: float

    name = "order-statistic"
    guarantees = TRUTHFUL | {"unanimous"}

    def place(self, x: Floats, c: Floats) -> Floats:
        return _highest(np.where(c > self.above, x, 0.0))


@dataclass(frozen=True)
class Median(OrderStatistic):
    """The lower median: between two middle reports a mean would reward lies. Best welfare."""

    above: float = 0.5

    name = "median"


@dataclass(frozen=True)
class RandomRank(Rule):
    """The report of an agent drawn by weight, each rank as likely; fair in expectation only."""

    name = "random-rank"
    guarantees = frozenset(PROMISES)

    def place(self, x: Floats, c: Floats) -> Floats:
        raise ConfigError("Random Rank decides by a draw: use drawn(chance) or draws(n).")

    def draws(self, n: int) -> Sequence[Rule]:
        return tuple(OrderStatistic(rank / n) for rank in range(n))

    def drawn(self, chance: float) -> Rule:
        return OrderStatistic(chance)


@dataclass(frozen=True)
class Mean(Rule):
    """The average: what most frameworks do, and any agent can move it by lying."""

    name = "mean"
    guarantees = frozenset({"anonymous", "unanimous", "proportional"})

    def place(self, x: Floats, c: Floats) -> Floats:
        return _average(x, c)


@dataclass(frozen=True)
class TrimmedMean(Rule):
    """The average without the lowest and the highest ``cut`` of the weight."""

    cut: float = 0.2

    name = "trimmed-mean"
    guarantees = frozenset({"anonymous", "unanimous"})

    def __post_init__(self) -> None:
        if not 0 <= self.cut < 0.5:
            raise ConfigError(f"A trimmed mean cuts off between 0 and half, not {self.cut}.")

    def place(self, x: Floats, c: Floats) -> Floats:
        return _average(x, (np.clip(c, self.cut, 1 - self.cut) - self.cut) / (1 - 2 * self.cut))


RULES: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
        UniformPhantom(),
        FairSharePhantoms(),
        Median(),
        RandomRank(),
        Mean(),
        TrimmedMean(),
    )
}


def find_rule(name: str) -> Rule:
    """The rule with this name; raises :class:`ConfigError`, naming the nearest."""
    if name not in RULES:
        raise ConfigError(
            f"There is no rule {name!r}.{nearest(name, RULES)} Known: {', '.join(RULES)}."
        )
    return RULES[name]


def descending(x: Floats, w: Floats | None) -> tuple[Floats, Floats]:
    """Reports [..., n] from high to low, and the share of weight down to each, [..., n]."""
    if w is None:
        n = x.shape[-1]
        return np.sort(x, axis=-1)[..., ::-1], np.broadcast_to(np.arange(1, n + 1) / n, x.shape)
    order = np.argsort(x, axis=-1)[..., ::-1]
    sums = np.cumsum(w[order], axis=-1)
    return np.take_along_axis(x, order, axis=-1), sums / sums[..., -1:]


def _highest(values: Floats) -> Floats:
    highest: Floats = values.max(axis=-1)
    return highest


def _average(x: Floats, c: Floats) -> Floats:
    """The mean by shares, which the ends bound also where sums are rounded."""
    mean: Floats = (np.diff(c, axis=-1, prepend=0.0) * x).sum(axis=-1)
    return mean.clip(x[..., -1], x[..., 0])


def proportional_slack(x: Floats, distance: Floats, c: Floats) -> Floats:
    """How much more than its fair share the worst-off group gets, [...]; negative: less.

    The minimum of u_i - (s - r) over all groups (share s, range r) and their members, for
    reports in descending order, each agent's (expected) distance from y, and shares of weight.
    Groups are runs a..b of that order, and the worst member is at an end; the terms in a and b
    separate, so that one running maximum does what n^2 groups would.
    """
    before = np.concatenate((np.zeros_like(c[..., :1]), c[..., :-1]), axis=-1)
    first = np.maximum.accumulate(distance - before - x, axis=-1)
    last = np.maximum.accumulate(-before - x, axis=-1)
    excess = np.maximum(c + x + first, c + x + distance + last)
    slack: Floats = 1 - excess.max(axis=-1)
    return slack
