"""Attention by two products is dense attention, to the rounding of bf16 weights."""

from __future__ import annotations

import pytest
import torch

from shoal.engine import wide
from shoal.engine.attention import StepAttention, Work
from shoal.engine.pool import Extent, KVPool
from shoal.engine.tree import Node

K, G, D = 2, 3, 64


def dense(
    q_RKGd: torch.Tensor, k_KLd: torch.Tensor, v_KLd: torch.Tensor, *, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in double precision, in the plainest way."""
    scores = torch.einsum("rkgd,kld->rkgl", q_RKGd.double(), k_KLd.double()) / D**0.5
    if causal:
        later = torch.ones(scores.shape[0], scores.shape[-1]).triu(1).bool()
        scores = scores.masked_fill(later[:, None, None], -torch.inf)
    out = torch.einsum("rkgl,kld->rkgd", scores.softmax(-1), v_KLd.double())
    return out, scores.logsumexp(-1)


def drawn(rows: int, keys: int, spread: float) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(rows + keys)
    q_RKGd = (spread * torch.randn(rows, K, G, D)).bfloat16()
    kv_L2Kd = torch.randn(keys, 2, K, D).bfloat16()
    return q_RKGd, *kv_L2Kd.permute(1, 2, 0, 3)


@pytest.mark.parametrize(
    ("rows", "keys", "causal"),
    [(64, 64, True), (131, 131, True), (300, 300, True), (65, 700, False), (100, 3, False)],
)
def test_results_are_dense_attention_to_the_rounding_of_a_weight(
    rows: int, keys: int, causal: bool
) -> None:
    q, k, v = drawn(rows, keys, 2.0)
    out, lse = wide.attend(q, k, v, causal=causal)
    true_out, true_lse = dense(q, k, v, causal=causal)
    assert (out.double() - true_out).abs().max() < 0.04
    assert (out.double() - true_out).square().mean().sqrt() < 0.004
    assert (lse.double() - true_lse).abs().max() < 0.01
    assert lse.dtype == torch.float32


def test_scores_of_a_hundred_neither_overflow_nor_lose_their_differences() -> None:
    q, k, v = drawn(64, 200, 2.0)
    q[..., 0] = 60.0
    k[..., 0] = 12.0  # adds 90 to every score, of which bf16 alone would keep half a unit
    out, lse = wide.attend(q, k, v)
    true_out, true_lse = dense(q, k, v, causal=False)
    assert true_lse.min() > 80
    assert (out.double() - true_out).square().mean().sqrt() < 0.004
    assert ((lse.double() - true_lse).abs() / true_lse).max() < 1e-3


def test_few_rows_and_fp32_keep_to_the_flash_kernel() -> None:
    assert not wide.is_wide(8, 8 * 4000, torch.bfloat16)
    assert not wide.is_wide(64, 64 * 64 // 2, torch.bfloat16)
    assert not wide.is_wide(512, 512 * 512, torch.float32)
    assert wide.is_wide(64, 64 * 400, torch.bfloat16) == wide.fast()


def test_a_step_in_bf16_takes_both_ways_to_the_same_results() -> None:
    torch.manual_seed(3)
    pool = KVPool(
        layers=1, kv_heads=K, head_dim=D, dtype=torch.bfloat16, max_bytes=1200 * 2 * K * D * 2
    )
    pool.slab.normal_()
    node = Node(range(600), Extent(0, 600), None)
    node.filled = 300
    works = [Work(node, 300, 300)]  # a long run, causal, over the earlier part of its node
    q_THd = torch.randn(300, K * G, D).bfloat16()
    kv_T2Kd = torch.randn(300, 2, K, D).bfloat16()
    out = StepAttention(works, pool)(0, q_THd, kv_T2Kd).double()
    keys, values = pool.slab[0, :600].double().unbind(1)
    scores = torch.einsum("tkgd,lkd->tkgl", q_THd.double().view(300, K, G, D), keys) / D**0.5
    later = torch.ones(300, 600).triu(301).bool()
    weights = scores.masked_fill(later[:, None, None], -torch.inf).softmax(-1)
    expected = torch.einsum("tkgl,lkd->tkgd", weights, values).flatten(1, 2)
    assert (out - expected).square().mean().sqrt() < 0.003
