"""Attention of many rows in bf16: two products of oneDNN's around an exponential.

torch's CPU flash kernel multiplies bf16 at the speed of fp32 where rows are many (30 to 45 GFLOP/s
a core on processors whose bf16 products reach 400). oneDNN's products are fast but round scores to
bf16, which would cost an attention weight of e^-8 up to 3 % of itself. So scores are computed
twice: the first product only finds every row's largest score, the second one subtracts it before
it rounds. What matters in a softmax then lies near zero, where bf16 is fine; the error of a result
stays that of a bf16 weight (2^-9 of itself).

oneDNN takes some milliseconds to get ready for a product of a new shape: rows and keys are padded
to few shapes.

Shapes: R rows (tokens), K key-value heads, G query heads of each, d head size, L keys,
S stacked rows R G, B rows of a block.
"""

from __future__ import annotations

import functools
import math

import torch

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
    R, K, G, d = q_RKGd.shape
    L = k_KLd.shape[1]
    out_RKGd = torch.empty_like(q_RKGd)
    lse_RKG = torch.empty(R, K, G, dtype=torch.float32)
    k_KLd, v_KLd = _padded(k_KLd, _shape(L)), _padded(v_KLd, _shape(L))
    hidden_SB = _later(G) if causal else _beyond(_shape(L), L)
    k_KSd, v_KSd = k_KLd, v_KLd
    for start in range(0, R, BLOCK):
        rows = slice(start, min(R, start + BLOCK))
        count = rows.stop - start
        if causal:  # oneDNN takes whole tensors; slices it would copy for every product
            seen = slice(0, start + BLOCK)
            k_KSd, v_KSd = k_KLd[:, seen].contiguous(), v_KLd[:, seen].contiguous()
        q_KSd = _padded(q_RKGd[rows].transpose(0, 1).reshape(K, count * G, d), BLOCK * G)
        out_KSd, lse_KS = two_products(q_KSd, k_KSd, v_KSd, hidden_SB)
        out_RKGd[rows] = out_KSd.view(K, BLOCK, G, d)[:, :count].transpose(0, 1)
        lse_RKG[rows] = lse_KS.view(K, BLOCK, G)[:, :count].transpose(0, 1)
    return out_RKGd, lse_RKG


def two_products(
    q_KSd: torch.Tensor, k_KLd: torch.Tensor, v_KLd: torch.Tensor, hidden_SB: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Stacked rows over keys: [K, S, d] and the log-sum-exp [K, S] in fp32.

    ``hidden_SB`` is added to the scores of the last B keys: minus infinity hides one from a row.
    """
    scale = 1 / math.sqrt(q_KSd.shape[2])
    k_KdL = k_KLd.transpose(1, 2)
    scores_KSL = torch.bmm(q_KSd, k_KdL)
    if hidden_SB is not None:
        scores_KSL[..., -hidden_SB.shape[1] :] += hidden_SB
    top_KS1 = scores_KSL.amax(-1, keepdim=True) * scale
    weights_KSL = torch.baddbmm(-top_KS1, q_KSd, k_KdL, alpha=scale)
    if hidden_SB is not None:
        weights_KSL[..., -hidden_SB.shape[1] :] += hidden_SB
    weights_KSL.exp_()
    sums_KS1 = weights_KSL.sum(-1, keepdim=True, dtype=torch.float32)
    out_KSd = torch.bmm(weights_KSL, v_KLd) / sums_KS1
    return out_KSd, (sums_KS1.log() + top_KS1)[..., 0]


def _shape(length: int) -> int:
    """What so many keys are padded to: an eighth more at most beyond 512, else up to a block."""
    step = BLOCK
    while length > 8 * step:
        step *= 2
    return -(-length // step) * step


def _padded(x_KNd: torch.Tensor, length: int) -> torch.Tensor:
    """The same with zeros behind, in one piece."""
    K, N, d = x_KNd.shape
    if length == N:
        return x_KNd.contiguous()
    whole = x_KNd.new_zeros(K, length, d)
    whole[:, :N] = x_KNd
    return whole


@functools.cache
def _later(heads: int) -> torch.Tensor:
    """[BLOCK * heads, BLOCK]: minus infinity where a key comes after the row."""
    hidden = torch.full((BLOCK, BLOCK), -math.inf, dtype=torch.bfloat16).triu(1)
    return hidden.repeat_interleave(heads, 0)


def _beyond(shape: int, length: int) -> torch.Tensor | None:
    """[1, B]: minus infinity at the B keys that only pad."""
    padding = shape - length
    return torch.full((1, padding), -math.inf, dtype=torch.bfloat16) if padding else None
