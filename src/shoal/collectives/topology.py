"""Which ring: the one whose slowest edge is fastest, then the one with the least sum of costs.

PCCL (arXiv 2505.14065), "Topology". The official objective is the sum of edge costs alone, but a
ring runs at its slowest edge, so here the order is lexicographic: largest cost, then sum. Exact
by dynamic programming over subsets (Held and Karp) up to 12 peers: once for the bottleneck, once
for the sum over the edges that keep it. Beyond, nearest neighbours and Or-opt moves.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
EXACT = 12
"""Peers up to which the best ring is found for certain."""


def arrange(
    peers: Collection[str],
    *,
    keep: Sequence[str] = (),
    rates: Mapping[tuple[str, str], float] | None = None,
    unreachable: Collection[tuple[str, str]] = (),
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A ring of as many of these peers as can be placed, and those that cannot.

    With a rate (Mbit/s) for every reachable pair the ring is the best one; otherwise the order
    of ``keep`` with newcomers after it. An unreachable pair (from, to) is never an edge; where
    no ring avoids them all, the peer in most of them goes, newcomers first.
    """
    known = [peer for peer in keep if peer in peers]
    order = [*known, *sorted(set(peers) - set(known))]
    dropped: list[str] = []
    while order:
        ring = _ring(order, rates or {}, set(unreachable))
        if ring is not None:
            return ring, tuple(dropped)
        bad = {p: sum(p in pair and set(pair) <= set(order) for pair in unreachable) for p in order}
        worst = max(order, key=lambda p: (bad[p], p not in known, order.index(p)))
        order.remove(worst)
        dropped.append(worst)
    return (), tuple(dropped)


def _ring(
    order: Sequence[str],
    rates: Mapping[tuple[str, str], float],
    unreachable: Collection[tuple[str, str]],
) -> tuple[str, ...] | None:
    n = len(order)
    pairs = [(a, b) for a in order for b in order if a != b]
    blocked = {pair for pair in pairs if pair in unreachable}
    measured = n > 2 and all(pair in blocked or rates.get(pair, 0) > 0 for pair in pairs)
    if not measured and not any((order[i], order[(i + 1) % n]) in blocked for i in range(n)):
        return tuple(order)
    cost = np.full((n, n), np.inf)
    for i, a in enumerate(order):
        for j, b in enumerate(order):
            if i != j and (a, b) not in blocked:
                cost[i, j] = 1000.0 / rates[a, b] if measured else 1.0
    tour = best_tour(cost)
    if tour is None:
        return None
    start = tour.index(min(range(n), key=lambda i: order[i]))
    return tuple(order[i] for i in (*tour[start:], *tour[:start]))


def worth(cost: Floats, tour: Sequence[int]) -> tuple[float, float]:
    """Largest and summed cost of a closed tour."""
    edges = cost[np.asarray(tour), np.roll(tour, -1)]
    return float(edges.max()), float(edges.sum())


def best_tour(cost: Floats) -> list[int] | None:
    """The closed tour of least (largest, summed) cost [n, n]; None where every tour is infinite.

    Exact up to :data:`EXACT` nodes.
    """
    n = len(cost)
    if n == 1:
        return [0]
    if n > EXACT:
        return _improved(cost)
    bottleneck = _held_karp(cost, np.maximum)
    if bottleneck is None:
        return None
    largest = worth(cost, bottleneck)[0]
    return _held_karp(np.where(cost <= largest, cost, np.inf), np.add)


def _held_karp(cost: Floats, join: np.ufunc) -> list[int] | None:
    """Exact least tour from node 0 where a path's cost is the joined cost of its edges."""
    n = len(cost)
    inner = n - 1
    best = np.full((1 << inner, inner), np.inf)  # [nodes visited, last of them]
    came = np.zeros((1 << inner, inner), dtype=np.int8)
    for j in range(inner):
        best[1 << j, j] = cost[0, j + 1]
    for visited in range(1, 1 << inner):
        for j in range(inner):
            rest = visited & ~(1 << j)
            if visited >> j & 1 and rest:
                through = join(best[rest], cost[1:, j + 1])
                came[visited, j] = at = int(through.argmin())
                best[visited, j] = through[at]
    closed = join(best[-1], cost[1:, 0])
    last = int(closed.argmin())
    if not np.isfinite(closed[last]):
        return None
    tour, visited = [], (1 << inner) - 1
    while visited:
        tour.append(last + 1)
        visited, last = visited & ~(1 << last), int(came[visited, last])
    return [0, *reversed(tour)]


def _improved(cost: Floats) -> list[int] | None:
    """Nearest neighbours from every node, then Or-opt: move runs of up to three nodes."""
    n = len(cost)
    best = min((_nearest(cost, start) for start in range(n)), key=lambda t: worth(cost, t))
    better = True
    while better:
        better = False
        for length in (1, 2, 3):
            for at in range(n):
                turned = [*best[at:], *best[:at]]
                run, rest = turned[:length], turned[length:]
                for place in range(1, len(rest)):
                    moved = [*rest[:place], *run, *rest[place:]]
                    if worth(cost, moved) < worth(cost, best):
                        best, better = moved, True
    return best if np.isfinite(worth(cost, best)[0]) else None


def _nearest(cost: Floats, start: int) -> list[int]:
    tour, left = [start], set(range(len(cost))) - {start}
    while left:
        nearest = min(left, key=lambda j: (cost[tour[-1], j], j))
        tour.append(nearest)
        left.remove(nearest)
    return tour
