"""What an online prefix cache saves: requests in order of arrival, least recently used goes first.

The baseline that knows nothing of what is to come. The cache holds runs of the prefix tree,
rounded down to whole blocks if asked; a request in progress keeps its own; then leaves go, the
one used longest ago first. Requests run ``parallel`` at a time, and those that run together share
what they begin with (SGLang delays duplicates so; plain block hashing would recompute them).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from shoal.engine.batch.prefixes import Ints, Prefixes


def lru_tokens(
    tree: Prefixes,
    arrival_P: Sequence[int] | Ints,
    *,
    capacity: int | None,
    answer_P: Ints | None = None,
    block: int = 1,
    parallel: int = 1,
) -> int:
    """Prompt tokens computed with an LRU prefix cache of ``capacity`` tokens (None: unlimited).

    A request of which not even one fits the cache is computed and not kept.
    """
    N = len(tree.parent_N)
    end_N = tree.end_N // block * block
    run = (end_N - end_N[tree.parent_N]).tolist()
    parent, terminal = tree.parent_N.tolist(), tree.terminal_P.tolist()
    length = tree.length_P.tolist()
    answers = [0] * len(length) if answer_P is None else answer_P.tolist()
    limit = float("inf") if capacity is None else capacity
    cached, children, pins, used_at = [False] * N, [0] * N, [0] * N, [0] * N
    leaves: list[tuple[int, int]] = []
    held, computed = 0, 0
    running: list[int] = []

    def release(prompt: int) -> None:
        nonlocal held
        held -= answers[prompt]
        for node in tree.path(terminal[prompt]):
            pins[node] -= 1
        if not children[terminal[prompt]]:
            heapq.heappush(leaves, (used_at[terminal[prompt]], terminal[prompt]))

    def evict() -> None:
        nonlocal held
        while held > limit and leaves:
            used, node = heapq.heappop(leaves)
            if not cached[node] or pins[node] or children[node] or used != used_at[node]:
                continue
            cached[node] = False
            held -= run[node]
            above = parent[node]
            children[above] -= 1
            if above and not children[above]:
                heapq.heappush(leaves, (used_at[above], above))

    for now, prompt in enumerate(np.asarray(arrival_P).tolist(), start=1):
        if len(running) == parallel:
            release(running.pop(0))
        path = tree.path(terminal[prompt])
        hit = 0
        for node in path:
            used_at[node] = now
            pins[node] += 1
            if cached[node]:
                hit += run[node]
            else:
                cached[node] = True
                children[parent[node]] += 1
                held += run[node]
        computed += length[prompt] - hit
        held += answers[prompt]
        running.append(prompt)
        evict()
    return computed
