"""Attention of rows that stand anywhere in one sequence, over everything up to themselves.

A repair computes some tokens of a prompt whose other tokens have their keys and values already.
The rows are taken in blocks in the order in which they stand, so that a block reads no key beyond
its last row. Where oneDNN's bf16 products are fast a block goes through them
(:mod:`shoal.engine.wide`), elsewhere through the flash kernel.

Shapes: R rows (tokens), P keys, K key-value heads, G query heads of each, H = K G, d head size,
B rows of a block, L keys that it reads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from shoal.engine import wide

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_CROPPED = 0.75  # of all keys: a block that reads less has them copied, one that reads more has all
_STEP = 128  # keys are padded to a multiple of this: oneDNN gets ready for every new shape


@dataclass(frozen=True, slots=True)
class _Block:
    """Rows ``start .. stop`` over the first ``keys`` keys, each over the first ``seen_B``."""

    start: int
    stop: int
    keys: int
    seen_B: NDArray[np.int64]


class Scattered:
    """The plan for some rows of a sequence; call it for every layer.

    ``places`` say where in the sequence the rows stand, in ascending order; ``keys`` is its length.
    """

    def __init__(self, places: Sequence[int], keys: int, dtype: torch.dtype) -> None:
        many = len(places) * keys >= wide.SEEN
        self._fast = many and dtype == torch.bfloat16 and wide.fast()
        self._padded = -(-keys // _STEP) * _STEP if self._fast else keys
        self._blocks = [
            self._block(np.array(places[start : start + wide.BLOCK]), start)
            for start in range(0, len(places), wide.BLOCK)
        ]

    def _block(self, places_B: NDArray[np.int64], start: int) -> _Block:
        L = int(places_B[-1]) + 1
        if self._fast:
            L = -(-L // _STEP) * _STEP
            L = self._padded if _CROPPED * self._padded < L else L
        return _Block(start, start + len(places_B), L, places_B + 1)

    def __call__(
        self, q_RHd: torch.Tensor, k_PKd: torch.Tensor, v_PKd: torch.Tensor
    ) -> torch.Tensor:
        """Attention [R, H, d] of the rows; keys and values are those of the whole sequence."""
        R, H, d = q_RHd.shape
        K = k_PKd.shape[1]
        k_KPd, v_KPd = self._whole(k_PKd), self._whole(v_PKd)
        out_RHd = torch.empty(R, H, d, dtype=q_RHd.dtype)
        if self._fast:
            lse_RKG = torch.empty(R, K, H // K)
            q_RKGd, out_RKGd = q_RHd.view(R, K, -1, d), out_RHd.view(R, K, -1, d)
        for block in self._blocks:
            rows, L = slice(block.start, block.stop), block.keys
            k_KLd, v_KLd = k_KPd[:, :L], v_KPd[:, :L]
            if self._fast:
                k_KLd, v_KLd = k_KLd.contiguous(), v_KLd.contiguous()
                results = out_RKGd[rows], lse_RKG[rows]
                wide.two_products(q_RKGd[rows], k_KLd, v_KLd, block.seen_B, *results)
                continue
            later_BL = torch.arange(L) >= torch.from_numpy(block.seen_B)[:, None]
            hidden_BL = torch.zeros(later_BL.shape, dtype=q_RHd.dtype)
            hidden_BL.masked_fill_(later_BL, -math.inf)
            q_1HBd = q_RHd[rows].transpose(0, 1)[None]
            mask = hidden_BL[None, None]
            out_1HBd, _ = _flash(q_1HBd, k_KLd[None], v_KLd[None], 0.0, False, attn_mask=mask)
            out_RHd[rows] = out_1HBd[0].transpose(0, 1)
        return out_RHd

    def _whole(self, x_PKd: torch.Tensor) -> torch.Tensor:
        """[K, P, d], padded to a shape that oneDNN has seen where it will multiply."""
        x_KPd = x_PKd.transpose(0, 1)
        return wide.padded(x_KPd, self._padded) if self._fast else x_KPd
