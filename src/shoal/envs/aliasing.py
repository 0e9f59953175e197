"""The aliasing meter: how often keys that are equal hide states that differ.

Comparing what was done "in the same state" is only right where it was the same state. Observations
alias (the text is the same before and after something was picked up); this says how much.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Aliasing:
    """Of all keys that were seen more than once.

    keys     how many there are
    aliased  share of them that stand for more than one state
    visits   share of their visits that are not of the key's most common state
    """

    keys: int
    aliased: float
    visits: float

    @property
    def told(self) -> Mapping[str, float]:
        """As metrics."""
        return {"aliasing.keys": self.aliased, "aliasing.visits": self.visits}


def aliasing(keys: Sequence[Hashable], states: Sequence[Hashable]) -> Aliasing:
    """Measure keys, such as observations within a task, against what the environment says."""
    seen: dict[Hashable, dict[Hashable, int]] = {}
    for key, state in zip(keys, states, strict=True):
        counts = seen.setdefault(key, {})
        counts[state] = counts.get(state, 0) + 1
    repeated = [counts for counts in seen.values() if sum(counts.values()) > 1]
    if not repeated:
        return Aliasing(0, 0.0, 0.0)
    visits = sum(sum(counts.values()) for counts in repeated)
    elsewhere = sum(sum(counts.values()) - max(counts.values()) for counts in repeated)
    mixed = sum(len(counts) > 1 for counts in repeated)
    return Aliasing(len(repeated), mixed / len(repeated), elsewhere / visits)
