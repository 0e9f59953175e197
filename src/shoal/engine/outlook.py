"""How much memory what runs will take at its worst moment, as answers that end give theirs back.

The Past-Future scheduler (Gong et al., ASPLOS 2025, arXiv 2507.10150): every answer takes a slot a
step until it ends, and what it alone held is free then. Between two ends what is taken only grows,
so the worst moment is just before one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Growth(NamedTuple):
    """Slots that an answer is still expected to ask for, and whether it is expected to end then
    rather than to go on for nobody knows how long."""

    slots: int
    ends: bool


class Course(NamedTuple):
    """What one answer is expected to do.

    growth  steps until it ends, or as far as it is looked ahead
    spare   slots it has already for tokens to come
    own     slots that nobody else holds
    ends    whether it gives back then what it alone holds
    """

    growth: int
    spare: int
    own: int
    ends: bool = True


def peak(courses: Sequence[Course]) -> int:
    """Slots beyond those taken now that are needed at the worst moment; at least 0."""
    if not courses:
        return 0
    growth_N, spare_N, own_N, ends_N = np.array(sorted(courses), dtype=np.int64).T
    spare_N = np.minimum(spare_N, growth_N)  # more is never asked for
    before_N = np.arange(len(courses))  # how many have ended before each end
    asked_N = _beyond(spare_N, growth_N) - (before_N * growth_N - _sums(spare_N))
    given_N = np.where(ends_N, own_N, spare_N - growth_N)  # or it keeps what it asked for
    return max(0, int((asked_N - _sums(given_N)).max()))


def _beyond(spare_N: NDArray[np.int64], time_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Σ max(0, t - spare) over all, for every t."""
    sorted_N = np.sort(spare_N)
    count_N = np.searchsorted(sorted_N, time_N)
    sums_N: NDArray[np.int64] = np.append(0, np.cumsum(sorted_N))
    return count_N * time_N - sums_N[count_N]


def _sums(of_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sums of all that come before each."""
    sums_N: NDArray[np.int64] = np.cumsum(of_N) - of_N
    return sums_N
