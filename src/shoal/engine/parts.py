"""Attention of many stacked rows over cache that they see together, read where it lies.

Queries of one key-value head are stacked, as many as two vectors hold; keys are taken in blocks
with a running maximum (online softmax: Milakov and Gimelshein, arXiv 1805.02867; the blocks are
FlashAttention's, Dao et al., arXiv 2205.14135). All of it is fp32, whatever the cache is stored
in. Rows that have a result already get the new one merged by its log-sum-exp, which is exact.

Shapes: T rows of the step, P parts, E rows of all parts, K key-value heads, G query heads of
each, d head size, N slots of the cache, W stacked queries of a task (tile.WIDTH), B keys of a
block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numba import prange

from shoal.models.native import Loop, array, exp, narrow, wide
from shoal.models.tile import ROWS, WIDTH, lift, multiply, scale

BLOCK = 10 * ROWS  # keys: two blocks and the queries fit into a core's first cache
_HIDDEN = np.float32(-1e30)  # score of a key that a row does not see


@dataclass(frozen=True, slots=True)
class Part:
    """Rows, the pieces of cache they see, and how many of the pieces' tokens each row sees.

    ``pieces`` are (first slot, length); ``seen`` is at least 1.
    """

    rows: Sequence[int]
    seen: Sequence[int]
    pieces: Sequence[tuple[int, int]]


class Parts:
    """Parts of one step, no row in two of them, laid out for the loop."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.rows = [len(part.rows) for part in parts]  # of each
        self._rows_E = np.array([row for part in parts for row in part.rows])
        self._seen_E = np.array([seen for part in parts for seen in part.seen])
        self._first_P = np.cumsum([0, *self.rows])
        self._piece_P = np.cumsum([0, *(len(part.pieces) for part in parts)])
        self._pieces_2 = np.array([piece for part in parts for piece in part.pieces])
        self._pairs = int(self._seen_E.sum())
        self._tasks: dict[int, Any] = {}  # by query heads of a key-value head

    def attend(
        self,
        q_TKGd: torch.Tensor,
        slab_N2Kd: torch.Tensor,
        out_TKGd: torch.Tensor,
        lse_TKG: torch.Tensor,
    ) -> None:
        """Put results and their log-sum-exp (fp32) where the rows are.

        A log-sum-exp of minus infinity says that a row has no result yet.
        """
        G, d = q_TKGd.shape[2:]
        if G not in self._tasks:
            self._tasks[G] = self._divided(G)
        _attend(
            self._pairs * q_TKGd[0].numel(),
            torch.get_num_threads(),
            np.float32(1 / math.sqrt(d)),
            self._tasks[G],
            *(self._rows_E, self._seen_E, self._first_P, self._piece_P, self._pieces_2),
            *(array(q_TKGd.contiguous()), array(slab_N2Kd), array(out_TKGd), array(lse_TKG)),
        )

    def _divided(self, heads: int) -> Any:
        """Tasks [n, 2]: a part and its first stacked query; those that read most come first."""
        tasks = []
        for p, rows in enumerate(self.rows):
            for first in range(0, rows * heads, WIDTH):
                last = min(first + WIDTH, rows * heads) - 1
                tasks.append((self._seen_E[self._first_P[p] + last // heads], p, first))
        tasks.sort(reverse=True)
        return np.array([(p, first) for _, p, first in tasks])


@Loop
def _attend(
    threads: Any,
    sharpness: Any,
    tasks_2: Any,
    rows_E: Any,
    seen_E: Any,
    first_P: Any,
    piece_P: Any,
    pieces_2: Any,
    q_TKGd: Any,
    slab_N2Kd: Any,
    out_TKGd: Any,
    lse_TKG: Any,
) -> None:
    _, K, G, d = q_TKGd.shape
    tall = -(-d // ROWS) * ROWS  # values are stored this wide: whole tiles
    for thread in prange(threads):
        q_dW = np.empty(d * WIDTH, np.float32)
        keys_Bd = np.empty((BLOCK + ROWS) * d, np.float32)
        values_Bd = np.zeros((BLOCK + ROWS) * tall, np.float32)
        scores_BW = np.empty((BLOCK + ROWS) * WIDTH, np.float32)
        sums_dW = np.empty(tall * WIDTH, np.float32)
        entry_W = np.empty(WIDTH, np.int64)
        head_W = np.empty(WIDTH, np.int64)
        seen_W = np.empty(WIDTH, np.int64)
        top_W = np.empty(WIDTH, np.float32)
        higher_W = np.empty(WIDTH, np.float32)
        total_W = np.empty(WIDTH, np.float32)
        for task in range(thread, len(tasks_2) * K, threads):
            p, first, k = tasks_2[task // K, 0], tasks_2[task // K, 1], task % K
            queries = min(WIDTH, (first_P[p + 1] - first_P[p]) * G - first)
            most, least = np.int64(0), np.int64(1 << 62)
            for w in range(WIDTH):  # where there are fewer, the last one is repeated
                s = first + min(w, queries - 1)
                entry_W[w], head_W[w] = first_P[p] + s // G, s % G
                seen_W[w] = seen_E[entry_W[w]]
                most, least = max(most, seen_W[w]), min(least, seen_W[w])
                query_d = q_TKGd[rows_E[entry_W[w]], k, head_W[w]]
                for i in range(d):
                    q_dW[i * WIDTH + w] = wide(query_d[i]) * sharpness
            top_W[:] = _HIDDEN
            total_W[:] = 0
            sums_dW[:] = 0

            at = np.int64(0)  # keys that were read
            for piece in range(piece_P[p], piece_P[p + 1]):
                start, length = pieces_2[piece, 0], pieces_2[piece, 1]
                length = min(length, most - at)
                for block in range(0, length, BLOCK):
                    count = min(BLOCK, length - block)
                    for j in range(count):
                        key_d = slab_N2Kd[start + block + j, 0, k]
                        value_d = slab_N2Kd[start + block + j, 1, k]
                        own_key_d, own_value_d = keys_Bd[j * d :], values_Bd[j * tall :]
                        for i in range(d):
                            own_key_d[i] = wide(key_d[i])
                        for i in range(d):
                            own_value_d[i] = wide(value_d[i])
                    scores_BW[: (count + ROWS) * WIDTH] = 0
                    for j in range(0, count, ROWS):
                        multiply(scores_BW, j * WIDTH, keys_Bd, j * d, d, 1, q_dW, d)
                    if at + count > least:
                        for j in range(count):
                            for w in range(WIDTH):
                                if at + j >= seen_W[w]:
                                    scores_BW[j * WIDTH + w] = _HIDDEN

                    for w in range(WIDTH):
                        higher_W[w] = top_W[w]
                    for j in range(count):
                        lift(higher_W, 0, scores_BW, j * WIDTH)
                    for w in range(WIDTH):
                        top_W[w] = exp(top_W[w] - higher_W[w])  # what earlier sums still count
                        total_W[w] *= top_W[w]
                    for i in range(d):
                        scale(sums_dW, i * WIDTH, top_W, 0)
                    for j in range(count):
                        scores_W = scores_BW[j * WIDTH : (j + 1) * WIDTH]
                        for w in range(WIDTH):
                            scores_W[w] = exp(scores_W[w] - higher_W[w])
                            total_W[w] += scores_W[w]
                    for w in range(WIDTH):
                        top_W[w] = higher_W[w]
                    for i in range(0, d, ROWS):
                        multiply(sums_dW, i * WIDTH, values_Bd, i, 1, tall, scores_BW, count)
                    at += count

            for w in range(queries):
                row, g = rows_E[entry_W[w]], head_W[w]
                lse, before = top_W[w] + np.log(total_W[w]), lse_TKG[row, k, g]
                out_d = out_TKGd[row, k, g]
                if before < _HIDDEN:
                    for i in range(d):
                        out_d[i] = narrow(sums_dW[i * WIDTH + w] / total_W[w], out_d[i])
                    lse_TKG[row, k, g] = lse
                    continue
                share = np.float32(1) / (np.float32(1) + exp(before - lse))
                for i in range(d):
                    old = wide(out_d[i])
                    new = old + (sums_dW[i * WIDTH + w] / total_W[w] - old) * share
                    out_d[i] = narrow(new, out_d[i])
                higher = max(lse, before)
                lse_TKG[row, k, g] = higher + np.log(exp(lse - higher) + exp(before - higher))
