"""One common prefix per request: for back ends that cannot take a chain of them.

Some nodes S of the prefix tree are chosen; each prompt is served by the nearest chosen node above
its end, and what lies between is computed for it alone. The number of tokens computed is
Σ_v∈S depth(v) + Σ_prompts (length − depth of its node).

``exact`` minimises that by dynamic programming over (node, nearest chosen ancestor):
F(v, a) = max(Σ_c F(c, a), Σ_c F(c, depth v) − depth v), a prompt being worth a. ``greedy`` is the
rule of the paper's code (``enlarge``): a grandchild g of a node moves up beside its parent c where
(prompts(g) − 1)·len(g) > len(c). BatchLLM (arXiv 2412.03594), section on prefix identification;
``multi`` is ours, for an engine that takes whole chains: every shared node is a segment.

Shapes: P prompts, N nodes of the tree.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shoal.engine.batch.prefixes import Ints, Prefixes

Chosen = NDArray[np.bool_]


def served_by(tree: Prefixes, chosen_N: Chosen) -> Ints:
    """The nearest chosen node at or above each prompt's end, [P]; 0 where there is none."""
    nearest_N = np.zeros(len(tree.parent_N), dtype=np.int64)
    for node in range(1, len(nearest_N)):
        nearest_N[node] = node if chosen_N[node] else nearest_N[tree.parent_N[node]]
    served: Ints = nearest_N[tree.terminal_P]
    return served


def tokens_computed(tree: Prefixes, chosen_N: Chosen) -> int:
    """Prompt tokens a single-level back end computes with these common prefixes."""
    served_P = served_by(tree, chosen_N)
    used = np.unique(served_P)
    return int(tree.end_N[used].sum() + (tree.length_P - tree.end_N[served_P]).sum())


def exact(tree: Prefixes) -> Chosen:
    """The partition that computes the fewest tokens. Time and memory O(nodes · height)."""
    N = len(tree.parent_N)
    ending_N = np.bincount(tree.terminal_P, minlength=N)
    shared_N = tree.prompts >= 2
    depths_N: list[NDArray[np.int64]] = [tree.end_N[:1]] * N  # of the ancestors and itself
    for node in np.flatnonzero(shared_N).tolist():
        if node:
            depths_N[node] = np.append(depths_N[tree.parent_N[node]], tree.end_N[node])
    # A node that one prompt reaches is never chosen: such prompts are worth the depth above.
    alone_N = np.bincount(tree.parent_N[(~shared_N) & (tree.parent_N != np.arange(N))], minlength=N)
    worth_N: list[NDArray[np.int64]] = [
        (ending + alone) * depths if shared else depths
        for ending, alone, depths, shared in zip(
            ending_N.tolist(), alone_N.tolist(), depths_N, shared_N.tolist(), strict=True
        )
    ]
    taken_N: list[NDArray[np.bool_] | None] = [None] * N
    for node in np.flatnonzero(shared_N)[::-1].tolist():
        if not node:
            continue
        worth = worth_N[node]
        with_node = worth[-1] - tree.end_N[node]
        taken_N[node] = with_node > worth[:-1]
        parent = tree.parent_N[node]
        worth_N[parent] = worth_N[parent] + np.maximum(worth[:-1], with_node)
    chosen_N = np.zeros(N, dtype=bool)
    level_N = np.zeros(N, dtype=np.int64)
    nearest_N = np.zeros(N, dtype=np.int64)  # level of the nearest chosen node
    for node in np.flatnonzero(shared_N).tolist():
        taken = taken_N[node]
        if taken is None:
            continue
        parent = tree.parent_N[node]
        level_N[node] = level_N[parent] + 1
        chosen_N[node] = taken[nearest_N[parent]]
        nearest_N[node] = level_N[node] if chosen_N[node] else nearest_N[parent]
    return chosen_N


def greedy(tree: Prefixes) -> Chosen:
    """The partition by the paper's rule, bottom-up."""
    N = len(tree.parent_N)
    shared_N = tree.prompts >= 2
    length = tree.runs.tolist()  # grows when a node moves up beside its parent
    prompts = np.bincount(tree.terminal_P, minlength=N).tolist()  # below, not counting inner ones
    inner: list[list[int]] = [[] for _ in range(N)]
    for node in range(N - 1, 0, -1):
        parent = int(tree.parent_N[node])
        if shared_N[node]:
            inner[parent].append(node)
        else:
            prompts[parent] += 1

    def below(node: int) -> int:
        return int(prompts[node]) + sum(below_N[child] for child in inner[node])

    below_N = [0] * N
    for node in np.flatnonzero(shared_N)[::-1].tolist():
        kept: list[int] = []
        for child in inner[node]:
            stay: list[int] = []
            for grandchild in inner[child]:
                if (below_N[grandchild] - 1) * length[grandchild] > length[child]:
                    length[grandchild] += length[child]
                    kept.append(grandchild)
                else:
                    stay.append(grandchild)
            inner[child] = stay
            if prompts[child] + len(stay) == 1:  # one child left: the two become one
                if stay:
                    length[stay[0]] += length[child]
                    kept.append(stay[0])
                else:
                    prompts[node] += 1
            elif prompts[child] + len(stay):
                below_N[child] = below(child)
                kept.append(child)
        inner[node] = kept
        below_N[node] = below(node)
    chosen_N = np.zeros(N, dtype=bool)
    chosen_N[inner[0]] = True
    return chosen_N


def multi(tree: Prefixes) -> Chosen:
    """Every node that several prompts reach: the segments of a chain."""
    chosen_N = tree.prompts >= 2
    chosen_N[0] = False
    return chosen_N
