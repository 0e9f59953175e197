"""Seconds of alternating arms: what drifts on the machine drifts for all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shoal.core.stats import Interval, mean_interval, ratio_interval

Clock = Literal["wall", "cpu"]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one arm, one per round: wall clock, and CPU over all threads. Both [rounds]."""

    wall: NDArray[np.float64]
    cpu: NDArray[np.float64]

    def seconds(self, clock: Clock = "wall", *, seed: int = 0) -> Interval:
        """Mean seconds of a round."""
        return mean_interval(getattr(self, clock), seed=seed)

    def times_faster_than(
        self, baseline: Timing, clock: Clock = "wall", *, seed: int = 0
    ) -> Interval:
        """Seconds of the baseline over seconds of this arm, paired by round."""
        return ratio_interval(getattr(baseline, clock), getattr(self, clock), seed=seed)


def alternate(
    arms: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 1
) -> dict[str, Timing]:
    """Time every arm once a round, in forward and backward order by turns.

    ``warmup`` rounds before them are not counted. Raises ``ValueError`` below two rounds, from
    which no interval can be made.
    """
    if rounds < 2:
        raise ValueError(f"An interval needs at least two rounds, not {rounds}.")
    names = list(arms)
    seconds = {name: np.empty((rounds, 2)) for name in names}
    for number in range(-warmup, rounds):
        for name in names if number % 2 == 0 else reversed(names):
            measured = _timed(arms[name])
            if number >= 0:
                seconds[name][number] = measured
    return {name: Timing(wall=both[:, 0], cpu=both[:, 1]) for name, both in seconds.items()}


def _timed(job: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    job()
    return time.perf_counter() - wall, time.process_time() - cpu
