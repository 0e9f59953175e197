"""Attention of one step over shared cache: a span is read once for all rows that see it.

The rows of a step belong to pieces of work: a run of tokens of one node of the prefix tree. A
row sees the spans above it, the earlier tokens of its own node, and its own run causally. A run of
many rows reads all of that in one go. Short runs that see the same span read it together, and what
only one of them sees by itself; single rows have a loop of their own (:mod:`shoal.engine.ragged`).
The partial results of a row are merged by their log-sum-exp, as in cascade inference.

Shapes: T rows of the step, H query heads, K key-value heads, G = H / K, d head size, N slots,
n layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from shoal.engine.parts import Part, Parts
from shoal.engine.pool import KVPool
from shoal.engine.ragged import Run, Runs
from shoal.engine.tree import Node
from shoal.models.adapters.adapter import Adapter

STACKED = 4  # rows from which reading together takes less time than each for itself
MANY = 64  # rows of one run that fill registers by themselves
SHORT_SPAN = 32  # below this many keys merging costs more than reading them again


@dataclass(frozen=True, slots=True)
class Work:
    """Compute tokens ``start .. start + count`` of a node, through an adapter if there is one."""

    node: Node
    start: int
    count: int
    adapter: Adapter | None = None


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
        self._plan(works)

    def _plan(self, works: Sequence[Work]) -> None:
        first_row = _offsets(works)
        above = [_spans_above(work) for work in works]
        readers: dict[tuple[int, int], list[int]] = {}  # (first slot, length) -> short works
        for index, work in enumerate(works):
            for span in above[index] if work.count < MANY else ():
                readers.setdefault(span, []).append(index)
        together: dict[tuple[int, ...], list[tuple[int, int]]] = {}  # works -> spans
        for span, users in readers.items():
            rows = sum(works[i].count for i in users)
            if len(users) > 1 and span[1] >= SHORT_SPAN and rows >= STACKED:
                together.setdefault(tuple(users), []).append(span)
        shared = {span for spans in together.values() for span in spans}

        runs: list[Run] = []
        parts: list[Part] = []
        for index, work in enumerate(works):
            first, own = first_row[index], (work.node.start + work.start, work.count)
            spans = above[index]
            if work.count < MANY:
                spans = [span for span in spans if span not in shared]
            if work.count < STACKED:
                runs.append(Run(first, work.count, [*spans, own]))
                continue
            before = sum(length for _, length in spans)
            seen = range(before + 1, before + work.count + 1)
            parts.append(Part(range(first, first + work.count), seen, [*spans, own]))
        for readers_of, spans in together.items():
            rows_of = [first_row[i] + row for i in readers_of for row in range(works[i].count)]
            keys = sum(length for _, length in spans)
            parts.append(Part(rows_of, [keys] * len(rows_of), _joined(spans)))
        self._runs = Runs(runs) if runs else None
        self._levels = [Parts(level) for level in _levels(parts)]

    def __call__(self, layer: int, q_THd: torch.Tensor, kv_T2Kd: torch.Tensor) -> torch.Tensor:
        """Store the rows' keys and values, return attention [T, H, d]."""
        slab_N2Kd = self._pool.slab[layer]
        slab_N2Kd.index_copy_(0, self.slots_T, kv_T2Kd)
        if layer == 0:
            self.tokens_computed += len(q_THd)

        T, H, d = q_THd.shape
        K = kv_T2Kd.shape[2]
        q_TKGd = q_THd.view(T, K, H // K, d)
        out_TKGd = q_THd.new_empty(T, K, H // K, d)
        lse_TKG = torch.full((T, K, H // K), float("-inf"))
        if self._runs is not None:
            self._runs.attend(q_TKGd, slab_N2Kd, out_TKGd, lse_TKG)
        for parts in self._levels:
            parts.attend(q_TKGd, slab_N2Kd, out_TKGd, lse_TKG)
        for row, onlooker in self._onlookers.items():
            onlooker.see(layer, q_TKGd[row], slab_N2Kd, lse_TKG[row])
        return out_TKGd.view(T, H, d)


def _levels(parts: Sequence[Part]) -> list[list[Part]]:
    """Every part in the first level in which its rows are still free."""
    levels: list[list[Part]] = []
    taken: dict[int, int] = {}  # row -> levels it has a part in or before
    for part in parts:
        level = max(taken.get(row, 0) for row in part.rows)
        taken.update(dict.fromkeys(part.rows, level + 1))
        if level == len(levels):
            levels.append([])
        levels[level].append(part)
    return levels


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
