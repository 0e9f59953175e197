"""What of a batch is computed once: a pruned prefix tree, laid out as rows of one forward pass.

The tree is found from token ids, so it has any depth: a system prompt that all share, the prompts
of groups, earlier turns. Rows are in depth-first order; then what reads a node's keys is one
stretch of rows behind it. A node whose sharing would cost more than it saves is dissolved: its
tokens go to each of its children. Where even the best tree would not pay, nothing is shared.

Shapes: I inputs, N nodes of the pruned tree, T rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shoal.engine.batch.prefixes import Prefixes, find_prefixes
from shoal.models.decoder import DecoderConfig
from shoal.training.rows import Ints

Inputs = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds of a forward pass, and backward where there is one, on one core.

    token  everything but attention, of one token; pair  one token looking at another; span  one
    look of many rows at a shared run; read  one row in such a look; predict  the head, for one
    position; plan  laying out what is shared

    Measured once on a CPU at 70 GFLOP/s. Only ratios decide, and they must not be measured anew in
    each run: a run that is resumed would choose, and round, otherwise.
    """

    token: float
    pair: float
    span: float
    read: float
    predict: float = 0.0
    plan: float = 0.0

    @classmethod
    def of(cls, config: DecoderConfig, *, backward: bool) -> Cost:
        """The cost of a decoder of this architecture."""
        D, wide = config.hidden, config.heads * config.head_dim
        kv = config.kv_heads * config.head_dim
        weights = D * (2 * wide + 2 * kv + 3 * config.intermediate)
        passes, layers = (3 if backward else 1), config.layers
        return cls(
            token=layers * passes * (2 * weights / 70e3 + 0.004 * D),
            pair=layers * passes * 4 * wide / 40e3,
            span=layers * (130.0 if backward else 40.0),
            read=layers * passes * wide * 0.0008,
            predict=passes * 2 * D * config.vocab / 70e3,
            plan=600.0,
        )


FREE = Cost(token=1.0, pair=0.0, span=0.0, read=0.0)
"""Under which everything that can be shared is."""


@dataclass(frozen=True, slots=True, eq=False)
class Forest:
    """Rows of a forward pass: a node's own are ``first .. own``, those below it ``own .. last``.

    ids_T, positions_T  token and position of each row; positions start anew behind shared rows
    first_N, own_N, last_N  rows of each node, depth first
    level_N     how many nodes are above each
    node_I      the node at or below which each input ends
    parent_N, start_N  the node above (-1 for none), and the position of a node's first row
    """

    ids_T: Ints
    positions_T: Ints
    first_N: Ints
    own_N: Ints
    last_N: Ints
    level_N: Ints
    parent_N: Ints
    start_N: Ints
    node_I: Ints

    def rows(self, input_A: Ints, position_A: Ints) -> Ints:
        """The rows that hold these positions of these inputs, [A]."""
        node_A = self.node_I[input_A]
        while (above := position_A < self.start_N[node_A]).any():
            node_A = np.where(above, self.parent_N[node_A], node_A)
        rows: Ints = self.first_N[node_A] + position_A - self.start_N[node_A]
        return rows

    def seconds(self, cost: Cost) -> float:
        """What it would take, by a cost model."""
        own_N, below_N = self.own_N - self.first_N, self.last_N - self.own_N
        shared_N = below_N > 0
        pairs = (own_N * own_N / 2 + own_N * below_N).sum()
        spans = 1 + float(shared_N.sum())
        read = below_N[shared_N].sum()
        work = cost.token * len(self.ids_T) + cost.pair * pairs
        return float(work + cost.span * spans + cost.read * read + cost.plan) * 1e-6


def forest(inputs: Inputs, tree: Prefixes, cost: Cost) -> Forest:
    """The tree of inputs without the nodes that do not pay, laid out."""
    kept_M = _kept(tree, cost)
    order = np.lexsort((tree.end_N, tree.first_N))  # depth first
    nodes = order[kept_M[order]]
    place_M = np.full(len(kept_M), -1, dtype=np.int64)
    place_M[nodes] = np.arange(len(nodes))
    above_M = _nearest_kept(tree, kept_M)
    start_N, end_N = tree.end_N[above_M[nodes]], tree.end_N[nodes]
    own_N = end_N - start_N
    parent_N = place_M[above_M[nodes]]
    below_N, level_N = np.zeros_like(own_N), np.zeros_like(own_N)
    for n in range(len(nodes) - 1, -1, -1):
        if parent_N[n] >= 0:
            below_N[parent_N[n]] += own_N[n] + below_N[n]
    for n, parent in enumerate(parent_N.tolist()):
        level_N[n] = level_N[parent] + 1 if parent >= 0 else 0
    first_N = np.cumsum(own_N) - own_N
    member = tree.order_P[tree.first_N[nodes]].tolist()
    spans = zip(member, start_N.tolist(), end_N.tolist(), strict=True)
    runs = [inputs[index][start:end] for index, start, end in spans]
    return Forest(
        ids_T=np.fromiter((token for run in runs for token in run), np.int64, int(own_N.sum())),
        positions_T=np.arange(int(own_N.sum())) + np.repeat(start_N - first_N, own_N),
        first_N=first_N,
        own_N=first_N + own_N,
        last_N=first_N + own_N + below_N,
        level_N=level_N,
        parent_N=parent_N,
        start_N=start_N,
        node_I=place_M[_carriers(tree, kept_M)[tree.terminal_P]],
    )


def _kept(tree: Prefixes, cost: Cost) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which nodes are computed by themselves, [M], decided from the leaves up.

    A node with k children saves k - 1 times its tokens, and costs one more look at its keys.
    """
    M = len(tree.parent_N)
    kept_M = np.ones(M, dtype=np.bool_)
    kept_M[0] = False
    kids, below = [0] * M, [0] * M
    parent, end, run = tree.parent_N.tolist(), tree.end_N.tolist(), tree.runs.tolist()
    for node in range(M - 1, 0, -1):
        above = parent[node]
        if kids[node]:
            each = cost.token + cost.pair * (end[node] - run[node] / 2)
            saved = (kids[node] - 1) * run[node] * each
            if saved <= cost.span + cost.read * below[node]:
                kept_M[node] = False
                kids[above] += kids[node]
                below[above] += below[node] + kids[node] * run[node]
                continue
        kids[above] += 1
        below[above] += below[node] + run[node]
    return kept_M


def _nearest_kept(tree: Prefixes, kept_M: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Ints:
    """The nearest kept node above each, or the root, [M]."""
    above_M = np.zeros(len(kept_M), dtype=np.int64)
    for node in range(1, len(kept_M)):  # parents come first
        parent = tree.parent_N[node]
        above_M[node] = parent if kept_M[parent] or not parent else above_M[parent]
    return above_M


def _carriers(tree: Prefixes, kept_M: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Ints:
    """A kept node that holds each node's tokens or ends below them, [M].

    An input that ends at a dissolved node is read off one of the children that took its tokens.
    """
    carrier_M = np.where(kept_M, np.arange(len(kept_M)), -1)
    for node in range(len(kept_M) - 1, 0, -1):
        parent = tree.parent_N[node]
        if parent and not kept_M[parent]:
            carrier_M[parent] = carrier_M[node]
    return carrier_M


def common(tree: Prefixes) -> Ints:
    """How many tokens each input shares with its neighbour before it in the tree's order, [I]."""
    common_I = np.zeros(len(tree.order_P), dtype=np.int64)
    nodes = zip(tree.first_N.tolist(), tree.last_N.tolist(), tree.end_N.tolist(), strict=True)
    for first, last, end in nodes:  # deeper nodes come later and know better
        common_I[first + 1 : last] = end
    return common_I


def cut(tree: Prefixes, *, rows: int) -> list[Ints]:
    """Inputs in parts of at most so many, by subtree, so that sharing survives.

    Of all ways to cut the tree's order one that computes the fewest tokens; each part counts as
    ``PART`` tokens more.
    """
    common_I = common(tree).tolist()
    best, back = [0], [0]
    window: deque[tuple[int, int]] = deque()  # what beginning a part here costs, growing; where
    for last in range(1, len(common_I) + 1):
        begin = best[-1] + common_I[last - 1] + PART
        while window and window[-1][0] >= begin:
            window.pop()
        window.append((begin, last - 1))
        if window[0][1] < last - rows:
            window.popleft()
        best.append(window[0][0])
        back.append(window[0][1])
    parts, last = [], len(common_I)
    while last:
        parts.append(tree.order_P[back[last] : last])
        last = back[last]
    return parts[::-1]


PART = 16


def filled(tree: Prefixes, *, tokens: int) -> list[Ints]:
    """Inputs in the tree's order, in parts of so many tokens; one alone may be longer."""
    lengths = tree.length_P[tree.order_P].tolist()
    starts, size = [0], 0
    for place, (length, shared) in enumerate(zip(lengths, common(tree).tolist(), strict=True)):
        size += length - (shared if place > starts[-1] else 0)
        if size > tokens and place > starts[-1]:
            starts.append(place)
            size = length
    return np.split(tree.order_P, starts[1:])


def in_order(inputs: Inputs) -> Ints:
    """Places of rows in the tree's order, those without tokens last."""
    places = np.array([at for at, tokens in enumerate(inputs) if len(tokens)], dtype=np.int64)
    empty = np.array([at for at, tokens in enumerate(inputs) if not len(tokens)], dtype=np.int64)
    if not len(places):
        return empty
    tree = find_prefixes([inputs[at] for at in places])
    return np.concatenate((places[tree.order_P], empty))


def subtrees(inputs: Inputs, *, rows: int) -> list[Ints]:
    """Places of rows in parts of at most ``rows`` that share what they can, empty ones last."""
    order = in_order(inputs)
    whole = sum(1 for tokens in inputs if len(tokens))
    parts = []
    if whole:
        tree = find_prefixes([inputs[at] for at in order[:whole]])
        parts = [order[part] for part in cut(tree, rows=rows)]
    return parts + [order[at : at + rows] for at in range(whole, len(order), rows)]
