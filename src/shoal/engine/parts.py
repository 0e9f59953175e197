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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numba import prange

from shoal.engine.division import Division, Task, divided
from shoal.models.native import SMALL, Loop, array, exp, inlined, narrow, wide
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
        self._divisions: dict[tuple[int, int], Division] = {}  # by key-value and query heads

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
        K, G, d = q_TKGd.shape[1:]
        division = self._divisions.get((K, G))
        if division is None:
            tasks = self._stacked(G)
            division = self._divisions[K, G] = divided(tasks, K, torch.get_num_threads())
        kept_3W = np.empty((division.places * K, (d + 2) * WIDTH), np.float32)
        out, lse = array(out_TKGd), array(lse_TKG)
        _attend(
            self._pairs * q_TKGd[0].numel(),
            torch.get_num_threads(),
            np.float32(1 / math.sqrt(d)),
            *(division.tasks_n5, kept_3W),
            *(self._rows_E, self._seen_E, self._first_P, self._piece_P, self._pieces_2),
            *(array(q_TKGd.contiguous()), array(slab_N2Kd), out, lse),
        )
        if division.places:
            kept = (division.joins_m4, kept_3W)
            _join(SMALL, *kept, self._rows_E, self._first_P, out, lse)

    def _stacked(self, heads: int) -> Iterator[Task]:
        """As many queries of a part as fit beside each other, its rows' heads one by one."""
        for p, rows in enumerate(self.rows):
            for first in range(0, rows * heads, WIDTH):
                last = min(first + WIDTH, rows * heads) - 1
                begin = self._first_P[p]
                seen = self._seen_E[begin + first // heads : begin + last // heads + 1]
                yield Task(p, first, int(seen.min()), int(seen.max()))


@inlined
def _sums(kept_3W: Any, place: Any) -> Any:
    """What a piece has found: sums [d W], the highest score [W] and the total [W] of each query."""
    own = kept_3W[place]
    cut = len(own) - WIDTH
    return own[: cut - WIDTH], own[cut - WIDTH : cut], own[cut:]


@inlined
def _put(sums_dW: Any, w: Any, top: Any, total: Any, out_d: Any, lse_G: Any, g: Any) -> None:
    """The result of one query where its row is, merged with what is there."""
    lse, before = top + np.log(total), lse_G[g]
    if before < _HIDDEN:
        for i in range(len(out_d)):
            out_d[i] = narrow(sums_dW[i * WIDTH + w] / total, out_d[i])
        lse_G[g] = lse
        return
    share = np.float32(1) / (np.float32(1) + exp(before - lse))
    for i in range(len(out_d)):
        old = wide(out_d[i])
        new = old + (sums_dW[i * WIDTH + w] / total - old) * share
        out_d[i] = narrow(new, out_d[i])
    higher = max(lse, before)
    lse_G[g] = higher + np.log(exp(lse - higher) + exp(before - higher))


@Loop
def _attend(
    threads: Any,
    sharpness: Any,
    tasks_n5: Any,
    kept_3W: Any,
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
        for task in range(thread, len(tasks_n5) * K, threads):
            p, first, begin, end, place = tasks_n5[task // K]
            k = task % K
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
            most = min(most, end)
            top_W[:] = _HIDDEN
            total_W[:] = 0
            sums_dW[:] = 0

            at = np.int64(0)  # keys before
            for piece in range(piece_P[p], piece_P[p + 1]):
                skipped = min(max(begin - at, 0), pieces_2[piece, 1])
                start, length = pieces_2[piece, 0] + skipped, pieces_2[piece, 1] - skipped
                at += skipped
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

            if place >= 0:
                kept_dW, kept_top_W, kept_total_W = _sums(kept_3W, place * K + k)
                for i in range(d * WIDTH):  # not as slices: those of other threads get in
                    kept_dW[i] = sums_dW[i]
                for w in range(WIDTH):
                    kept_top_W[w], kept_total_W[w] = top_W[w], total_W[w]
                continue
            for w in range(queries):
                row, g = rows_E[entry_W[w]], head_W[w]
                _put(sums_dW, w, top_W[w], total_W[w], out_TKGd[row, k, g], lse_TKG[row, k], g)


@Loop
def _join(
    joins_m4: Any, kept_3W: Any, rows_E: Any, first_P: Any, out_TKGd: Any, lse_TKG: Any
) -> None:
    _, K, G, d = out_TKGd.shape
    for join in prange(len(joins_m4) * K):
        own_W, share_W = np.empty(WIDTH, np.float32), np.empty(WIDTH, np.float32)
        p, first, place, count = joins_m4[join // K]
        k = join % K
        sums_dW, top_W, total_W = _sums(kept_3W, place * K + k)
        for other in range(place + 1, place + count):
            other_dW, other_top_W, other_total_W = _sums(kept_3W, other * K + k)
            for w in range(WIDTH):
                higher = max(top_W[w], other_top_W[w])
                own_W[w], share_W[w] = exp(top_W[w] - higher), exp(other_top_W[w] - higher)
                top_W[w] = higher
                total_W[w] = total_W[w] * own_W[w] + other_total_W[w] * share_W[w]
            for i in range(d):
                for w in range(WIDTH):
                    at = i * WIDTH + w
                    sums_dW[at] = sums_dW[at] * own_W[w] + other_dW[at] * share_W[w]
        for w in range(min(WIDTH, (first_P[p + 1] - first_P[p]) * G - first)):
            row, g = rows_E[first_P[p] + (first + w) // G], (first + w) % G
            _put(sums_dW, w, top_W[w], total_W[w], out_TKGd[row, k, g], lse_TKG[row, k], g)
