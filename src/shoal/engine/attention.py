"""Attention of one step over shared cache: a span is read once for all rows that see it.

The rows of a step belong to pieces of work: a run of tokens of one node of the prefix tree. A
row sees the spans above it, the earlier tokens of its own node, and its own run causally. Spans
seen by several rows are read once, with the queries stacked; short spans seen by one run only are
read with its own tokens (:mod:`shoal.engine.ragged`). The partial results of a row are merged by
their log-sum-exp, which is exact (Milakov and Gimelshein, arXiv 1805.02867; cascade inference
merges the same way); spans that no row shares with another span are merged at once, as one level.
Where many rows see the same keys in bf16, :mod:`shoal.engine.wide` computes them.

Shapes: T rows of the step, H query heads, K key-value heads, G = H / K, d head size,
N slots, n layers, R rows of one part, L span length, S pieces of a span, r = R G.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from shoal.engine import wide
from shoal.engine.pool import KVPool
from shoal.engine.ragged import Run, Runs
from shoal.engine.tree import Node
from shoal.models.adapters.adapter import Adapter

SHORT_SPAN = 32  # below this a call of its own costs more than reading it for every reader
LONG_SPAN = 1024  # from here on a span is read by itself, for
SPLIT_ROWS = 64  # up to this many rows it is cut, so that every core has work
SHORT_RUN = 32  # runs up to this length are read together

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
Rows = slice | torch.Tensor


@dataclass(frozen=True, slots=True)
class Work:
    """Compute tokens ``start .. start + count`` of a node, through an adapter if there is one."""

    node: Node
    start: int
    count: int
    adapter: Adapter | None = None


@dataclass(frozen=True, slots=True)
class _Span:
    """Slots all visible to all of ``rows``: views [S, K, L, d] of every layer's keys and values."""

    rows: Sequence[int]
    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True)
class _Level:
    """Spans of which every row sees at most one: read one by one, merged at once."""

    spans: list[_Span]
    rows: Rows
    counts: list[int]  # rows of each span


class Onlooker(Protocol):
    """Looks at the attention of one row, layer by layer."""

    def see(
        self, layer: int, q_KGd: torch.Tensor, slab_N2Kd: torch.Tensor, lse_KG: torch.Tensor
    ) -> None: ...


class StepAttention:
    """The attention plan of one step; call it as the decoder's ``attend`` for every layer.

    ``onlookers`` look at the rows by whose number they go.
    """

    def __init__(
        self, works: Sequence[Work], pool: KVPool, onlookers: Mapping[int, Onlooker] | None = None
    ) -> None:
        self._pool = pool
        self._onlookers = onlookers or {}
        self._dtype = pool.slab.dtype
        self.slots_T = torch.tensor(
            [
                slot
                for work in works
                for slot in range(
                    work.node.start + work.start, work.node.start + work.start + work.count
                )
            ]
        )
        self.tokens_computed = 0
        self._causal: list[slice] = []
        self._plan(works)

    def _plan(self, works: Sequence[Work]) -> None:
        first_row = _offsets(works)
        seen: dict[tuple[int, int], list[int]] = {}  # (first slot, length) -> works
        for index, work in enumerate(works):
            for start, length in _spans_above(work):
                seen.setdefault((start, length), []).append(index)

        private: list[list[tuple[int, int]]] = [[] for _ in works]
        shared: dict[tuple[int, ...], list[tuple[int, int]]] = {}  # works -> spans
        for span, users in seen.items():
            apart = span[1] < (LONG_SPAN if len(users) == 1 else SHORT_SPAN)
            if apart and all(works[user].count <= SHORT_RUN for user in users):
                for user in users:
                    private[user].append(span)
            else:
                shared.setdefault(tuple(users), []).append(span)
        spans: list[_Span] = []
        for readers, places in shared.items():
            rows = _rows_of(readers, works, first_row)
            for start, length in _joined(places):
                pieces = _pieces(length, [works[i].count for i in readers])
                if rest := length % pieces:
                    for i in readers:
                        private[i].append((start + length - rest, rest))
                spans.append(self._span(rows, start, length - rest, pieces))
        self._levels = _levels(spans)

        runs: list[Run] = []
        for index, work in enumerate(works):
            first, own = first_row[index], work.node.start + work.start
            if work.count > SHORT_RUN:
                self._causal.append(slice(first, first + work.count))
            else:
                runs.append(Run(first, work.count, [*private[index], (own, work.count)]))
        self._runs = Runs(runs) if runs else None

    def __call__(self, layer: int, q_THd: torch.Tensor, kv_T2Kd: torch.Tensor) -> torch.Tensor:
        """Store the rows' keys and values, return attention [T, H, d]."""
        slab_N2Kd = self._pool.slab[layer]
        slab_N2Kd.index_copy_(0, self.slots_T, kv_T2Kd)
        if layer == 0:
            self.tokens_computed += len(q_THd)

        T, H, d = q_THd.shape
        K = kv_T2Kd.shape[2]
        G = H // K
        q_TKGd = q_THd.view(T, K, G, d)
        out_TKGd = q_THd.new_empty(T, K, G, d)
        lse_TKG = torch.empty(T, K, G, dtype=torch.float32)

        for rows in self._causal:
            kv_2Krd = kv_T2Kd[rows].permute(1, 2, 0, 3)
            count = kv_2Krd.shape[2]
            if wide.is_wide(count, count * count // 2, self._dtype):
                out_TKGd[rows], lse_TKG[rows] = wide.attend(q_TKGd[rows], *kv_2Krd, causal=True)
                continue
            out, lse = _flash(
                q_THd[rows].transpose(0, 1)[None], kv_2Krd[:1], kv_2Krd[1:], 0.0, True
            )
            out_TKGd[rows] = out[0].transpose(0, 1).unflatten(1, (K, G))
            lse_TKG[rows] = lse[0].T.unflatten(1, (K, G))

        if self._runs is not None:
            self._runs.attend(q_TKGd, slab_N2Kd, out_TKGd, lse_TKG)
        for level in self._levels:
            seen_RKGd, seen_RKG = _read(level, layer, q_TKGd[level.rows])
            out_RKGd, lse_RKG = out_TKGd[level.rows], lse_TKG[level.rows]  # views of a slice
            out_RKGd.lerp_(seen_RKGd, torch.sigmoid(seen_RKG - lse_RKG).to(q_THd.dtype)[..., None])
            torch.logaddexp(lse_RKG, seen_RKG, out=lse_RKG)
            if not isinstance(level.rows, slice):
                out_TKGd[level.rows], lse_TKG[level.rows] = out_RKGd, lse_RKG
        for row, onlooker in self._onlookers.items():
            onlooker.see(layer, q_TKGd[row], slab_N2Kd, lse_TKG[row])
        return out_TKGd.view(T, H, d)

    def _span(self, rows: Sequence[int], start: int, length: int, pieces: int) -> _Span:
        """Views are made once for all layers: many small spans cost more views than reading."""
        slab_nL2Kd = self._pool.slab[:, start : start + length]
        n, _, _, K, d = slab_nL2Kd.shape
        k_nSKLd, v_nSKLd = slab_nL2Kd.view(n, pieces, -1, 2, K, d).transpose(2, 4).unbind(3)
        return _Span(rows, k_nSKLd.unbind(0), v_nSKLd.unbind(0))


def _read(level: _Level, layer: int, q_RKGd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of a level's rows over its spans: [R, K, G, d] and its lse [R, K, G]."""
    outs, lses = [], []
    for span, q_rKGd in zip(level.spans, q_RKGd.split_with_sizes(level.counts), strict=True):
        out_rKGd, lse_rKG = _read_span(span.keys[layer], span.values[layer], q_rKGd)
        outs.append(out_rKGd)
        lses.append(lse_rKG)
    if len(outs) == 1:
        return outs[0], lses[0]
    return torch.cat(outs), torch.cat(lses)


def _read_span(
    k_SKLd: torch.Tensor, v_SKLd: torch.Tensor, q_RKGd: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of stacked queries over one span: [R, K, G, d] and its lse [R, K, G]."""
    R, K, G, d = q_RKGd.shape
    S = len(k_SKLd)
    if R == S == 1:
        out_1KGd, lse_1KG = _flash(q_RKGd, k_SKLd, v_SKLd, 0.0, False)
        return out_1KGd, lse_1KG
    if S == 1 and wide.is_wide(R, R * k_SKLd.shape[2], q_RKGd.dtype):
        return wide.attend(q_RKGd, k_SKLd[0], v_SKLd[0])
    q_SKrd = q_RKGd.transpose(0, 1).reshape(1, K, R * G, d).expand(S, K, R * G, d)
    out_SKrd, lse_SKr = _flash(q_SKrd, k_SKLd, v_SKLd, 0.0, False)
    if S > 1:
        lse_Kr = lse_SKr.logsumexp(0)
        share_SKr = (lse_SKr - lse_Kr).exp()
        out_Krd = (out_SKrd * share_SKr[..., None]).sum(0).to(q_RKGd.dtype)
    else:
        out_Krd, lse_Kr = out_SKrd[0], lse_SKr[0]
    return out_Krd.view(K, R, G, d).transpose(0, 1), lse_Kr.view(K, R, G).transpose(0, 1)


def _levels(spans: list[_Span]) -> list[_Level]:
    """Every span in the first level in which its rows are still free."""
    levels: list[list[_Span]] = []
    taken: dict[int, int] = {}  # row -> levels it has a span in or before
    for span in sorted(spans, key=lambda span: span.rows[0]):
        level = max(taken.get(row, 0) for row in span.rows)
        taken.update(dict.fromkeys(span.rows, level + 1))
        if level == len(levels):
            levels.append([])
        levels[level].append(span)
    return [
        _Level(each, _rows([row for s in each for row in s.rows]), [len(s.rows) for s in each])
        for each in levels
    ]


def _pieces(length: int, counts: list[int]) -> int:
    """Into how many pieces a span is cut: few rows over a long span are too few tasks."""
    if length < LONG_SPAN or sum(counts) > SPLIT_ROWS or max(counts) > SHORT_RUN:
        return 1
    return 4 if length >= 4 * LONG_SPAN else 2


def _offsets(works: Sequence[Work]) -> list[int]:
    offsets, row = [], 0
    for work in works:
        offsets.append(row)
        row += work.count
    return offsets


def _spans_above(work: Work) -> list[tuple[int, int]]:
    """What a run sees besides itself: nodes above it and the earlier part of its own."""
    spans = [(node.start, len(node.tokens)) for node in work.node.path()[:-1] if node.tokens]
    if work.start:
        spans.append((work.node.start, work.start))
    return spans


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans that lie side by side, as one (their order does not matter to attention)."""
    joined: list[tuple[int, int]] = []
    for start, length in sorted(spans):
        if joined and sum(joined[-1]) == start:
            joined[-1] = (joined[-1][0], joined[-1][1] + length)
        else:
            joined.append((start, length))
    return joined


def _rows_of(users: tuple[int, ...], works: Sequence[Work], first_row: list[int]) -> Sequence[int]:
    return [row for i in users for row in range(first_row[i], first_row[i] + works[i].count)]


def _rows(rows: list[int]) -> Rows:
    """Neighbours are a slice, which is a view; others are gathered by index."""
    if rows == list(range(rows[0], rows[0] + len(rows))):
        return slice(rows[0], rows[0] + len(rows))
    return torch.tensor(rows)
