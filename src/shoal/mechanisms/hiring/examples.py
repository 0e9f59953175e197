"""Problems of the smallest kind: effort shows the state with an accuracy, no effort shows a coin.

"Online Information Acquisition: Hiring Multiple Agents" (arXiv 2307.06210). The common-noise
problem is why correlation pays: a second agent's work is worthless to the decision, but makes the
first one's report checkable.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from shoal.mechanisms.hiring.problem import AcquisitionProblem, problem

_ALIKE = np.array([[1.0, 0.0], [0.0, 1.0]])


def common_noise(
    n: int = 2, *, accuracy: float = 0.7, cost: float = 0.06, cap: float = 1.0
) -> AcquisitionProblem:
    """All who work see the same: the state, or with probability 1 - accuracy its opposite."""
    right = np.array([[True, False], [False, True]])

    def given(working: NDArray[np.int64], state: int, signals: NDArray[np.int64]) -> float:
        hits = right[state, signals[working]]
        return accuracy * float(hits.all()) + (1 - accuracy) * float(not hits.any())

    P = np.empty((2,) * n + (2,) + (2,) * n)
    for efforts in itertools.product((0, 1), repeat=n):
        working = np.flatnonzero(efforts)
        for state, *signals in itertools.product((0, 1), repeat=n + 1):
            shared = given(working, state, np.array(signals)) if working.size else 1.0
            P[(*efforts, state, *signals)] = 0.5 * 0.5 ** (n - working.size) * shared
    return problem(P, [[0.0, cost]] * n, _ALIKE, cap)


def independent_noise(
    n: int = 2, *, accuracies: tuple[float, ...] = (0.5, 0.7), cost: float = 0.06, cap: float = 1.0
) -> AcquisitionProblem:
    """Each agent errs by itself; effort k costs k times ``cost``, at the k-th accuracy."""
    q = np.array(accuracies)
    one = np.stack([_ALIKE * a + (1 - _ALIKE) * (1 - a) for a in q])  # [effort, T, signal]
    P = np.full((1,) * n + (2,) + (1,) * n, 0.5)
    for i in range(n):
        axes = [1] * (2 * n + 1)
        axes[i], axes[n], axes[n + 1 + i] = one.shape
        P = P * one.reshape(axes)
    return problem(P, [cost * np.arange(q.size)] * n, _ALIKE, cap)
