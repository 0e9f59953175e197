"""Attention of many rows in bf16: two products of oneDNN's around an exponential.

torch's CPU flash kernel multiplies bf16 at the speed of fp32 where rows are many (30 to 45 GFLOP/s
a core on processors whose bf16 products reach 400). oneDNN's products are fast but round scores to
bf16, which would cost an attention weight of e^-8 up to 3 % of itself. So scores are computed
twice: the first product only finds every row's largest score, the second one subtracts it before
it rounds. What matters in a softmax then lies near zero, where bf16 is fine; the error of a result
stays that of a bf16 weight (2^-9 of itself).

oneDNN takes some milliseconds to get ready for a product of a new shape: rows and keys are padded
to few shapes.

Shapes: R rows (tokens), B rows of a block, K key-value heads, G query heads of each, d head size,
L keys, S stacked rows of a block, by row and then by head.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from numba import prange
from numpy.typing import NDArray

from shoal.models.native import LOWEST, Loop, array, exp, narrow, of_rank, rank, wide

BLOCK = 64  # rows of a block, and what keys are padded to a multiple of
SEEN = 24_000  # pairs of a row and a key it sees, from which this is faster than the flash kernel


@functools.cache
def fast() -> bool:
    """Whether this processor multiplies bf16 through oneDNN."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def is_wide(rows: int, seen: int, dtype: torch.dtype) -> bool:
    """Whether attention of so many rows, over ``seen`` pairs of row and key, belongs here."""
    return rows >= BLOCK and seen >= SEEN and dtype == torch.bfloat16 and fast()


def attend(
    q_RKGd: torch.Tensor, k_KLd: torch.Tensor, v_KLd: torch.Tensor, *, causal: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Results [R, K, G, d] in bf16 and their log-sum-exp [R, K, G] in fp32.

    All rows see all keys, or with ``causal`` row i the first i + 1 of as many keys as rows.
    """
    R, K, G, _ = q_RKGd.shape
    L = k_KLd.shape[1]
    out_RKGd = torch.empty(q_RKGd.shape, dtype=q_RKGd.dtype)
    lse_RKG = torch.empty(R, K, G, dtype=torch.float32)
    k_KLd, v_KLd = padded(k_KLd, _shape(L)), padded(v_KLd, _shape(L))
    seen_R = np.arange(1, R + 1) if causal else np.full(R, L)
    k_KSd, v_KSd = k_KLd, v_KLd
    for start in range(0, R, BLOCK):
        rows = slice(start, start + BLOCK)
        if causal:  # oneDNN takes whole tensors; slices it would copy for every product
            k_KSd, v_KSd = k_KLd[:, : rows.stop].contiguous(), v_KLd[:, : rows.stop].contiguous()
        two_products(q_RKGd[rows], k_KSd, v_KSd, seen_R[rows], out_RKGd[rows], lse_RKG[rows])
    return out_RKGd, lse_RKG


def two_products(
    q_BKGd: torch.Tensor,
    k_KLd: torch.Tensor,
    v_KLd: torch.Tensor,
    seen_B: NDArray[np.int64],
    out_BKGd: torch.Tensor,
    lse_BKG: torch.Tensor,
) -> None:
    """Up to ``BLOCK`` rows, each over the first ``seen_B`` keys, one at least.

    The results and their log-sum-exp go to the last two.
    """
    B, K, G, d = q_BKGd.shape
    scale = 1 / math.sqrt(d)
    q_KSd = padded(q_BKGd.transpose(0, 1).reshape(K, B * G, d), BLOCK * G)
    k_KdL = k_KLd.transpose(1, 2)
    scores_KSL = torch.bmm(q_KSd, k_KdL)
    size, seen_S = scores_KSL.numel(), seen_B.repeat(G)
    shift_KS1 = torch.zeros(*scores_KSL.shape[:2], 1, dtype=scores_KSL.dtype)
    _shifts(size, array(scores_KSL), seen_S, np.float32(scale), array(shift_KS1))
    weights_KSL = torch.baddbmm(shift_KS1, q_KSd, k_KdL, alpha=scale)
    total_KS = np.ones(shift_KS1.shape[:2], np.float32)
    _exponentials(size, array(weights_KSL), seen_S, total_KS)
    sums_KSd = torch.bmm(weights_KSL, v_KLd)
    results = array(sums_KSd), total_KS, array(shift_KS1), array(out_BKGd), array(lse_BKG)
    _shares(sums_KSd.numel(), *results)


@Loop
def _shifts(scores_KSL: Any, seen_S: Any, scale: Any, shift_KS1: Any) -> None:
    """Minus every row's largest score, times the scale."""
    K, S = len(scores_KSL), len(seen_S)
    for task in prange(K * S):
        k, s = task // S, task % S
        scores_L = scores_KSL[k, s, : seen_S[s]]
        top = LOWEST
        for j in range(len(scores_L)):
            top = max(top, rank(wide(scores_L[j])))
        shift_KS1[k, s, 0] = narrow(-of_rank(top) * scale, shift_KS1[k, s, 0])


@Loop
def _exponentials(shifted_KSL: Any, seen_S: Any, total_KS: Any) -> None:
    """Shifted scores become weights, in place: 0 for keys that are not seen."""
    K, S = len(shifted_KSL), len(seen_S)
    for task in prange(K * S):
        k, s = task // S, task % S
        weights_L = shifted_KSL[k, s, : seen_S[s]]
        total = np.float32(0)
        for j in range(len(weights_L)):
            weight = narrow(exp(wide(weights_L[j])), weights_L[j])
            weights_L[j] = weight
            total += wide(weight)
        shifted_KSL[k, s, seen_S[s] :] = 0
        total_KS[k, s] = total


@Loop
def _shares(sums_KSd: Any, total_KS: Any, shift_KS1: Any, out_BKGd: Any, lse_BKG: Any) -> None:
    """Weighted sums divided by the weights' total, where they belong."""
    B, K, G, d = out_BKGd.shape
    for b in prange(B):
        for k in range(K):
            for g in range(G):
                sum_d, out_d, total = (
                    sums_KSd[k, b * G + g],
                    out_BKGd[b, k, g],
                    total_KS[k, b * G + g],
                )
                for i in range(d):
                    out_d[i] = narrow(wide(sum_d[i]) / total, out_d[i])
                lse_BKG[b, k, g] = np.log(total) - wide(shift_KS1[k, b * G + g, 0])


def _shape(length: int) -> int:
    """What so many keys are padded to: an eighth more at most beyond 512, else up to a block."""
    step = BLOCK
    while length > 8 * step:
        step *= 2
    return -(-length // step) * step


def padded(x_KNd: torch.Tensor, length: int) -> torch.Tensor:
    """The same with zeros behind, in one piece."""
    K, N, d = x_KNd.shape
    if length == N:
        return x_KNd.contiguous()
    whole = x_KNd.new_zeros(K, length, d)
    whole[:, :N] = x_KNd
    return whole
