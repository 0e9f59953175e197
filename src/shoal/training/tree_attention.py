"""Attention over a forest of shared runs, with gradient: each run's keys are read where they lie.

A row sees the earlier rows of its own node and all rows of the nodes above. Each node's rows look
at themselves, causally; all rows below a node look at it in one call. Partial results are merged
by their log-sum-exp, which is exact. The backward pass needs no second merge: with the merged
output and log-sum-exp each part's own backward gives its share of the whole gradient, because its
probabilities are then those of the whole row. So nothing is copied for each response, where
Prefix Grouper repeats the prompt's keys and values G times in each layer ("Prefix Grouper:
Efficient GRPO Training through Shared-Prefix Forward", arXiv 2506.05433; its attention is the case
of one level). Departs from it in that, and in any depth.

Short runs go through the kernel together, padded. On a CPU the kernel is torch's own flash
attention under its private name, as the public function hides the log-sum-exp; elsewhere one call
under a mask computes the same.

Shapes: T rows, H query heads, K key-value heads, d head size; of one call n runs, R queries and L
keys of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from shoal.models.decoder import Attend
from shoal.training.prefix_plan import Forest
from shoal.training.rows import Ints

SHORT = 128
"""Runs up to this length share calls."""
WASTE = 1.25
"""How much longer than needed a call may be made by padding."""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def tree_attention(forest: Forest, device: torch.device) -> Attend:
    """Attention of a forest's rows, for the decoder; differentiable."""
    if device.type != "cpu":
        return masked(forest, device)
    looks = _looks(forest)

    def attend(layer: int, q_THd: torch.Tensor, kv_T2Kd: torch.Tensor) -> torch.Tensor:
        out_THd: torch.Tensor = _Merged.apply(q_THd, kv_T2Kd, looks)  # type: ignore[no-untyped-call]
        return out_THd

    return attend


def masked(forest: Forest, device: torch.device) -> Attend:
    """The same as one call under a mask [T, T], on any device."""
    node_T = np.repeat(np.arange(len(forest.first_N)), forest.own_N - forest.first_N)
    row_T = torch.arange(len(forest.ids_T))
    last_T = torch.from_numpy(forest.last_N[node_T])
    seen_TT = ((row_T <= row_T[:, None]) & (row_T[:, None] < last_T)).to(device)

    def attend(layer: int, q_THd: torch.Tensor, kv_T2Kd: torch.Tensor) -> torch.Tensor:
        q, k, v = (x.transpose(0, 1)[None] for x in (q_THd, kv_T2Kd[:, 0], kv_T2Kd[:, 1]))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen_TT, enable_gqa=True)
        return out[0].transpose(0, 1)

    return attend


@dataclass(frozen=True, slots=True, eq=False)
class _Look:
    """One call: ``queries`` look at ``keys``, causally or at all of them.

    queries, keys  rows, as a slice where there is one run, else [n, R] and [n, L] with padding
    kept      where ``queries`` are no padding, [n, R]; None: everywhere
    kept_keys  the same of ``keys``
    bias      what hides padded keys, [n, 1, 1, L]; None where there are none to hide
    """

    queries: slice | torch.Tensor
    keys: slice | torch.Tensor
    causal: bool
    kept: torch.Tensor | None = None
    kept_keys: torch.Tensor | None = None
    bias: torch.Tensor | None = None


class _Merged(torch.autograd.Function):
    """All looks, merged. The first ones are causal and cover every row once."""

    @staticmethod
    def forward(
        ctx: Any, q_THd: torch.Tensor, kv_T2Kd: torch.Tensor, looks: Sequence[_Look]
    ) -> torch.Tensor:
        out_THd = torch.empty_like(q_THd, memory_format=torch.contiguous_format)
        wide = torch.promote_types(q_THd.dtype, torch.float32)
        lse_TH = torch.empty(q_THd.shape[:2], dtype=wide)
        for look in looks:
            q, k, v = _read(q_THd, look.queries), *_read_kv(kv_T2Kd, look.keys)
            out, lse = _flash(q, k, v, 0.0, look.causal, attn_mask=_fitting(look.bias, q.dtype))
            _merge(out_THd, lse_TH, look, out.transpose(1, 2), lse.transpose(1, 2))
        ctx.save_for_backward(q_THd, kv_T2Kd, out_THd, lse_TH)
        ctx.looks = looks
        return out_THd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_THd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        q_THd, kv_T2Kd, out_THd, lse_TH = ctx.saved_tensors
        dq_THd = torch.zeros(q_THd.shape, dtype=q_THd.dtype)
        dkv_T2Kd = torch.zeros(kv_T2Kd.shape, dtype=kv_T2Kd.dtype)
        for look in ctx.looks:
            q, k, v = _read(q_THd, look.queries), *_read_kv(kv_T2Kd, look.keys)
            grad, out = _read(grad_THd, look.queries), _read(out_THd, look.queries)
            if look.kept is not None:  # a padded row must not move the keys it sees
                grad = grad * look.kept[:, None, :, None]
            lse = lse_TH[look.queries]
            lse = (lse if lse.dim() == 3 else lse[None]).transpose(1, 2)
            dq, dk, dv = _flash_backward(
                grad, q, k, v, out, lse.contiguous(), 0.0, look.causal,
                attn_mask=_fitting(look.bias, q.dtype),
            )  # fmt: skip
            _add(dq_THd, look.queries, look.kept, dq.transpose(1, 2))
            dkv = torch.stack((dk, dv), 2).permute(0, 3, 2, 1, 4)
            _add(dkv_T2Kd, look.keys, look.kept_keys, dkv)
        return dq_THd, dkv_T2Kd, None


def _read(x_THd: torch.Tensor, rows: slice | torch.Tensor) -> torch.Tensor:
    """Rows as the kernel wants them: [n, H, R, d]."""
    x = x_THd[rows]
    return (x if x.dim() == 4 else x[None]).transpose(1, 2)


def _read_kv(
    kv_T2Kd: torch.Tensor, rows: slice | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values, each [n, K, L, d]."""
    kv = kv_T2Kd[rows]
    k, v = (kv if kv.dim() == 5 else kv[None]).transpose(1, 3).unbind(2)
    return k, v


def _fitting(bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    return None if bias is None else bias.to(dtype)


def _merge(
    out_THd: torch.Tensor,
    lse_TH: torch.Tensor,
    look: _Look,
    out_nRHd: torch.Tensor,
    lse_nRH: torch.Tensor,
) -> None:
    """Take one look into the result: set where it is a row's first, else weigh by probability."""
    if isinstance(look.queries, slice):
        rows: slice | torch.Tensor = look.queries
        out, lse = out_nRHd[0], lse_nRH[0]
    elif look.kept is None:
        rows, out, lse = look.queries.flatten(), out_nRHd.flatten(0, 1), lse_nRH.flatten(0, 1)
    else:
        rows, out, lse = look.queries[look.kept], out_nRHd[look.kept], lse_nRH[look.kept]
    if look.causal:
        out_THd[rows], lse_TH[rows] = out, lse
        return
    before_RHd, before_RH = out_THd[rows], lse_TH[rows]
    share_RH1 = torch.sigmoid(lse - before_RH).to(out.dtype)[..., None]
    out_THd[rows] = before_RHd.lerp(out, share_RH1)
    lse_TH[rows] = torch.logaddexp(lse, before_RH)


def _add(
    sum_T: torch.Tensor,
    rows: slice | torch.Tensor,
    kept: torch.Tensor | None,
    part_nR: torch.Tensor,
) -> None:
    """Add a look's gradient to the rows it is of."""
    if isinstance(rows, slice):
        sum_T[rows] += part_nR[0]
    elif kept is None:
        sum_T.index_add_(0, rows.flatten(), part_nR.flatten(0, 1))
    else:
        sum_T.index_add_(0, rows[kept], part_nR[kept])


def _looks(forest: Forest) -> list[_Look]:
    """The calls of a layer: every node's own rows, then from level to level what is above them.

    Of one level no row sees two nodes, so looks that share a call touch every row once.
    """
    first_N, own_N, last_N = forest.first_N, forest.own_N, forest.last_N
    looks = _batched(first_N, own_N, first_N, own_N, causal=True)
    for level in range(int(forest.level_N.max(initial=0))):
        read_N = np.flatnonzero((forest.level_N == level) & (last_N > own_N))
        looks += _batched(
            own_N[read_N], last_N[read_N], first_N[read_N], own_N[read_N], causal=False
        )
    return looks


def _batched(
    q_first: Ints, q_last: Ints, k_first: Ints, k_last: Ints, *, causal: bool
) -> list[_Look]:
    """Looks of the runs ``first .. last`` at others, short ones of similar size together."""
    R, L = q_last - q_first, k_last - k_first
    looks, group = [], list[int]()

    def close() -> None:
        if len(group) == 1:
            (n,) = group
            queries = slice(int(q_first[n]), int(q_last[n]))
            looks.append(_Look(queries, slice(int(k_first[n]), int(k_last[n])), causal))
        elif group:
            looks.append(_padded(q_first[group], R[group], k_first[group], L[group], causal=causal))
        group.clear()

    for n in np.lexsort((R, L)).tolist():
        long = max(R[n], L[n]) > SHORT
        if group and (long or not _fits(R[[*group, n]], L[[*group, n]])):
            close()
        group.append(n)
        if long:
            close()
    close()
    return looks


def _fits(R: Ints, L: Ints) -> bool:
    """Whether padding these to one size is worth it."""
    return bool(len(R) * R.max() * L.max() <= WASTE * (R * L).sum() + 64 * len(R))


def _padded(q_first: Ints, R: Ints, k_first: Ints, L: Ints, *, causal: bool) -> _Look:
    queries, kept = _indices(q_first, R)
    keys, kept_keys = _indices(k_first, L)
    bias = None
    if not causal and kept_keys is not None:
        bias = torch.zeros(kept_keys.shape).masked_fill(~kept_keys, float("-inf"))[:, None, None]
    return _Look(queries, keys, causal, kept, kept_keys, bias)


def _indices(first: Ints, length: Ints) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Rows of runs, padded with their last row: [n, longest], and where they are none."""
    place = np.arange(length.max())
    rows = torch.from_numpy(first[:, None] + np.minimum(place, length[:, None] - 1))
    if (length == length[0]).all():
        return rows, None
    return rows, torch.from_numpy(place < length[:, None])
