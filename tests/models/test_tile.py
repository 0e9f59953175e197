"""The product in registers is a matrix product, wherever its operands lie in their arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shoal.models.native import Loop
from shoal.models.tile import ROWS, WIDTH, lift, multiply, scale


@Loop
def _multiply(
    c_N: Any, c_at: Any, a_N: Any, a_at: Any, row: Any, step: Any, b_N: Any, n: Any
) -> None:
    multiply(c_N, c_at, a_N, a_at, row, step, b_N, n)


@pytest.mark.parametrize("n", [1, 2, 64, 67])
@pytest.mark.parametrize("transposed", [False, True])
def test_sums_of_products_are_added_to_a_tile_and_to_nothing_beside_it(
    n: int, transposed: bool
) -> None:
    draw = np.random.default_rng(n)
    a_RK = draw.standard_normal((ROWS, n), np.float32)
    b_KW = draw.standard_normal((n, WIDTH), np.float32)
    c_RW = draw.standard_normal((ROWS + 2, WIDTH), np.float32)
    expected = c_RW.astype(np.float64)
    expected[1:-1] += a_RK.astype(np.float64) @ b_KW
    stored = a_RK.T if transposed else a_RK
    a_N = np.concatenate((np.full(5, np.nan, np.float32), stored.ravel()))
    row, step = (1, ROWS) if transposed else (n, 1)
    _multiply(0, c_RW.reshape(-1), WIDTH, a_N, 5, row, step, b_KW.reshape(-1), n)
    np.testing.assert_allclose(c_RW, expected, rtol=1e-5, atol=1e-5)
    assert (c_RW[[0, -1]] == expected[[0, -1]]).all()


@Loop
def _row(c_N: Any, b_N: Any, at: Any) -> None:
    scale(c_N, at, b_N, 3)
    lift(c_N, at, b_N, 3)


def test_a_row_is_scaled_and_lifted_where_it_lies() -> None:
    draw = np.random.default_rng(0)
    c_N = draw.standard_normal(3 * WIDTH, np.float32)
    b_N = draw.standard_normal(WIDTH + 5, np.float32)
    own = slice(WIDTH + 1, 2 * WIDTH + 1)
    expected = c_N.copy()
    expected[own] = np.maximum(c_N[own] * b_N[3 : WIDTH + 3], b_N[3 : WIDTH + 3])
    _row(0, c_N, b_N, WIDTH + 1)
    np.testing.assert_array_equal(c_N, expected)
