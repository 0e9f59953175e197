"""In which order a job's prompts run, and what that order will take.

Groups whose answers are long for what has to be read come first (BatchLLM, arXiv 2412.03594:
R = Σ answer tokens / Σ prompt tokens after sharing, descending), so that their decoding rides
along with the reading of later groups; ties go to the longer prefix. The tree is walked depth
first, so each shared prefix is needed during one stretch and can then be freed. Departure: the
paper has one level of groups; here every level of the tree is sorted so, below its parent.

Shapes: P prompts, N nodes of the tree.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shoal.engine.batch.partition import Chosen, served_by
from shoal.engine.batch.prefixes import Ints, Prefixes

Order = Literal["ratio", "prefix", "arrival"]
"""By the paper's ratio, by prefix alone (longest first), or prompts as they came."""


def flattened(tree: Prefixes, chosen_N: Chosen) -> Prefixes:
    """The tree a single-level back end works on: a chosen prefix, then one prompt's own rest."""
    served_P = served_by(tree, chosen_N)
    used = np.unique(served_P)
    used = used[used > 0]
    place_N = np.zeros(len(tree.parent_N), dtype=np.int64)
    place_N[used] = np.arange(1, len(used) + 1)
    group_P = place_N[served_P]
    order_P = tree.order_P[np.argsort(group_P[tree.order_P], kind="stable")]
    rank_P = np.empty_like(order_P)
    rank_P[order_P] = np.arange(len(order_P))
    rest_P = tree.length_P > tree.end_N[served_P]
    own = np.flatnonzero(rest_P)
    own = own[np.argsort(rank_P[own])]
    size = np.bincount(group_P, minlength=len(used) + 1)
    begin = np.concatenate([[0], np.cumsum(size)[:-1]])
    terminal_P = group_P.copy()
    terminal_P[own] = np.arange(len(used) + 1, len(used) + 1 + len(own))
    first = np.concatenate([[0], begin[1:], rank_P[own]])
    last = np.concatenate([[len(order_P)], (begin + size)[1:], rank_P[own] + 1])
    return Prefixes(
        parent_N=np.concatenate([np.zeros(len(used) + 1, dtype=np.int64), group_P[own]]),
        end_N=np.concatenate([[0], tree.end_N[used], tree.length_P[own]]),
        first_N=first,
        last_N=last,
        order_P=order_P,
        terminal_P=terminal_P,
        length_P=tree.length_P,
    )


def ratios(tree: Prefixes, answer_P: Ints) -> NDArray[np.float64]:
    """Answer tokens over prompt tokens below each node, its own included, [N]."""
    before = np.concatenate([[0], np.cumsum(answer_P[tree.order_P])])
    answers_N = before[tree.last_N] - before[tree.first_N]
    tokens_N = tree.runs
    for node in range(len(tokens_N) - 1, 0, -1):
        tokens_N[tree.parent_N[node]] += tokens_N[node]
    ratio_N: NDArray[np.float64] = answers_N / np.maximum(tokens_N, 1)
    return ratio_N


def execution_order(
    tree: Prefixes,
    answer_P: Ints,
    order: Order = "ratio",
    urgent_N: NDArray[np.bool_] | None = None,
) -> Ints:
    """Prompts in the order in which they should start, [P].

    ``answer_P`` are the lengths that answers are expected to have. ``urgent_N`` marks nodes whose
    tokens are in memory already: they come before their neighbours.
    """
    P, N = len(tree.order_P), len(tree.parent_N)
    if order == "arrival":
        return np.arange(P)
    ratio_N = ratios(tree, answer_P) if order == "ratio" else np.zeros(N)
    urgent = np.zeros(N, dtype=bool) if urgent_N is None else urgent_N
    earliest_N = least_below(tree, np.arange(P))  # the last tie-breaker
    ranked = np.lexsort((earliest_N, -tree.end_N, -ratio_N, ~urgent, tree.parent_N))
    children: list[list[int]] = [[] for _ in range(N)]
    for node in ranked[::-1].tolist():  # last first, as they go on a stack
        if node:
            children[int(tree.parent_N[node])].append(node)
    ending: list[list[int]] = [[] for _ in range(N)]
    for prompt, node in enumerate(tree.terminal_P.tolist()):
        ending[node].append(prompt)
    found: list[int] = []
    stack = [0]
    while stack:
        node = stack.pop()
        found += ending[node]
        stack += children[node]
    return np.array(found, dtype=np.int64)


def least_below(tree: Prefixes, value_P: Ints) -> Ints:
    """The smallest value among the prompts below each node, [N]."""
    least_N = np.full(len(tree.parent_N), np.iinfo(np.int64).max)
    np.minimum.at(least_N, tree.terminal_P, value_P)
    for node in range(len(least_N) - 1, 0, -1):
        parent = tree.parent_N[node]
        least_N[parent] = min(least_N[parent], least_N[node])
    return least_N


@dataclass(frozen=True, slots=True)
class Forecast:
    """What running in an order takes: forward passes, rows in them, cached tokens at most."""

    steps: int
    rows: int
    peak_tokens: int


def forecast(
    tree: Prefixes, order_P: Ints, answer_P: Ints, *, capacity: int, rows: int
) -> Forecast:
    """Play the order through: prompts start while their tokens and answers fit.

    A step takes one token of each running answer and fills up with prompt tokens. Prompts read
    fractions of steps here, so the counts are estimates. What no longer fits at all is left out.
    """
    parent, run = tree.parent_N.tolist(), tree.runs.tolist()
    waiting = np.bincount(parent, minlength=len(parent)) + np.bincount(
        tree.terminal_P, minlength=len(parent)
    )
    left: list[int] = waiting.tolist()
    live = [False] * len(parent)
    live[0] = True
    terminal, answers = tree.terminal_P.tolist(), answer_P.tolist()
    running: list[tuple[float, int]] = []
    clock, used, peak, read = 0.0, 0, 0, 0

    def end(prompt: int) -> int:
        """Slots that come free when a prompt is done."""
        freed, node = answers[prompt], terminal[prompt]
        left[node] -= 1
        while node and not left[node]:
            freed += run[node]
            live[node] = False
            node = parent[node]
            left[node] -= 1
        return int(freed)

    for prompt in order_P.tolist():
        while running and running[0][0] <= clock:
            used -= end(heapq.heappop(running)[1])
        path = _unread(terminal[prompt], parent, live)
        new = sum(run[node] for node in path)
        while running and used + new + answers[prompt] > capacity:
            clock, done = heapq.heappop(running)
            used -= end(done)
            path = _unread(terminal[prompt], parent, live)
            new = sum(run[node] for node in path)
        for node in path:
            live[node] = True
        used += new + answers[prompt]
        peak, read = max(peak, used), read + new
        clock += new / max(1, rows - len(running))
        heapq.heappush(running, (clock + answers[prompt], prompt))
    steps = max((finish for finish, _ in running), default=0.0)
    return Forecast(int(np.ceil(steps)), read + int(answer_P.sum()), min(peak, capacity))


def _unread(node: int, parent: Sequence[int], live: Sequence[bool]) -> list[int]:
    path = []
    while not live[node]:
        path.append(node)
        node = parent[node]
    return path
