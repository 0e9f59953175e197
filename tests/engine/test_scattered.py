"""Attention of rows that stand anywhere: the same as of all rows, in both number formats."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from shoal.engine.scattered import Scattered

P, K, G, D = 700, 3, 3, 64


def case(seed: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(P, heads, D, generator=draw) for heads in (K * G, K, K))
    return q.to(dtype), k.to(dtype), v.to(dtype)


def of_all(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    parts = (x.double().transpose(0, 1)[None] for x in (q, k, v))
    out = F.scaled_dot_product_attention(*parts, is_causal=True, enable_gqa=True)
    return out[0].transpose(0, 1)


@pytest.mark.parametrize(
    ("places", "keys"),
    [
        (range(P), P),
        (range(3, P, 5), P),
        ([*range(40, 90), *range(600, P)], P),
        ([0], 1),
        ([0, 1, 2], 40),
        ([*range(100), 699], P),
    ],
)
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_rows_get_what_they_would_get_among_all_rows(
    places: range | list[int], keys: int, dtype: torch.dtype, near: float
) -> None:
    q, k, v = case(len(places), dtype)
    rows = list(places)
    out = Scattered(rows, keys, dtype)(q[rows], k[:keys], v[:keys])
    torch.testing.assert_close(out.double(), of_all(q, k, v)[rows], atol=near, rtol=near)


def test_a_row_sees_nothing_behind_itself() -> None:
    q, k, v = case(1, torch.bfloat16)
    rows = list(range(0, P, 3))
    plan = Scattered(rows, P, torch.bfloat16)
    before = plan(q[rows], k, v)
    k[400:], v[400:] = 9.0, 9.0
    after = plan(q[rows], k, v)
    unchanged = [index for index, row in enumerate(rows) if row < 400]
    assert torch.equal(before[unchanged], after[unchanged])
    assert not torch.equal(before, after)
