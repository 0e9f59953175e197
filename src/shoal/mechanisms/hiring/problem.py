"""What a principal who hires agents to look at the world must know, and what it can promise them.

"Online Information Acquisition: Hiring Multiple Agents" (arXiv 2307.06210). Agent i picks an effort
in secret, sees a signal, reports it or lies; the principal acts, then the state is revealed.

Legend: n agents; B profiles of efforts, T states, S profiles of signals, A actions; b_i and s_i
are one agent's effort and signal. Joint arrays have one axis an agent: [*efforts, T, *signals].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shoal.core.errors import InputError

Floats = NDArray[np.float64]
Silence = tuple[tuple[bool, ...], ...]
"""By agent and effort: whether a report is not asked for, nor used, when that is recommended."""


@dataclass(frozen=True, slots=True, eq=False)
class AcquisitionProblem:
    """Agents for hire, as :func:`problem` checks them.

    P        P(state, signals | efforts), [*efforts, T, *signals]
    costs    of each effort of each agent, n of [b_i], in units of utility
    utility  of the principal's actions, [A, T]
    cap      the most one agent can be paid, M
    """

    P: Floats
    costs: tuple[Floats, ...]
    utility: Floats
    cap: float

    @property
    def agents(self) -> int:
        """How many agents there are, n."""
        return len(self.costs)

    @property
    def efforts(self) -> tuple[int, ...]:
        """How many efforts each agent has."""
        return self.P.shape[: self.agents]

    @property
    def signals(self) -> tuple[int, ...]:
        """How many signals each agent has."""
        return self.P.shape[self.agents + 1 :]

    @property
    def states(self) -> int:
        """How many states there are, T."""
        return int(self.P.shape[self.agents])

    @property
    def differences(self) -> tuple[Floats, ...]:
        """C_i(b, b') = c_i(b) - c_i(b'), all of the costs that incentives depend on."""
        return tuple(cost[:, None] - cost for cost in self.costs)

    @property
    def unhired(self) -> float:
        """The utility of acting on the prior alone, max_a E u(a)."""
        prior_T = self.P.reshape(-1, self.states, math.prod(self.signals))[0].sum(axis=1)
        return float((self.utility @ prior_T).max())


def problem(
    P: ArrayLike, costs: Sequence[ArrayLike], utility: ArrayLike, cap: float
) -> AcquisitionProblem:
    """A checked problem; shapes as in :class:`AcquisitionProblem`.

    Raises :class:`InputError`, naming the profile of efforts, the agent or the value, for
    probabilities that are none or do not sum to 1, a prior or one agent's signals that depend on
    others' efforts, negative costs, and a negative cap. Signals of probability 0 are allowed.
    """
    P, utility = np.asarray(P, dtype=np.float64), np.asarray(utility, dtype=np.float64)
    costs_ = tuple(np.asarray(cost, dtype=np.float64) for cost in costs)
    n = len(costs_)
    if n == 0 or P.ndim != 2 * n + 1 or 0 in P.shape:
        raise InputError(
            f"P has {P.ndim} axes, but {n} agents need one of efforts each, one of states and one "
            f"of signals each: {2 * n + 1}, none of them empty."
        )
    for i, cost in enumerate(costs_):
        if cost.shape != (P.shape[i],):
            raise InputError(f"Agent {i} has {P.shape[i]} efforts, but costs {cost.tolist()}.")
        if not ((cost >= 0) & (cost < np.inf)).all():
            raise InputError(f"Agent {i} has costs {cost.tolist()}: they must be finite and >= 0.")
    if utility.ndim != 2 or utility.shape[1] != P.shape[n] or not np.isfinite(utility).all():
        raise InputError(
            f"The utility must be numbers by action and by {P.shape[n]} states, "
            f"not of shape {utility.shape}."
        )
    if not (math.isfinite(cap) and cap >= 0):
        raise InputError(f"The cap on one agent's pay is {cap}, but must be finite and >= 0.")
    _check_probabilities(P, n)
    return AcquisitionProblem(P, costs_, utility, float(cap))


def _check_probabilities(P: Floats, n: int) -> None:
    sums_B = P.reshape(*P.shape[:n], -1).sum(axis=-1)
    lowest_B = P.reshape(*P.shape[:n], -1).min(axis=-1)
    wrong_B = ~((np.abs(sums_B - 1) <= 1e-9) & (lowest_B >= 0))
    if wrong_B.any():
        b = tuple(int(place) for place in np.argwhere(wrong_B)[0])
        raise InputError(
            f"P for the efforts {b} sums to {sums_B[b]:.6g} with {lowest_B[b]:.6g} as its least "
            "entry, but must be probabilities that sum to 1."
        )
    for i in range(n):
        signal_BTs = P.sum(axis=tuple(n + 1 + j for j in range(n) if j != i))
        own = signal_BTs.min(axis=tuple(j for j in range(n) if j != i), keepdims=True)
        apart = np.abs(signal_BTs - own)
        if apart.max() > 1e-9:
            b = tuple(int(place) for place in np.argwhere(apart > 1e-9)[0][:n])
            raise InputError(
                f"Agent {i}'s signals at the efforts {b} depend on the others' efforts: with the "
                "state given, they may depend on its own effort alone."
            )


@dataclass(frozen=True, slots=True, eq=False)
class Contract:
    """What the principal commits to.

    mu      probability of recommending each profile of efforts, [*efforts]
    gamma   what each agent is paid, [n, *efforts, T, *signals], in [0, M]
    policy  the action for each profile of efforts and reports, [*efforts, *signals]
    """

    mu: Floats
    gamma: Floats
    policy: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Terms:
    """A contract's worth when all obey: the principal's utility is ``value - pay``."""

    value: float
    pay: float

    @property
    def utility(self) -> float:
        """What the principal keeps."""
        return self.value - self.pay


def agent_view(joint: NDArray[Any], i: int) -> NDArray[Any]:
    """[*efforts, T, *signals] as [b_i, s_i, rest], for agent i."""
    n = (joint.ndim - 1) // 2
    moved = np.moveaxis(joint, (i, n + 1 + i), (0, 1))
    return moved.reshape(*moved.shape[:2], -1)


def erase(P: Floats, silence: Silence) -> Floats:
    """P as if agents that are not asked reported at random, [*efforts, T, *signals]."""
    P = P.copy()
    n = len(silence)
    for i, by_effort in enumerate(silence):
        for effort, silent in enumerate(by_effort):
            if silent:
                part = np.moveaxis(P, i, 0)[effort]
                part[...] = part.mean(axis=n + i, keepdims=True)
    return P


def talkative(efforts: Sequence[int]) -> Silence:
    """Every agent is asked to report, whatever it was told to do."""
    return tuple((False,) * count for count in efforts)


def best_policy(P: Floats, utility: Floats, silence: Silence) -> tuple[Floats, NDArray[np.int64]]:
    """V(b) = sum_s max_a sum_T u P, [*efforts], and the maximising action, [*efforts, *signals]."""
    n = len(silence)
    worth = np.moveaxis(np.tensordot(utility, erase(P, silence), (1, n)), 0, -1)
    best = worth.max(axis=-1)
    return best.sum(axis=tuple(range(n, 2 * n))), worth.argmax(axis=-1)


def terms(contract: Contract, P: Floats, utility: Floats) -> Terms:
    """Expected utility of the actions, and expected pay, when all obey and tell the truth."""
    n = contract.mu.ndim
    weighted = P * contract.mu.reshape(contract.mu.shape + (1,) * (n + 1))
    u = np.moveaxis(utility[contract.policy], -1, n)
    return Terms(float((u * weighted).sum()), float((contract.gamma * weighted).sum()))


def deviation_gains(
    contract: Contract, P: Floats, differences: Sequence[Floats]
) -> tuple[Floats, ...]:
    """What agent i gains by playing b' with the best lies when told b, n of [b, b'].

    In expectation over the whole round, so that what never is recommended gains 0. This is the
    maximum over all pairs of a disobedience and a lie: lies are best signal by signal.
    """
    n = contract.mu.ndim
    mu = contract.mu.reshape(contract.mu.shape + (1,) * (n + 1))
    found = []
    for i in range(n):
        x, p = agent_view(contract.gamma[i] * mu, i), agent_view(P, i)
        b, s, rest = x.shape
        obeying = (x * p).sum(axis=(1, 2))
        by_report = (x.reshape(-1, rest) @ p.reshape(-1, rest).T).reshape(b, s, b, s)
        lying = by_report.max(axis=1).sum(axis=-1)
        told = contract.mu.sum(axis=tuple(j for j in range(n) if j != i))
        found.append(lying - obeying[:, None] + told[:, None] * differences[i])
    return tuple(found)


def largest_gain(contract: Contract, P: Floats, differences: Sequence[Floats]) -> float:
    """The largest gain of one agent, over all it can be told."""
    gains = deviation_gains(contract, P, differences)
    return max(float(gain.max(axis=1).sum()) for gain in gains)
