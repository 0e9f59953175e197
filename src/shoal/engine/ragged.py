"""Attention of a few rows, each over cache that it reads alone, where it lies.

A run's cache lies in pieces: spans of prefixes and of its own tokens. torch's kernel wants them
copied together and padded to one length; this loop does neither, and takes less than half the
time (96 single rows over 450 keys each).

Shapes: T rows of the step, W runs, R rows of a run, K key-value heads, G query heads of each,
d head size, N slots of the cache, P pieces, S stacked rows R G, L keys of a run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numba import prange
from numpy.typing import NDArray

from shoal.models.native import LOWEST, Loop, array, exp, narrow, of_rank, rank, wide


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive rows, and the pieces of cache they see: (first slot, length) of each.

    The last piece ends with the rows' own tokens, so it has as many at least: row i does not see
    those of the rows after it.
    """

    first: int
    rows: int
    pieces: Sequence[tuple[int, int]]


class Runs:
    """Runs of one step, laid out for the loop."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.seen = [sum(length for _, length in run.pieces) for run in runs]  # keys
        self.rows = sum(run.rows for run in runs)
        self._first_W = np.array([run.first for run in runs])
        self._rows_W = np.array([run.rows for run in runs])
        self._piece_W = np.cumsum([0, *(len(run.pieces) for run in runs)])
        self._pieces_P2 = np.array([piece for run in runs for piece in run.pieces])
        self._pairs = sum(run.rows * seen for run, seen in zip(runs, self.seen, strict=True))

    def attend(
        self,
        q_TKGd: torch.Tensor,
        slab_N2Kd: torch.Tensor,
        out_TKGd: torch.Tensor,
        lse_TKG: torch.Tensor,
    ) -> None:
        """Put results and their log-sum-exp (fp32) where the runs' rows are."""
        d = q_TKGd.shape[3]
        _attend(
            self._pairs * q_TKGd[0].numel(),
            torch.get_num_threads(),
            np.float32(1 / math.sqrt(d)),
            *(self._first_W, self._rows_W, self._piece_W, self._pieces_P2),
            *(array(q_TKGd.contiguous()), array(slab_N2Kd), array(out_TKGd), array(lse_TKG)),
        )


@Loop
def _attend(
    threads: Any,
    scale: Any,
    first_W: NDArray[np.int64],
    rows_W: NDArray[np.int64],
    piece_W: NDArray[np.int64],
    pieces_P2: NDArray[np.int64],
    q_TKGd: Any,
    slab_N2Kd: Any,
    out_TKGd: Any,
    lse_TKG: Any,
) -> None:
    _, K, G, d = q_TKGd.shape
    for thread in prange(threads):
        for task in range(thread, len(first_W) * K, threads):
            w, k = task // K, task % K
            R = rows_W[w]
            S = R * G
            pieces_p2 = pieces_P2[piece_W[w] : piece_W[w + 1]]
            L = pieces_p2[:, 1].sum()
            q_Sd = np.empty((S, d), np.float32)
            for s in range(S):
                for i in range(d):
                    q_Sd[s, i] = wide(q_TKGd[first_W[w] + s // G, k, s % G, i]) * scale

            scores_SL = np.empty((S, L), np.float32)
            at = 0
            for p in range(len(pieces_p2)):
                for slot in range(pieces_p2[p, 0], pieces_p2[p, 0] + pieces_p2[p, 1]):
                    key_d = slab_N2Kd[slot, 0, k]
                    for s in range(S):
                        q_d = q_Sd[s]
                        score = np.float32(0)
                        for i in range(d):
                            score += q_d[i] * wide(key_d[i])
                        scores_SL[s, at] = score
                    at += 1

            for s in range(S):
                seen = L - (R - 1 - s // G)
                scores_L = scores_SL[s, :seen]
                highest = LOWEST
                for j in range(seen):
                    highest = max(highest, rank(scores_L[j]))
                top = of_rank(highest)
                total = np.float32(0)
                for j in range(seen):
                    scores_L[j] = exp(scores_L[j] - top)
                    total += scores_L[j]
                for j in range(seen):
                    scores_L[j] /= total
                scores_SL[s, seen:] = 0
                lse_TKG[first_W[w] + s // G, k, s % G] = top + np.log(total)

            sums_Sd = np.zeros((S, d), np.float32)
            at = 0
            for p in range(len(pieces_p2)):
                for slot in range(pieces_p2[p, 0], pieces_p2[p, 0] + pieces_p2[p, 1]):
                    value_d = slab_N2Kd[slot, 1, k]
                    for s in range(S):
                        sum_d = sums_Sd[s]
                        weight = scores_SL[s, at]
                        for i in range(d):
                            sum_d[i] += weight * wide(value_d[i])
                    at += 1

            for s in range(S):
                out_d = out_TKGd[first_W[w] + s // G, k, s % G]
                for i in range(d):
                    out_d[i] = narrow(sums_Sd[s, i], out_d[i])
