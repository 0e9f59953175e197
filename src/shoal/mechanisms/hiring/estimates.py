"""What counts of reports say about signals, and how far a contract made from them can be trusted.

Legend as in :mod:`shoal.mechanisms.hiring.problem`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shoal.mechanisms.hiring.problem import (
    Contract,
    Floats,
    Silence,
    agent_view,
    deviation_gains,
    erase,
)

Counts = NDArray[np.int64]


def estimate(counts: Counts | Floats) -> Floats:
    """Relative frequencies by profile of efforts, [*efforts, T, *signals]."""
    n = (counts.ndim - 1) // 2
    seen = counts.sum(axis=tuple(range(n, 2 * n + 1)), keepdims=True)
    return np.asarray(counts / seen, dtype=np.float64)


def posterior(counts: Counts, rng: np.random.Generator) -> Floats:
    """Rounds that may as well have been, given those seen, [*efforts, T, *signals].

    A draw by profile from the Dirichlet posterior of Jeffreys' prior: what was not seen yet is
    possible. Times the rounds of the profile, so that pooling weighs profiles as they were seen.
    """
    n = (counts.ndim - 1) // 2
    seen = counts.sum(axis=tuple(range(n, 2 * n + 1)), keepdims=True)
    drawn = rng.standard_gamma(counts + 0.5)
    total = drawn.sum(axis=tuple(range(n, 2 * n + 1)), keepdims=True)
    return np.asarray(drawn / total * seen, dtype=np.float64)


def own_signals(counts: Counts | Floats, silence: Silence) -> tuple[Floats, ...]:
    """What each agent's effort says about its signal and the state, n of [b_i, s_i, T].

    Pooled over what the others did, which does not matter; silent reports carry nothing.
    """
    n = (counts.ndim - 1) // 2
    own = []
    for i, silent in enumerate(silence):
        others = tuple(j for j in range(n) if j != i)
        pooled = counts.sum(axis=(*others, *(n + 1 + j for j in others)))  # [b_i, T, s_i]
        p_bTs = pooled / pooled.sum(axis=(1, 2), keepdims=True)
        own.append(np.swapaxes(erase(p_bTs, (silent,)), 1, 2))
    return tuple(own)


def least_share(
    contract: Contract, sure: Contract, P: Floats, differences: Sequence[Floats]
) -> float:
    """The least share of known rules under which no deviation gains, from above, in [0, 1].

    A deviation's gain is convex in the share, so between the contract's own gain g and that under
    the known rules h < 0 it is gone at g / (g - h).
    """
    worst = 0.0
    pairs = [
        *zip(_by_effort(contract, P, differences), _by_effort(sure, P, differences), strict=True),
        *zip(_by_lie(contract, P), _by_lie(sure, P), strict=True),
    ]
    for gain, known in pairs:
        tempting = gain > 1e-12
        if tempting.any():
            g, h = gain[tempting], known[tempting]
            worst = max(worst, float((g / (g - np.minimum(h, 0))).max()))
    return worst


def _by_effort(contract: Contract, P: Floats, differences: Sequence[Floats]) -> list[Floats]:
    """Gains by another effort than told, n of [b, b']; the diagonal is left to lies."""
    gains = deviation_gains(contract, P, differences)
    return [gain - np.diag(np.diag(gain)) for gain in gains]


def _by_lie(contract: Contract, P: Floats) -> list[Floats]:
    """Gains by one lie of an agent that did as told, n of [b, seen, reported]."""
    n = contract.mu.ndim
    mu = contract.mu.reshape(contract.mu.shape + (1,) * (n + 1))
    found = []
    for i in range(n):
        x, p = agent_view(contract.gamma[i] * mu, i), agent_view(P, i)
        pay = np.einsum("bse,bre->bsr", p, x)
        found.append(pay - np.diagonal(pay, axis1=1, axis2=2)[:, :, None])
    return found


def worst_case_share(
    rounds: int, profiles: int, outcomes: int, cap: float, margin: float, error: float
) -> float:
    """The share of known rules that is enough whatever was seen, by Hoeffding and a union bound.

    rounds    of each of the ``profiles``; outcomes is |S| |T|; ``error`` the probability to fail
    """
    radius = math.sqrt(math.log(2 * profiles * outcomes / error) / (2 * rounds))
    slack = 2 * outcomes * cap * radius + 2 * cap * outcomes * radius
    return min(1.0, 2 * slack / (margin + 2 * slack))
