"""Comparisons that agents have in common: each pair of a text and an anchor is read once.

The anchors of two agents are often the same texts, and so are the texts they are asked about: what
the first agent's call has compared, the next one's need not.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch

from shoal.engine.kvcomm.anchors import Anchor, Comparison, compare
from shoal.engine.segments import KVSegment

PAIRS = 128
"""Pairs that are remembered: for each some tens of kilobytes."""

_Pair = tuple[str, tuple[int, ...], tuple[int, ...]]


class Comparer:
    """Remembers comparisons by scope and tokens; the base caches of equal tokens are equal."""

    def __init__(self, most: int = PAIRS) -> None:
        self._most = most
        self._pairs: OrderedDict[_Pair, Comparison] = OrderedDict()
        self.read = 0  # anchors that were read, for tests and telemetry

    def __call__(self, scope: str, base: KVSegment, anchors: Sequence[Anchor]) -> Comparison:
        """As :func:`compare` says, of which only what is not known yet is computed."""
        pairs = [(scope, base.tokens, anchor.base.tokens) for anchor in anchors]
        known = {pair: self._pairs[pair] for pair in pairs if pair in self._pairs}
        each = dict(zip(pairs, anchors, strict=True))
        new = {pair: anchor for pair, anchor in each.items() if pair not in known}
        if new:
            found = compare(base, list(new.values()))
            known |= {pair: found.of(index) for index, pair in enumerate(new)}
            self.read += len(new)
        for pair in pairs:
            self._pairs[pair] = known[pair]
            self._pairs.move_to_end(pair)
        while len(self._pairs) > self._most:
            self._pairs.popitem(last=False)
        return _together([known[pair] for pair in pairs])


def _together(found: Sequence[Comparison]) -> Comparison:
    return Comparison(
        torch.cat([each.values_A for each in found]),
        found[0].length,
        torch.cat([each.tokens_2An for each in found], 1),
        torch.cat([each.channels_2ALKd for each in found], 1),
    )
