"""Rings: the slowest edge first, then the sum, held to trying all of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.collectives.topology import arrange, best_tour, worth


def by_trying_all(cost: np.ndarray) -> tuple[float, float]:
    n = len(cost)
    return min(worth(cost, [0, *rest]) for rest in itertools.permutations(range(1, n)))


@given(st.integers(2, 7), st.integers(0, 2**31), st.booleans())
@settings(max_examples=60)
def test_the_exact_tour_is_the_best_of_all(n, seed, ties):
    rng = np.random.default_rng(seed)
    cost = rng.integers(1, 4, (n, n)).astype(float) if ties else rng.lognormal(size=(n, n))
    np.fill_diagonal(cost, np.inf)
    tour = best_tour(cost)
    assert tour is not None and sorted(tour) == list(range(n))
    assert worth(cost, tour) == pytest.approx(by_trying_all(cost))


def test_the_slowest_edge_counts_before_the_sum():
    cost = np.full((4, 4), 10.0)
    cost[0, 1] = cost[1, 2] = cost[2, 3] = 1.0
    cost[3, 0] = 20.0  # least sum: 23, but its slowest edge is 20
    tour = best_tour(cost)
    assert tour is not None and worth(cost, tour)[0] == 10.0


def test_beyond_twelve_the_tour_beats_an_arbitrary_one():
    rng = np.random.default_rng(0)
    cost = 1000 / rng.uniform(10, 1000, (16, 16))
    np.fill_diagonal(cost, np.inf)
    tour = best_tour(cost)
    assert tour is not None and sorted(tour) == list(range(16))
    assert worth(cost, tour)[0] < 0.3 * worth(cost, list(range(16)))[0]


def test_without_measurements_the_ring_keeps_its_order_and_newcomers_follow():
    assert arrange("dacb", keep="dc") == (tuple("dcab"), ())


def test_an_unreachable_pair_is_no_edge_and_a_peer_without_a_ring_goes():
    ring, dropped = arrange("abcd", unreachable=[("a", "b")])
    assert set(ring) == set("abcd") and not dropped
    assert ("a", "b") not in {(ring[i], ring[(i + 1) % 4]) for i in range(4)}
    assert arrange("ab", keep="a", unreachable=[("a", "b")]) == (("a",), ("b",))
    assert arrange("ab", keep="a", unreachable=[("b", "a")]) == (("a",), ("b",))
    ring, dropped = arrange("abcd", keep="abc", unreachable=[(x, "d") for x in "abc"])
    assert (set(ring), dropped) == (set("abc"), ("d",))


@given(st.integers(1, 6), st.integers(0, 2**31))
@settings(max_examples=80)
def test_a_ring_has_no_unreachable_edge_and_names_everybody_once(n, seed):
    rng = np.random.default_rng(seed)
    peers = [f"p{i}" for i in range(n)]
    pairs = [(a, b) for a in peers for b in peers if a != b and rng.random() < 0.4]
    ring, dropped = arrange(peers, unreachable=pairs)
    assert sorted([*ring, *dropped]) == peers
    if len(ring) > 1:
        edges = {(ring[i], ring[(i + 1) % len(ring)]) for i in range(len(ring))}
        assert not edges & set(pairs)
