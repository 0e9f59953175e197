"""Attention of rows that stand anywhere in one sequence, over everything up to themselves.

A repair computes some tokens of a prompt whose other tokens have their keys and values already.
The rows are taken in blocks in the order in which they stand, so that a block reads no key beyond
its last row. Where oneDNN's bf16 products are fast a block goes through them
(:mod:`shoal.engine.wide`), elsewhere through the flash kernel.

Shapes: R rows (tokens), P keys, K key-value heads, G query heads of each, H = K G, d head size,
B rows of a block, L keys that it reads, W of them that it may not all see, S = G B.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from shoal.engine import wide

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_CROPPED = 0.75  # of all keys: a block that reads less has them copied, one that reads more has all
_STEP = 128  # keys are padded to a multiple of this: oneDNN gets ready for every new shape


@dataclass(frozen=True, slots=True)
class _Block:
    """Rows ``start .. stop`` over the first ``keys`` keys; ``hidden_BW`` is of the last W."""

    start: int
    stop: int
    keys: int
    hidden_BW: torch.Tensor


class Scattered:
    """The plan for some rows of a sequence; call it for every layer.

    ``places`` say where in the sequence the rows stand, in ascending order; ``keys`` is its length.
    """

    def __init__(self, places: Sequence[int], keys: int, dtype: torch.dtype) -> None:
        many = len(places) * keys >= wide.SEEN
        self._fast = many and dtype == torch.bfloat16 and wide.fast()
        self._padded = -(-keys // _STEP) * _STEP if self._fast else keys
        self._blocks = [
            self._block(places[start : start + wide.BLOCK], start, dtype)
            for start in range(0, len(places), wide.BLOCK)
        ]

    def _block(self, places: Sequence[int], start: int, dtype: torch.dtype) -> _Block:
        L = places[-1] + 1
        if self._fast:
            L = -(-L // _STEP) * _STEP
            L = self._padded if _CROPPED * self._padded < L else L
        stop = start + len(places)
        if self._fast:  # whole blocks have one shape; the rows that pad see what the last one does
            places = [*places, *[places[-1]] * (wide.BLOCK - len(places))]
        first = (places[0] + 1) if self._fast else 0
        later = torch.arange(first, L) > torch.tensor(places)[:, None]
        hidden_BW = torch.zeros(later.shape, dtype=dtype).masked_fill_(later, -math.inf)
        return _Block(start, stop, L, hidden_BW)

    def __call__(
        self, q_RHd: torch.Tensor, k_PKd: torch.Tensor, v_PKd: torch.Tensor
    ) -> torch.Tensor:
        """Attention [R, H, d] of the rows; keys and values are those of the whole sequence."""
        k_KPd, v_KPd = self._whole(k_PKd), self._whole(v_PKd)
        out_RHd = torch.empty_like(q_RHd)
        for block in self._blocks:
            rows, L = slice(block.start, block.stop), block.keys
            k_KLd, v_KLd = k_KPd[:, :L], v_KPd[:, :L]
            if self._fast:
                out_RHd[rows] = _in_one_shape(q_RHd[rows], k_KLd, v_KLd, block.hidden_BW)
                continue
            q_1HBd = q_RHd[rows].transpose(0, 1)[None]
            mask = block.hidden_BW[None, None]
            out_1HBd, _ = _flash(q_1HBd, k_KLd[None], v_KLd[None], 0.0, False, attn_mask=mask)
            out_RHd[rows] = out_1HBd[0].transpose(0, 1)
        return out_RHd

    def _whole(self, x_PKd: torch.Tensor) -> torch.Tensor:
        """[K, P, d], with zeros behind up to a shape that oneDNN has seen."""
        P, K, d = x_PKd.shape
        if not self._fast:
            return x_PKd.transpose(0, 1)
        padded_KPd = x_PKd.new_zeros(K, self._padded, d)
        padded_KPd[:, :P] = x_PKd.transpose(0, 1)
        return padded_KPd


def _in_one_shape(
    q_BHd: torch.Tensor, k_KLd: torch.Tensor, v_KLd: torch.Tensor, hidden_BW: torch.Tensor
) -> torch.Tensor:
    """One block by :func:`shoal.engine.wide.two_products`, filled up with rows of zeros."""
    (B, H, d), K = q_BHd.shape, len(k_KLd)
    G = H // K
    q_KGBd = q_BHd.new_zeros(K, G, wide.BLOCK, d)
    q_KGBd[:, :, :B] = q_BHd.view(B, K, G, d).permute(1, 2, 0, 3)
    hidden_SW = hidden_BW.repeat(G, 1) if hidden_BW.shape[1] else None
    out_KSd, _ = wide.two_products(
        q_KGBd.view(K, -1, d), k_KLd.contiguous(), v_KLd.contiguous(), hidden_SW
    )
    return out_KSd.view(K, G, wide.BLOCK, d)[:, :, :B].permute(2, 0, 1, 3).reshape(B, H, d)
