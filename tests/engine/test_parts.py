"""Parts read together, in blocks and piece by piece, as dense attention reads them in one go."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.engine import division
from shoal.engine.parts import BLOCK, Part, Parts

K, D = 2, 16


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[Part], int, int]:
    """Parts, the rows of their step and the slots of their slab, with gaps between pieces."""
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    rows = list(draw(st.permutations(range(sum(sizes) + draw(st.integers(0, 2))))))
    parts: list[Part] = []
    slot = 0
    for size in sizes:
        pieces = []
        for length in draw(st.lists(st.integers(1, 2 * BLOCK + 3), min_size=1, max_size=3)):
            slot += draw(st.integers(0, 2))
            pieces.append((slot, length))
            slot += length
        pieces = draw(st.permutations(pieces))
        keys = sum(length for _, length in pieces)
        seen = draw(st.lists(st.integers(1, keys), min_size=size, max_size=size))
        parts.append(Part(rows[:size], seen, pieces))
        rows = rows[size:]
    return parts, sum(sizes) + len(rows), slot


def drawn(
    rows: int, slots: int, heads: int, dtype: torch.dtype, spread: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries, in front of what a product put behind them, and a slab."""
    draw = torch.Generator().manual_seed(1000 * rows + slots)
    qkv = spread * torch.randn(rows, (heads + 2) * K, D, generator=draw)
    slab_N2Kd = torch.randn(slots, 2, K, D, generator=draw)
    return qkv.to(dtype)[:, : heads * K].view(rows, K, heads, D), slab_N2Kd.to(dtype)


def attended(
    levels: list[list[Part]], q_TKGd: torch.Tensor, slab_N2Kd: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    out_TKGd = torch.full(q_TKGd.shape, torch.nan, dtype=q_TKGd.dtype)
    lse_TKG = torch.full(q_TKGd.shape[:3], -torch.inf)
    for parts in levels:
        Parts(parts).attend(q_TKGd, slab_N2Kd, out_TKGd, lse_TKG)
    return out_TKGd, lse_TKG


def check(
    levels: list[list[Part]], q_TKGd: torch.Tensor, slab_N2Kd: torch.Tensor, near: float
) -> None:
    """Every row against dense attention over all it sees, in double precision."""
    out_TKGd, lse_TKG = attended(levels, q_TKGd, slab_N2Kd)
    visible: dict[int, list[int]] = {}
    for part in [part for level in levels for part in level]:
        slots = [slot for start, length in part.pieces for slot in range(start, start + length)]
        for row, seen in zip(part.rows, part.seen, strict=True):
            visible.setdefault(row, []).extend(slots[:seen])
    slab = slab_N2Kd.double()
    for row, slots in visible.items():
        for k in range(K):
            keys_Ld, values_Ld = slab[slots, :, k].unbind(1)
            scores_GL = q_TKGd[row, k].double() @ keys_Ld.T / D**0.5
            expected = scores_GL.softmax(-1) @ values_Ld
            torch.testing.assert_close(out_TKGd[row, k].double(), expected, rtol=near, atol=near)
            expected = scores_GL.logsumexp(-1)
            torch.testing.assert_close(lse_TKG[row, k].double(), expected, rtol=1e-5, atol=1e-5)
    rest = [row for row in range(len(q_TKGd)) if row not in visible]
    assert out_TKGd[rest].isnan().all()
    assert (lse_TKG[rest] == -torch.inf).all()


FORMATS = [(torch.float32, 1e-5), (torch.bfloat16, 2**-8)]


@pytest.mark.parametrize(("dtype", "near"), FORMATS)
@given(layout=layouts(), heads=st.sampled_from([1, 3, 7]))
@settings(max_examples=25)
def test_rows_anywhere_see_the_first_of_their_parts_keys(
    dtype: torch.dtype, near: float, layout: tuple[list[Part], int, int], heads: int
) -> None:
    parts, rows, slots = layout
    check([parts], *drawn(rows, slots, heads, dtype), near)


@given(layout=layouts(), heads=st.sampled_from([1, 3]), form=st.sampled_from(FORMATS))
@settings(max_examples=25)
def test_keys_may_be_read_in_pieces(
    layout: tuple[list[Part], int, int], heads: int, form: tuple[torch.dtype, float]
) -> None:
    parts, rows, slots = layout
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(division, "LEAST", 4)
        patch.setattr(torch, "get_num_threads", lambda: 7)
        check([parts], *drawn(rows, slots, heads, form[0]), form[1])


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-6)])
def test_a_result_that_is_there_is_merged_with_the_new_one(dtype: torch.dtype, near: float) -> None:
    levels = [
        [Part(range(9), [100] * 9, [(0, 100)]), Part([9], [3], [(400, 3)])],
        [Part(range(3, 10), [150] * 7, [(100, 150)])],
        [Part([4, 0], [70, 1], [(250, 70)])],
    ]
    check(levels, *drawn(12, 410, 3, dtype), near)


def test_scores_of_a_hundred_neither_overflow_nor_lose_their_differences() -> None:
    q_TKGd, slab_N2Kd = drawn(20, 300, 3, torch.float32, 2.0)
    q_TKGd[..., 0] = 40.0
    slab_N2Kd[:, 0, :, 0] = 10.0  # adds 100 to every score
    levels = [[Part(range(20), range(281, 301), [(0, 300)])]]
    check(levels, q_TKGd, slab_N2Kd, 1e-4)
    _, lse_TKG = attended(levels, q_TKGd, slab_N2Kd)
    assert lse_TKG.min() > 80


def test_keys_that_grow_along_the_blocks_are_weighed_anew() -> None:
    """Each block's largest score is above everything before it, by more than exp can hold."""
    q_TKGd, slab_N2Kd = drawn(8, 4 * BLOCK, 3, torch.float32)
    q_TKGd[..., 0] = 40.0
    slab_N2Kd[:, 0, :, 0] = torch.arange(4 * BLOCK)[:, None] / 4.0
    check([[Part(range(8), [4 * BLOCK] * 8, [(0, 4 * BLOCK)])]], q_TKGd, slab_N2Kd, 1e-3)
