"""Attention of many rows in bf16: two products of oneDNN's around an exponential.

torch's CPU flash kernel multiplies bf16 at the speed of fp32 where rows are many (30 to 45 GFLOP/s
a core on processors whose bf16 products reach 400). oneDNN's products are fast but round scores to
bf16, which would cost an attention weight of e^-8 up to 3 % of itself. So scores are computed
twice: the first product only finds every row's largest score, the second one subtracts it before
it rounds. What matters in a softmax then lies near zero, where bf16 is fine; the error of a result
stays that of a bf16 weight (2^-9 of itself).

Shapes: R rows (tokens), K key-value heads, G query heads of each, d head size, L keys,
S stacked rows R G, B rows of a block.
"""

from __future__ import annotations

import functools
import math

import torch

WIDE_ROWS = 64  # rows from which this is faster than the flash kernel
BLOCK = 64  # rows of a causal block: what is computed above the diagonal is for nothing
SCORES = 1 << 20  # scores under way at a time, so that they stay in a core's cache


@functools.cache
def fast() -> bool:
    """Whether this processor multiplies bf16 through oneDNN."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def is_wide(rows: int, dtype: torch.dtype) -> bool:
    """Whether attention of so many rows over common keys is better computed here."""
    return rows >= WIDE_ROWS and dtype == torch.bfloat16 and fast()


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
    step = max(16, SCORES // (K * G * L) // 16 * 16)
    step = min(step, BLOCK) if causal else step
    k_KSd, v_KSd = k_KLd.contiguous(), v_KLd.contiguous()
    for start in range(0, R, step):
        rows = slice(start, min(R, start + step))
        count = rows.stop - start
        if causal:  # oneDNN takes whole tensors; slices it would copy for every product
            k_KSd, v_KSd = (x_KLd[:, : rows.stop].contiguous() for x_KLd in (k_KLd, v_KLd))
        q_KSd = q_RKGd[rows].transpose(0, 1).reshape(K, count * G, d)
        out_KSd, lse_KS = _block(q_KSd, k_KSd, v_KSd, _later(count, G) if causal else None)
        out_RKGd[rows] = out_KSd.view(K, count, G, d).transpose(0, 1)
        lse_RKG[rows] = lse_KS.view(K, count, G).transpose(0, 1)
    return out_RKGd, lse_RKG


def _block(
    q_KSd: torch.Tensor, k_KLd: torch.Tensor, v_KLd: torch.Tensor, hidden_SB: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Stacked rows over keys; ``hidden_SB`` is added to the scores of the last B keys."""
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


@functools.lru_cache(maxsize=2 * BLOCK)
def _later(rows: int, heads: int) -> torch.Tensor:
    """[rows * heads, rows]: minus infinity where a key comes after the row."""
    hidden = torch.full((rows, rows), -math.inf, dtype=torch.bfloat16).triu(1)
    return hidden.repeat_interleave(heads, 0)
