"""Intervals, paired tests and effect sizes: what a claim is measured with.

Everything is vectorised numpy and seeded through :mod:`shoal.core.rng`. Bootstrap intervals are
bias-corrected and accelerated (BCa) unless asked otherwise: B. Efron, "Better bootstrap
confidence intervals", JASA 82 (1987). All statistics here are functions of column means, so the
jackknife that BCa needs costs one subtraction per observation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shoal.core.rng import generator

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
Method = Literal["bca", "percentile"]

RESAMPLES = 9_999
_CELLS = 1 << 22  # numbers drawn at a time, which bounds memory at about 64 MB
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the interval around it that holds the truth with probability ``level``."""

    estimate: float
    low: float
    high: float
    level: float = 0.95


def bootstrap(
    groups: Sequence[ArrayLike],
    statistic: Statistic,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    method: Method = "bca",
    seed: int = 0,
) -> Interval:
    """Bootstrap interval of a function of means.

    groups     independent samples, each [n] or [n, k]; the columns of one sample are paired, so
               a row is drawn whole. At least two observations each.
    statistic  from all column means side by side, [..., sum of k], to values [...]

    Raises ``ValueError`` for too few observations, values that are not finite, or a level
    outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"A confidence level lies between 0 and 1, not at {level}.")
    samples = [_sample(group) for group in groups]
    estimate = float(statistic(_concatenate([sample.mean(axis=0) for sample in samples])))
    rng = generator("bootstrap", seed)
    means = _concatenate([_resampled_means(sample, resamples, rng) for sample in samples])
    draws = np.asarray(statistic(means), dtype=np.float64)
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    if method == "bca":
        tails = _bca_tails(tails, draws, estimate, samples, statistic)
    low, high = np.quantile(draws, tails)
    return Interval(estimate, float(low), float(high), level)


def mean_interval(
    x: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    method: Method = "bca",
    seed: int = 0,
) -> Interval:
    """Interval of the mean of ``x`` [n]."""
    return bootstrap(
        [x], lambda m: m[..., 0], level=level, resamples=resamples, method=method, seed=seed
    )


def difference_interval(
    x: ArrayLike,
    y: ArrayLike,
    *,
    paired: bool = False,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    method: Method = "bca",
    seed: int = 0,
) -> Interval:
    """Interval of mean(x) - mean(y); ``paired`` where x[i] and y[i] belong together."""
    return bootstrap(
        [_pairs(x, y)] if paired else [x, y],
        lambda m: m[..., 0] - m[..., 1],
        level=level,
        resamples=resamples,
        method=method,
        seed=seed,
    )


def ratio_interval(
    x: ArrayLike,
    y: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    method: Method = "bca",
    seed: int = 0,
) -> Interval:
    """Interval of mean(x) / mean(y) over pairs; all of ``y`` must be positive."""
    pairs = _pairs(x, y)
    if (pairs[:, 1] <= 0).any():
        raise ValueError("A ratio needs a denominator whose values are all positive.")
    return bootstrap(
        [pairs],
        lambda m: m[..., 0] / m[..., 1],
        level=level,
        resamples=resamples,
        method=method,
        seed=seed,
    )


def wilson_interval(successes: int, trials: int, *, level: float = 0.95) -> Interval:
    """Score interval of a proportion: E. B. Wilson, JASA 22 (1927)."""
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} successes in {trials} trials is not a proportion.")
    z = _NORMAL.inv_cdf((1 + level) / 2)
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials)
    half *= math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half), level)


def paired_permutation_test(
    x: ArrayLike, y: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> float:
    """Two-sided p-value for mean(x - y) = 0 by flipping the signs of the differences.

    Exact over all 2^n flips where that is no more than ``resamples``; otherwise drawn, and the
    observed sample counts as one of the draws, so p is never zero.
    """
    pairs = _pairs(x, y)
    difference = pairs[:, 0] - pairs[:, 1]
    n = len(difference)
    exact = 2**n <= resamples
    # Sums that differ by rounding alone are equal.
    bound = abs(difference.sum()) * (1 - 1e-12) - 1e-300
    extreme = 0
    rng = generator("permutation", seed)
    for start, stop in _chunks(2**n if exact else resamples, n):
        if exact:
            flips = (np.arange(start, stop)[:, None] >> np.arange(n)) & 1
        else:
            flips = rng.integers(0, 2, size=(stop - start, n))
        extreme += int((np.abs((1 - 2 * flips) @ difference) >= bound).sum())
    return extreme / 2**n if exact else (extreme + 1) / (resamples + 1)


def mcnemar_test(x: ArrayLike, y: ArrayLike) -> float:
    """Two-sided p-value that paired successes [n] (0 or 1) are equally likely on both sides.

    Exact: under the hypothesis, pairs that differ fall to either side like a fair coin
    (Q. McNemar, Psychometrika 12, 1947).
    """
    pairs = _pairs(x, y)
    if not np.isin(pairs, (0, 1)).all():
        raise ValueError("McNemar's test is about successes: give zeros and ones.")
    only_x = int((pairs[:, 0] > pairs[:, 1]).sum())
    only_y = int((pairs[:, 0] < pairs[:, 1]).sum())
    n, least = only_x + only_y, min(only_x, only_y)
    tail = sum(math.comb(n, k) for k in range(least + 1)) / 2**n
    return float(min(1.0, 2 * tail))


def cohens_d(x: ArrayLike, y: ArrayLike) -> float:
    """Difference of means in pooled standard deviations; 0.2 small, 0.5 medium, 0.8 large."""
    a, b = _sample(x)[:, 0], _sample(y)[:, 0]
    spread = ((len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)) / (len(a) + len(b) - 2)
    if spread == 0:
        raise ValueError("Cohen's d is undefined where neither sample varies.")
    return float((a.mean() - b.mean()) / math.sqrt(spread))


def cliffs_delta(x: ArrayLike, y: ArrayLike) -> float:
    """P(x > y) - P(x < y), in [-1, 1]: the effect size that needs no normal distribution."""
    a, b = _sample(x)[:, 0], np.sort(_sample(y)[:, 0])
    below = np.searchsorted(b, a, side="left").sum()
    above = (len(b) - np.searchsorted(b, a, side="right")).sum()
    return float((below - above) / (len(a) * len(b)))


def holm(p_values: ArrayLike) -> Floats:
    """Adjusted p-values [n], in the order given, that bound the family-wise error.

    S. Holm, "A simple sequentially rejective multiple test procedure" (1979).
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def majority_accuracy(voters: int, accuracy: float) -> float:
    """Probability that most of ``voters`` independent voters between two options are right.

    Condorcet's jury theorem; a tie among an even number is broken by a fair coin.
    """
    if voters < 1 or not 0 <= accuracy <= 1:
        raise ValueError(f"{voters} voters of accuracy {accuracy} cannot vote.")

    def exactly(right: int) -> float:
        ways = math.comb(voters, right)
        return ways * accuracy**right * (1 - accuracy) ** (voters - right)

    won = sum(exactly(right) for right in range(voters // 2 + 1, voters + 1))
    return won + (exactly(voters // 2) / 2 if voters % 2 == 0 else 0.0)


def _sample(values: ArrayLike) -> Floats:
    """[n] or [n, k] as [n, k]."""
    sample = np.asarray(values, dtype=np.float64)
    sample = sample[:, None] if sample.ndim == 1 else sample
    if sample.ndim != 2 or len(sample) < 2:
        raise ValueError(f"A sample needs at least two observations, not shape {sample.shape}.")
    if not np.isfinite(sample).all():
        raise ValueError("A sample holds values that are not finite.")
    return sample


def _pairs(x: ArrayLike, y: ArrayLike) -> Floats:
    """Two samples [n] as rows [n, 2]."""
    a, b = _sample(x), _sample(y)
    if a.shape != b.shape:
        raise ValueError(f"Paired samples differ in length: {len(a)} and {len(b)}.")
    return np.hstack([a, b])


def _concatenate(means: list[Floats]) -> Floats:
    return np.concatenate(means, axis=-1)


def _chunks(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    step = max(1, _CELLS // columns)
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def _resampled_means(sample: Floats, resamples: int, rng: np.random.Generator) -> Floats:
    """Column means of samples drawn with replacement, [resamples, k]."""
    n = len(sample)
    drawn = (
        sample[rng.integers(0, n, size=(stop - start, n))].mean(axis=1)
        for start, stop in _chunks(resamples, n)
    )
    return np.concatenate(list(drawn))


def _bca_tails(
    tails: Floats,
    draws: Floats,
    estimate: float,
    samples: list[Floats],
    statistic: Statistic,
) -> Floats:
    """Quantiles [2] to read off the draws, after correcting for bias and skewness."""
    below = ((draws < estimate).mean() + (draws <= estimate).mean()) / 2
    if not 0 < below < 1 or np.ptp(draws) == 0:
        return tails
    bias = _NORMAL.inv_cdf(float(below))
    acceleration = _acceleration(samples, statistic)
    shifted = bias + np.array([_NORMAL.inv_cdf(float(tail)) for tail in tails])
    corrected = bias + shifted / (1 - acceleration * shifted)
    return np.array([_NORMAL.cdf(float(z)) for z in corrected])


def _acceleration(samples: list[Floats], statistic: Statistic) -> float:
    """Skewness of the jackknife values, over several samples as in Davison & Hinkley §5.3."""
    means = [sample.mean(axis=0) for sample in samples]
    cubes = squares = 0.0
    for place, sample in enumerate(samples):
        n = len(sample)
        without = (sample.sum(axis=0) - sample) / (n - 1)
        columns = [np.broadcast_to(mean, (n, len(mean))) for mean in means]
        columns[place] = without
        values = statistic(_concatenate(columns))
        influence = (n - 1) * (values.mean() - values)
        cubes += float((influence**3).sum()) / n**3
        squares += float((influence**2).sum()) / n**2
    return cubes / (6 * squares**1.5) if squares > 0 else 0.0
