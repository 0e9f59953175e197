"""Near vectors by their signs: nearly those of the exact search, after any changes."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.core.errors import ConfigError
from shoal.tools.retrieval.dense import Dense


def clustered(rows: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(50, 256))
    vectors = centres[rng.integers(50, size=rows)] + 0.7 * rng.normal(size=(rows, 256))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_the_nearest_are_those_of_the_exact_search() -> None:
    vectors, queries = np.split(clustered(3_040, 0), [3_000])
    dense = Dense(256)
    dense.add_all(range(1_000), vectors[:1_000])
    dense.add_all(range(1_000, 3_000), vectors[1_000:])
    found = 0
    for query in queries:
        exact = set(np.argsort(-(vectors @ query))[:10].tolist())
        near = dense.nearest(query, 50)
        assert len(near) == 50
        cosines = dense.cosines(query, near)
        assert (np.diff(cosines) <= 0).all()
        assert np.allclose(cosines, vectors[near] @ query, atol=2e-3)
        found += len(exact & set(near.tolist()))
    assert found / 400 > 0.9


def test_what_is_removed_is_not_found_and_its_slot_is_used_again() -> None:
    vectors = clustered(200, 2)
    dense = Dense(256)
    dense.add_all(range(200), vectors)
    assert dense.nearest(vectors[7], 1).tolist() == [7]
    dense.remove(7)
    assert 7 not in dense.nearest(vectors[7], 200).tolist()
    assert len(dense.nearest(vectors[7], 500)) == 199
    dense.add_all([7], vectors[7:8])
    assert dense.nearest(vectors[7], 1).tolist() == [7]


def test_none_and_odd_dimensions() -> None:
    assert Dense(64).nearest(np.ones(64, np.float32), 5).tolist() == []
    with pytest.raises(ConfigError, match="multiple of 64"):
        Dense(100)
