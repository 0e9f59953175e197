"""Attention of a few rows, each over cache that it reads alone, where it lies.

A run's cache lies in pieces: spans of prefixes and of its own tokens. torch's kernel wants them
copied together and padded to one length; this loop does neither, and takes less than half the
time (96 single rows over 450 keys each).

Shapes: T rows of the step, W runs, R rows of a run, K key-value heads, G query heads of each,
d head size, N slots of the cache, P pieces, S stacked rows R G, L keys of a task; n tasks and m
runs whose keys are read in several (:mod:`shoal.engine.division`).
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

from shoal.engine.division import Division, Task, divided
from shoal.models.native import LOWEST, SMALL, Loop, array, exp, narrow, of_rank, rank, wide


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
        self._tasks = [
            Task(w, 0, seen - run.rows + 1, seen)
            for w, (run, seen) in enumerate(zip(runs, self.seen, strict=True))
        ]
        self._divisions: dict[int, Division] = {}  # by key-value heads

    def attend(
        self,
        q_TKGd: torch.Tensor,
        slab_N2Kd: torch.Tensor,
        out_TKGd: torch.Tensor,
        lse_TKG: torch.Tensor,
    ) -> None:
        """Put results and their log-sum-exp (fp32) where the runs' rows are."""
        _, K, G, d = q_TKGd.shape
        division = self._divisions.get(K)
        if division is None:
            division = self._divisions[K] = divided(self._tasks, K, torch.get_num_threads())
        kept_Sd2 = np.empty((division.places * K, int(self._rows_W.max()) * G, d + 2), np.float32)
        out, lse = array(out_TKGd), array(lse_TKG)
        _attend(
            self._pairs * q_TKGd[0].numel(),
            torch.get_num_threads(),
            np.float32(1 / math.sqrt(d)),
            *(division.tasks_n5, kept_Sd2),
            *(self._first_W, self._rows_W, self._piece_W, self._pieces_P2),
            *(array(q_TKGd.contiguous()), array(slab_N2Kd), out, lse),
        )
        if division.places:
            kept = (division.joins_m4, kept_Sd2)
            _join(SMALL, *kept, self._first_W, self._rows_W, out, lse)


@Loop
def _attend(
    threads: Any,
    scale: Any,
    tasks_n5: NDArray[np.int64],
    kept_Sd2: Any,
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
        for task in range(thread, len(tasks_n5) * K, threads):
            w, _, begin, end, place = tasks_n5[task // K]
            k = task % K
            R, L = rows_W[w], end - begin
            S = R * G
            pieces_p2 = pieces_P2[piece_W[w] : piece_W[w + 1]]
            hidden = pieces_p2[:, 1].sum() - end  # keys after this task's
            q_Sd = np.empty((S, d), np.float32)
            for s in range(S):
                for i in range(d):
                    q_Sd[s, i] = wide(q_TKGd[first_W[w] + s // G, k, s % G, i]) * scale

            scores_SL = np.empty((S, L), np.float32)
            at, before = 0, 0
            for p in range(len(pieces_p2)):
                skipped = min(max(begin - before, 0), pieces_p2[p, 1])
                first = pieces_p2[p, 0] + skipped
                length = min(pieces_p2[p, 1] - skipped, L - at)
                for slot in range(first, first + length):
                    key_d = slab_N2Kd[slot, 0, k]
                    for s in range(S):
                        q_d = q_Sd[s]
                        score = np.float32(0)
                        for i in range(d):
                            score += q_d[i] * wide(key_d[i])
                        scores_SL[s, at] = score
                    at += 1
                before += pieces_p2[p, 1]

            top_S, total_S = np.empty(S, np.float32), np.empty(S, np.float32)
            for s in range(S):
                seen = min(L, L + hidden - (R - 1 - s // G))
                scores_L = scores_SL[s, :seen]
                highest = LOWEST
                for j in range(seen):
                    highest = max(highest, rank(scores_L[j]))
                top = of_rank(highest)
                total = np.float32(0)
                for j in range(seen):
                    scores_L[j] = exp(scores_L[j] - top)
                    total += scores_L[j]
                scores_SL[s, seen:] = 0
                top_S[s], total_S[s] = top, total

            sums_Sd = np.zeros((S, d), np.float32)
            at, before = 0, 0
            for p in range(len(pieces_p2)):
                skipped = min(max(begin - before, 0), pieces_p2[p, 1])
                first = pieces_p2[p, 0] + skipped
                length = min(pieces_p2[p, 1] - skipped, L - at)
                for slot in range(first, first + length):
                    value_d = slab_N2Kd[slot, 1, k]
                    for s in range(S):
                        sum_d = sums_Sd[s]
                        weight = scores_SL[s, at]
                        for i in range(d):
                            sum_d[i] += weight * wide(value_d[i])
                    at += 1
                before += pieces_p2[p, 1]

            for s in range(S):
                if place >= 0:
                    kept_d2 = kept_Sd2[place * K + k, s]
                    for i in range(d):
                        kept_d2[i] = sums_Sd[s, i]
                    kept_d2[d], kept_d2[d + 1] = top_S[s], total_S[s]
                    continue
                row, g = first_W[w] + s // G, s % G
                out_d, share = out_TKGd[row, k, g], np.float32(1) / total_S[s]
                for i in range(d):
                    out_d[i] = narrow(sums_Sd[s, i] * share, out_d[i])
                lse_TKG[row, k, g] = top_S[s] + np.log(total_S[s])


@Loop
def _join(
    joins_m4: Any, kept_Sd2: Any, first_W: Any, rows_W: Any, out_TKGd: Any, lse_TKG: Any
) -> None:
    _, K, G, d = out_TKGd.shape
    for join in prange(len(joins_m4) * K):
        w, _, place, count = joins_m4[join // K]
        k = join % K
        for s in range(rows_W[w] * G):
            top = kept_Sd2[place * K + k, s, d]
            for other in range(place + 1, place + count):
                top = max(top, kept_Sd2[other * K + k, s, d])
            total = np.float32(0)
            sum_d = np.zeros(d, np.float32)
            for piece in range(place, place + count):
                kept_d2 = kept_Sd2[piece * K + k, s]
                share = exp(kept_d2[d] - top)
                total += kept_d2[d + 1] * share
                for i in range(d):
                    sum_d[i] += kept_d2[i] * share
            row, g = first_W[w] + s // G, s % G
            out_d = out_TKGd[row, k, g]
            for i in range(d):
                out_d[i] = narrow(sum_d[i] / total, out_d[i])
            lse_TKG[row, k, g] = top + np.log(total)
