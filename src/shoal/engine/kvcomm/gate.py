"""When a moved text may be used: the paper's entropy rule, and what was measured.

The entropy rule compares whole caches with a softmax that saturates: with two long anchors it
accepts nearly everything (entropy was 0.04 of its maximum on average in our measurements). So the
default gate also looks: now and then a reused prompt is computed exactly as well, the divergence
of the two next-token distributions is noted, and where it is too large the place is closed until
later looks find it small again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Gate:
    """What looks at one prompt have found.

    max_kl  nats: mean of the last looks above which nothing is reused
    every   calls between two looks; the first ``first`` calls are all looked at
    reach   how much farther from the nearest anchor a text may be than the farthest good one
    """

    max_kl: float = 0.1
    every: int = 8
    first: int = 2
    reach: float = 1.25
    _looks: deque[float] = field(default_factory=lambda: deque(maxlen=4))
    _good: float = 0.0
    _bad: float = float("inf")
    _calls: int = 0

    @property
    def open(self) -> bool:
        """Whether approximations are used at all."""
        return not self._looks or sum(self._looks) / len(self._looks) <= self.max_kl

    def reaches(self, distance: float) -> bool:
        """Whether a text is near enough to anchors, as far as looks can tell."""
        if self._bad == float("inf"):
            return True
        return distance < max(self._bad, self._good * self.reach)

    def looks(self) -> bool:
        """Whether this call is to be looked at; counts calls."""
        self._calls += 1
        return self._calls <= self.first or self._calls % self.every == 0

    def note(self, distance: float, kl: float) -> None:
        """Take what a look has found for a text so far from its nearest anchor."""
        self._looks.append(kl)
        if kl <= self.max_kl:
            self._good = max(self._good, distance)
        else:
            self._bad = min(self._bad, distance)


def least_margin(margins: Sequence[float], agreed: Sequence[bool], share: float) -> float:
    """The smallest margin from which this share of choices agreed with the exact ones.

    ``margins`` and ``agreed`` are of choices that were moved and answered exactly as well. 0 where
    all may be taken, infinite where no choice is sure enough.
    """
    least = float("inf")
    good = 0
    ordered = sorted(zip(margins, agreed, strict=True), reverse=True)
    for count, (margin, same) in enumerate(ordered, 1):
        good += same
        last_of_its_margin = count == len(ordered) or ordered[count][0] < margin
        if last_of_its_margin and good >= share * count:
            least = margin
    return 0.0 if ordered and least == ordered[-1][0] else least
