"""Whether a policy learns to look right instead of being right: format up, correctness flat.

A format is easy to earn. Where it rises and the share of right answers does not, the reward pays
for the wrong thing, and a curve of rewards alone would look like success.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shoal.core.stats import Interval, difference_interval


@dataclass(frozen=True, slots=True)
class Drift:
    """What became of the two between the first and the last part of a run, with intervals."""

    format: Interval
    correct: Interval

    @property
    def hacked(self) -> bool:
        """Whether format surely rose and correctness did not."""
        return self.format.low > 0 and self.correct.low <= 0

    @property
    def sentence(self) -> str:
        """What to tell the user."""
        return (
            f"Format rose by {self.format.estimate:.2f} while what is right changed by "
            f"{self.correct.estimate:.2f} [{self.correct.low:.2f}, {self.correct.high:.2f}]: "
            "the reward may be paying for looks."
        )


def drift(
    iterations: Sequence[Mapping[str, float]],
    *,
    format_name: str = "marks.format",
    correct_name: str = "marks.value",
    share: float = 0.25,
) -> Drift | None:
    """The last ``share`` of a run's iterations less the first; None where there are too few.

    Iterations that did not tell both are left out. Fewer than four at each end say nothing.
    """
    told = [one for one in iterations if format_name in one and correct_name in one]
    size = int(len(told) * share)
    if size < 4:
        return None

    def change(name: str) -> Interval:
        values = np.array([one[name] for one in told])
        return difference_interval(values[-size:], values[:size])

    return Drift(change(format_name), change(correct_name))
