"""Draws are functions of their names: equal everywhere, independent between names, uniform."""

from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from shoal.core import rng

keys = st.lists(st.integers() | st.text() | st.booleans(), max_size=4)


def test_draws_are_the_same_on_every_machine() -> None:
    digest = hashlib.blake2b(b"int:7\x1fstr:alice\x1fint:3", digest_size=8).digest()
    number = int.from_bytes(digest, "little")
    assert rng.seed_of(7, "alice", 3) == number >> 1 == 3154822911967469459
    assert rng.uniform(7, "alice", 3) == (number >> 11) / 2**53


@given(keys)
def test_a_draw_is_a_function_of_its_name(name: list[object]) -> None:
    assert rng.seed_of(*name) == rng.seed_of(*name)
    assert 0 <= rng.seed_of(*name) < 2**63
    assert 0 <= rng.uniform(*name) < 1
    assert rng.generator(*name).integers(1 << 60) == rng.generator(*name).integers(1 << 60)


def test_keys_of_different_types_or_places_draw_differently() -> None:
    names: list[tuple[object, ...]] = [(1,), ("1",), (True,), (1, ""), ("a", "b"), ("ab",), ()]
    assert len({rng.seed_of(*name) for name in names}) == len(names)


def test_draws_of_neighbouring_names_are_uniform_and_uncorrelated() -> None:
    draws = np.array([[rng.uniform(seed, step) for step in range(200)] for seed in range(100)])
    assert stats.kstest(draws.ravel(), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(draws[:, :-1].ravel(), draws[:, 1:].ravel())[0, 1]) < 0.03
    assert abs(np.corrcoef(draws[:-1].ravel(), draws[1:].ravel())[0, 1]) < 0.03
