"""The Uniform Phantom of reports that come, change and go, without settling anew each time.

Same rule as :class:`~shoal.mechanisms.location.rules.UniformPhantom` (arXiv 2111.01566), kept in
sorted blocks of about sqrt(n) reports with their sums of weight: one change rewrites one block,
and the outcome is looked up among the sums and in one more block.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping

import numpy as np

from shoal.core.errors import ConfigError
from shoal.mechanisms.location.rules import Floats
from shoal.mechanisms.protocol import ReportError

_BLOCK = 1024  # reports a block holds on average; twice as many and it is cut in two


class RunningUniformPhantom:
    """Reports in [0, 1] by agent, and y after each change, in O(sqrt(n)).

    Sums of weight are taken anew from a block's weights after every change, so that rounding
    does not add up over a long life.
    """

    def __init__(
        self,
        reports: Mapping[Hashable, float] | None = None,
        weights: Mapping[Hashable, float] | None = None,
    ) -> None:
        """Start from many reports at once; every agent weighs 1 where ``weights`` is left out."""
        self._reports: dict[Hashable, tuple[float, float]] = {}
        for agent, value in (reports or {}).items():
            weight = 1.0 if weights is None else weights.get(agent, 1.0)
            self._reports[agent] = _checked(agent, value, weight)
        self._rebuild()

    def __len__(self) -> int:
        return len(self._reports)

    def report(self, agent: Hashable, value: float, weight: float = 1.0) -> None:
        """Add an agent's report, or replace the one it has.

        Raises :class:`ReportError` for a value that is no number in [0, 1] and
        :class:`ConfigError` for a weight that is negative or not finite; nothing changes then.
        """
        entry = _checked(agent, value, weight)
        if agent in self._reports:
            self._take_out(*self._reports[agent])
        self._reports[agent] = entry
        self._put_in(*entry)

    def withdraw(self, agent: Hashable) -> None:
        """Forget an agent's report; raises :class:`ReportError` where there is none."""
        if agent not in self._reports:
            raise ReportError(f"{agent!r} has no report to withdraw.")
        self._take_out(*self._reports.pop(agent))

    @property
    def value(self) -> float:
        """y; raises :class:`ReportError` while no report carries weight."""
        down_to = self._sums[::-1].cumsum()  # weight of each block and all above it
        total = down_to[-1]
        if total == 0:
            raise ReportError("There is no report with a weight to settle on.")
        crossed = self._lowest[::-1] < down_to / total
        at = int(crossed.argmax())  # the reports of all blocks above it exceed their share
        if not crossed[at]:
            return 1.0
        above = float(down_to[at - 1]) if at else 0.0
        x, w = self._blocks[len(self._blocks) - 1 - at][:, ::-1]
        inside = np.minimum(x, (above + w.cumsum()) / total).max()
        return max(above / float(total), float(inside))

    def _rebuild(self) -> None:
        entries = np.array(list(self._reports.values()), dtype=np.float64).reshape(-1, 2).T
        entries = entries[:, np.argsort(entries[0])]
        cuts = range(_BLOCK, entries.shape[1], _BLOCK)
        self._blocks: list[Floats] = np.split(entries, cuts, axis=1)
        self._lowest: Floats = np.array([block[0].min(initial=1.0) for block in self._blocks])
        self._sums: Floats = np.array([block[1].sum() for block in self._blocks])

    def _put_in(self, value: float, weight: float) -> None:
        at = self._block_of(value)
        block = self._blocks[at]
        place = block[0].searchsorted(value)
        entry = np.array([[value], [weight]])
        block = np.concatenate((block[:, :place], entry, block[:, place:]), axis=1)
        if block.shape[1] > 2 * _BLOCK:
            self._blocks.insert(at + 1, block[:, _BLOCK:])
            self._lowest = np.insert(self._lowest, at + 1, 0.0)
            self._sums = np.insert(self._sums, at + 1, 0.0)
            self._replace(at + 1, block[:, _BLOCK:])
            block = block[:, :_BLOCK]
        self._replace(at, block)

    def _take_out(self, value: float, weight: float) -> None:
        at, place = self._find(value, weight)
        block = self._blocks[at]
        block = np.concatenate((block[:, :place], block[:, place + 1 :]), axis=1)
        if block.shape[1] == 0 and len(self._blocks) > 1:
            del self._blocks[at]
            self._lowest = np.delete(self._lowest, at)
            self._sums = np.delete(self._sums, at)
        else:
            self._replace(at, block)

    def _replace(self, at: int, block: Floats) -> None:
        self._blocks[at] = block
        self._lowest[at] = block[0, 0] if block.size else 1.0
        self._sums[at] = block[1].sum()

    def _block_of(self, value: float) -> int:
        return max(0, int(self._lowest.searchsorted(value, "right")) - 1)

    def _find(self, value: float, weight: float) -> tuple[int, int]:
        """The block and the place of an entry; ties may reach over several blocks."""
        for at in range(self._block_of(value), -1, -1):
            values, weights = self._blocks[at]
            first, last = values.searchsorted(value), values.searchsorted(value, "right")
            same = (weights[first:last] == weight).nonzero()[0]
            if same.size:
                return at, int(first + same[0])
        raise AssertionError("every report is in a block")


def _checked(agent: Hashable, value: float, weight: float) -> tuple[float, float]:
    if not 0 <= value <= 1:
        raise ReportError(f"{agent!r} reports {value!r}, which is not a number within [0, 1].")
    if not (weight >= 0 and math.isfinite(weight)):
        raise ConfigError(f"The weight of {agent!r} is {weight}, but must be finite and >= 0.")
    return float(value), float(weight)
