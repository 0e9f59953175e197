"""Numbers in compiled loops are torch's and numpy's; a loop gives the same alone and in threads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numba
import numpy as np
import pytest
import torch
from numba import prange, types

from shoal.models.native import LOWEST, SMALL, Loop, array, exp, narrow, of_rank, rank, wide

_thread = types.ExternalFunction("pthread_self", types.uintp())


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@Loop
def narrowed(x_N: Any, out_N: Any) -> None:
    for i in prange(len(x_N)):
        out_N[i] = narrow(x_N[i], out_N[i])


@Loop
def widened(x_N: Any, out_N: Any) -> None:
    for i in prange(len(x_N)):
        out_N[i] = wide(x_N[i])


@Loop
def exponentials(x_N: Any, out_N: Any) -> None:
    for i in prange(len(x_N)):
        out_N[i] = exp(x_N[i])


@Loop
def ranked(x_N: Any, ranks_N: Any, back_N: Any) -> None:
    for i in prange(len(x_N)):
        ranks_N[i] = rank(x_N[i])
        back_N[i] = of_rank(ranks_N[i])


@Loop
def marked(threads_N: Any) -> None:
    for i in prange(len(threads_N)):
        threads_N[i] = _thread()


def every_kind() -> torch.Tensor:
    """Numbers of every exponent and sign, and bf16 numbers with ties and their neighbours."""
    draw = np.random.default_rng(0)
    halves = np.arange(0, 1 << 32, 1 << 16, dtype=np.uint32)
    ends = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    anything = draw.integers(0, 1 << 32, 100_000, dtype=np.uint32)
    bits = np.concatenate(((halves[:, None] | ends).ravel(), anything))
    numbers = bits.view(np.float32)
    return torch.from_numpy(numbers[~np.isnan(numbers)])


def test_numbers_are_rounded_to_bf16_as_torch_rounds_them_bit_for_bit() -> None:
    x_N = every_kind()
    assert torch.isinf(x_N).any() and (x_N == 0).any()
    out_N = torch.empty(len(x_N), dtype=torch.bfloat16)
    narrowed(0, array(x_N), array(out_N))
    assert torch.equal(out_N.view(torch.int16), x_N.bfloat16().view(torch.int16))


def test_every_bf16_number_is_widened_to_the_fp32_number_it_is() -> None:
    all_N = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.bfloat16)
    x_N = all_N[~all_N.isnan()]
    out_N = torch.empty(len(x_N))
    widened(0, array(x_N), array(out_N))
    assert torch.equal(out_N.view(torch.int32), x_N.float().view(torch.int32))


def test_fp32_numbers_stay_as_they_are() -> None:
    x_N = every_kind()
    out_N, wide_N = torch.empty_like(x_N), torch.empty_like(x_N)
    narrowed(0, array(x_N), array(out_N))
    widened(0, array(x_N), array(wide_N))
    for same_N in (out_N, wide_N):
        assert torch.equal(same_N.view(torch.int32), x_N.view(torch.int32))


def test_exp_is_right_to_3e_7_of_itself() -> None:
    first, last = np.array([64, 88], np.float32).view(np.uint32)
    all_N = np.arange(first, last + 1).astype(np.uint32).view(np.float32)  # where it is worst
    x_N = np.concatenate((np.linspace(-87, 88, 1_000_003).astype(np.float32), all_N))
    out_N = np.empty_like(x_N)
    exponentials(0, x_N, out_N)
    true_N = np.exp(x_N.astype(np.float64))
    assert (np.abs(out_N - true_N) / true_N).max() < 3e-7


def test_exp_of_what_lies_further_out_stays_what_it_is_at_the_ends() -> None:
    x_N = np.array([-np.inf, -1e30, -100, -87.3, 88, 100, np.inf], np.float32)
    out_N = np.empty_like(x_N)
    exponentials(0, x_N, out_N)
    assert (out_N[:4] == out_N[3]).all() and 0 < out_N[3] < 2e-38
    assert (out_N[4:] == out_N[4]).all() and 1e38 < out_N[4] < np.inf


def test_ranks_order_as_numbers_do_and_give_them_back() -> None:
    x_N = np.sort(every_kind().numpy())
    ranks_N, back_N = np.empty(len(x_N), np.int32), np.empty_like(x_N)
    ranked(0, x_N, ranks_N, back_N)
    below = x_N[:-1] < x_N[1:]
    assert (ranks_N[:-1] < ranks_N[1:])[below].all()
    assert (ranks_N > LOWEST).all()
    assert (back_N.view(np.uint32) == x_N.view(np.uint32)).all()


@pytest.mark.usefixtures("two_threads")
def test_a_loop_gives_the_same_alone_and_with_two_threads() -> None:
    x_N = every_kind()
    alone_N, together_N = (torch.empty(len(x_N), dtype=torch.bfloat16) for _ in range(2))
    narrowed(SMALL, array(x_N), array(alone_N))
    narrowed(SMALL + 1, array(x_N), array(together_N))
    assert torch.equal(alone_N.view(torch.int16), together_N.view(torch.int16))


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="one processor")
@pytest.mark.usefixtures("two_threads")
def test_only_a_large_loop_runs_on_two_threads_also_after_a_small_one_was_kept_on_disk() -> None:
    threads_N = np.zeros(1000, np.uintp)
    marked(SMALL, threads_N)
    assert len(np.unique(threads_N)) == 1
    marked(SMALL + 1, threads_N)
    assert len(np.unique(threads_N)) == 2
