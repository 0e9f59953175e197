"""Runs read their pieces of cache where they lie as dense attention reads them in one piece."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.engine import division
from shoal.engine.ragged import Run, Runs

K, G, D = 2, 3, 16
UNTOUCHED = 7.0


@contextmanager
def on(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[Run], int, int]:
    """Runs, the rows of their step and the slots of their slab: gaps between rows and slots."""
    runs: list[Run] = []
    lengths: list[tuple[int, int]] = []  # (run, length) of every piece
    row = 0
    for number in range(draw(st.integers(1, 4))):
        rows = draw(st.integers(1, 32))
        row += draw(st.integers(0, 2))
        above = draw(st.lists(st.integers(1, 80), max_size=3))
        lengths += [(number, length) for length in (*above, rows + draw(st.integers(0, 20)))]
        runs.append(Run(row, rows, []))
        row += rows
    slot = 0
    starts = [0] * len(lengths)
    for piece in draw(st.permutations(range(len(lengths)))):
        slot += draw(st.integers(0, 3))
        starts[piece] = slot
        slot += lengths[piece][1]
    placed = [
        Run(
            run.first,
            run.rows,
            [
                (start, length)
                for start, (owner, length) in zip(starts, lengths, strict=True)
                if owner == number
            ],
        )
        for number, run in enumerate(runs)
    ]
    order = draw(st.permutations(placed))
    return order, row + draw(st.integers(0, 2)), slot + draw(st.integers(0, 3))


def drawn(rows: int, slots: int, dtype: torch.dtype, spread: float = 1.0) -> list[torch.Tensor]:
    """Queries, in front of what a product put behind them, and a slab."""
    draw = torch.Generator().manual_seed(1000 * rows + slots)
    qkv = spread * torch.randn(rows, (G + 2) * K, D, generator=draw)
    slab_N2Kd = torch.randn(slots, 2, K, D, generator=draw)
    q_TKGd = qkv.to(dtype)[:, : G * K].view(rows, K, G, D)
    return [q_TKGd, slab_N2Kd.to(dtype)]


def attended(
    runs: list[Run], q_TKGd: torch.Tensor, slab_N2Kd: torch.Tensor, threads: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    out_TKGd = torch.full(q_TKGd.shape, UNTOUCHED, dtype=q_TKGd.dtype)
    lse_TKG = torch.full(q_TKGd.shape[:3], UNTOUCHED)
    with on(threads):
        Runs(runs).attend(q_TKGd, slab_N2Kd, out_TKGd, lse_TKG)
    return out_TKGd, lse_TKG


def dense(
    runs: list[Run], q_TKGd: torch.Tensor, slab_N2Kd: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in double precision, a row and a head at a time."""
    out_TKGd = torch.full(q_TKGd.shape, UNTOUCHED, dtype=torch.float64)
    lse_TKG = torch.full(q_TKGd.shape[:3], UNTOUCHED, dtype=torch.float64)
    q_TKGd, slab_N2Kd = q_TKGd.double(), slab_N2Kd.double()
    for run in runs:
        slots = [slot for start, length in run.pieces for slot in range(start, start + length)]
        for i in range(run.rows):
            seen = slots[: len(slots) - (run.rows - 1 - i)]
            row = run.first + i
            for k in range(K):
                keys_Ld, values_Ld = slab_N2Kd[seen, :, k].unbind(1)
                scores_GL = q_TKGd[row, k] @ keys_Ld.T / D**0.5
                out_TKGd[row, k] = scores_GL.softmax(-1) @ values_Ld
                lse_TKG[row, k] = scores_GL.logsumexp(-1)
    return out_TKGd, lse_TKG


def check(
    runs: list[Run],
    rows: int,
    slots: int,
    dtype: torch.dtype,
    near: float,
    *,
    threads: int = 1,
    spread: float = 1.0,
) -> None:
    q_TKGd, slab_N2Kd = drawn(rows, slots, dtype, spread)
    out_TKGd, lse_TKG = attended(runs, q_TKGd, slab_N2Kd, threads)
    true_TKGd, true_TKG = dense(runs, q_TKGd, slab_N2Kd)
    torch.testing.assert_close(out_TKGd.double(), true_TKGd, rtol=near, atol=1e-5)
    torch.testing.assert_close(lse_TKG.double(), true_TKG, rtol=1e-5, atol=1e-5)


FORMATS = [(torch.float32, 1e-5), (torch.bfloat16, 2**-8)]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("dtype", "near"), FORMATS)
def test_any_layout_gives_dense_attention_and_leaves_other_rows_as_they_were(
    dtype: torch.dtype, near: float, threads: int
) -> None:
    @given(layouts())
    @settings(max_examples=40)
    def any_layout(layout: tuple[list[Run], int, int]) -> None:
        check(*layout, dtype, near, threads=threads)

    any_layout()


def test_keys_may_be_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(division, "LEAST", 4)

    @given(layouts(), st.sampled_from(FORMATS))
    @settings(max_examples=40)
    def any_layout(layout: tuple[list[Run], int, int], form: tuple[torch.dtype, float]) -> None:
        check(*layout, *form, threads=7)

    any_layout()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("dtype", "near"), FORMATS)
def test_scores_that_are_far_apart_neither_overflow_nor_lose_the_largest(
    dtype: torch.dtype, near: float, threads: int
) -> None:
    runs = [Run(0, 4, [(50, 30), (3, 9)]), Run(5, 1, [(20, 25)])]
    check(runs, 6, 90, dtype, near, threads=threads, spread=40.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_that_sees_only_itself_gets_its_own_value(dtype: torch.dtype) -> None:
    q_TKGd, slab_N2Kd = drawn(3, 8, dtype)
    out_TKGd, lse_TKG = attended([Run(0, 3, [(4, 3)])], q_TKGd, slab_N2Kd)
    assert torch.equal(out_TKGd[0], slab_N2Kd[4, 1, :, None].expand(K, G, D))
    scores_KG = (q_TKGd[0].double() * slab_N2Kd[4, 0, :, None].double()).sum(-1) / D**0.5
    torch.testing.assert_close(lse_TKG[0].double(), scores_KG, rtol=1e-5, atol=1e-5)


def test_a_row_sees_nothing_of_the_rows_after_it() -> None:
    q_TKGd, slab_N2Kd = drawn(6, 40, torch.float32)
    runs = [Run(0, 6, [(0, 20), (30, 6)])]
    before, _ = attended(runs, q_TKGd, slab_N2Kd)
    slab_N2Kd[33:36] = 99.0
    after, _ = attended(runs, q_TKGd, slab_N2Kd)
    assert torch.equal(before[:3], after[:3])
    assert not torch.isclose(before[3:], after[3:]).all(-1).any()


def test_one_piece_may_belong_to_several_runs_and_the_order_of_earlier_ones_is_free() -> None:
    shared = [(0, 30), (30, 11)]
    runs = [Run(0, 2, [*shared, (41, 2)]), Run(2, 3, [*shared[::-1], (43, 3)])]
    check(runs, 5, 46, torch.float32, 1e-5)
    q_TKGd, slab_N2Kd = drawn(5, 46, torch.float32)
    turned = [Run(0, 2, [*shared[::-1], (41, 2)]), Run(2, 3, [*shared, (43, 3)])]
    torch.testing.assert_close(
        attended(turned, q_TKGd, slab_N2Kd), attended(runs, q_TKGd, slab_N2Kd), rtol=1e-5, atol=1e-5
    )
