"""Auctions: pure functions from bids to who gets what at which price.

One good: sealed bids, the best wins at its own or the second best price. Several goods: the
Vickrey-Clarke-Groves mechanism over bundles; the allocation worth most to all is found exactly,
by dynamic programming over sets of goods, and each winner pays what its presence costs the others.
Ties go by ``order``, which names all bidders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Rule = Literal["first_price", "second_price"]
Best = Literal["highest", "lowest"]

MOST_GOODS = 12
"""Sets of goods grow as 2 to their number."""

Bundle = frozenset[str]
Offers = Mapping[Bundle, float]
"""What a bidder would give for each bundle; it gets at most one of them."""


@dataclass(frozen=True, slots=True)
class Sale:
    """Who gets which goods at which price, and what that is worth to all."""

    goods: Mapping[str, Bundle]
    prices: Mapping[str, float]
    worth: float


def sealed(
    bids: Mapping[str, float], order: Sequence[str], rule: Rule, best: Best
) -> tuple[str, float]:
    """The winner of one good and its price; a single bidder pays its own bid."""
    sign = 1 if best == "highest" else -1
    ranked = sorted(bids, key=lambda name: (-sign * bids[name], order.index(name)))
    second = rule == "second_price" and len(ranked) > 1
    return ranked[0], bids[ranked[second]]


def vcg(bids: Mapping[str, Offers], order: Sequence[str]) -> Sale:
    """The best allocation, and the Clarke price of each winner.

    The price of a winner is what the others would have had without it, less what they have.
    """
    goods = sorted({good for offers in bids.values() for bundle in offers for good in bundle})
    assert len(goods) <= MOST_GOODS, "whoever reads the bids has seen to that"
    bidders = [name for name in order if name in bids]
    given, worth = _allocated(bids, bidders, goods)
    prices = {}
    for name, bundle in given.items():
        _, without = _allocated(bids, [other for other in bidders if other != name], goods)
        prices[name] = without - (worth - bids[name][bundle])
    return Sale(given, prices, worth)


def _allocated(
    bids: Mapping[str, Offers], bidders: Sequence[str], goods: Sequence[str]
) -> tuple[dict[str, Bundle], float]:
    """The allocation worth most; of equal ones the first found in the bidders' order."""
    places = {good: 1 << place for place, good in enumerate(goods)}
    best: dict[int, tuple[float, dict[str, Bundle]]] = {0: (0.0, {})}
    for name in bidders:
        after = dict(best)
        for bundle, value in bids[name].items():
            mask = sum(places[good] for good in bundle)
            for taken, (worth, given) in best.items():
                both = taken | mask
                if not taken & mask and worth + value > after.get(both, (-1.0, {}))[0]:
                    after[both] = (worth + value, given | {name: bundle})
        best = after
    worth, given = max(best.values(), key=lambda found: found[0])
    return given, worth
