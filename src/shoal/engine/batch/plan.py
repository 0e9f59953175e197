"""The plan of a job: groups, savings, order and memory, known before anything is computed.

BatchLLM: Optimizing Large Batched LLM Inference with Global Prefix Sharing and Throughput-oriented
Token Batching (arXiv 2412.03594). What prompts share is found ahead of time over the whole job, in
a compact prefix tree (:mod:`~shoal.engine.batch.prefixes`); ``level="multi"`` keeps all of it,
``"single"`` is the best partition with one common prefix per request, as the paper has it, and
``"greedy"`` its code's rule (:mod:`~shoal.engine.batch.partition`). Groups are then ordered
(:mod:`~shoal.engine.batch.order`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from shoal.engine.batch.order import (
    Forecast,
    Order,
    execution_order,
    flattened,
    forecast,
    least_below,
    ratios,
)
from shoal.engine.batch.partition import exact, greedy
from shoal.engine.batch.prefixes import Ints, Prefixes, find_prefixes, saving

Level = Literal["multi", "single", "greedy", "none"]


@dataclass(frozen=True, slots=True)
class Group:
    """Prompts that begin with the same tokens; in a plan of several levels groups nest.

    tokens   length of the common prefix; ``own`` of it lie below the enclosing group's
    prompts  indices of the members, in order of execution
    outer    the enclosing group's place in the plan, or None
    ratio    answer tokens over prompt tokens after sharing: what groups are ordered by
    """

    tokens: int
    own: int
    prompts: tuple[int, ...]
    outer: int | None
    ratio: float

    @property
    def saved_tokens(self) -> int:
        """Prompt tokens that this group's own part saves."""
        return (len(self.prompts) - 1) * self.own


@dataclass(frozen=True, slots=True)
class Plan:
    """What is shared, and in which order prompts run.

    tree    the prefixes that will be computed once (of one level where so asked)
    order_P prompts in order of execution
    groups  in order of execution, outer ones before those inside them
    """

    tree: Prefixes
    order_P: Ints
    groups: tuple[Group, ...]
    level: Level
    forecast: Forecast
    planner_seconds: float

    @property
    def logical_tokens(self) -> int:
        """Tokens of all prompts."""
        return self.tree.logical_tokens

    @property
    def processed_tokens(self) -> int:
        """Prompt tokens that will be computed."""
        return self.tree.tokens

    @property
    def saving(self) -> float:
        """Percent of prompt tokens that will not be computed."""
        return saving(self.processed_tokens, self.logical_tokens)


def plan(
    prompts: Sequence[ArrayLike],
    answers: Sequence[int] | Ints,
    *,
    scopes: Sequence[str] | None = None,
    level: Level = "multi",
    order: Order = "ratio",
    capacity: int,
    rows: int = 512,
) -> Plan:
    """Plan a job.

    prompts   token ids of each prompt
    answers   tokens its answer is expected to have, at most
    scopes    prompts of different scopes (model, adapter, tenant) never share
    capacity  tokens the KV cache holds
    rows      tokens of one forward pass

    Raises :class:`InputError` for an empty prompt, naming its index.
    """
    started = time.perf_counter()
    tree = reduced(find_prefixes(prompts, scopes), level)
    answer_P = np.asarray(answers, dtype=np.int64)
    order_P = execution_order(tree, answer_P, order)
    groups = _groups(tree, order_P, answer_P)
    found = forecast(tree, order_P, answer_P, capacity=capacity, rows=rows)
    return Plan(tree, order_P, groups, level, found, time.perf_counter() - started)


def reduced(tree: Prefixes, level: Level) -> Prefixes:
    """The part of a tree that a back end of this level shares."""
    if level == "multi":
        return tree
    if level == "none":
        return flattened(tree, np.zeros(len(tree.parent_N), dtype=bool))
    return flattened(tree, exact(tree) if level == "single" else greedy(tree))


def _groups(tree: Prefixes, order_P: Ints, answer_P: Ints) -> tuple[Group, ...]:
    rank_P = np.empty_like(order_P)
    rank_P[order_P] = np.arange(len(order_P))
    shared = np.flatnonzero(tree.prompts >= 2)
    shared = shared[shared > 0]
    begin_N = least_below(tree, rank_P)[shared]
    ranked = shared[np.lexsort((tree.end_N[shared], begin_N))].tolist()
    place = {node: index for index, node in enumerate(ranked)}
    ratio_N, runs = ratios(tree, answer_P), tree.runs
    groups = []
    for node in ranked:
        members = tree.order_P[tree.first_N[node] : tree.last_N[node]]
        inside = members[np.argsort(rank_P[members])]
        groups.append(
            Group(
                tokens=int(tree.end_N[node]),
                own=int(runs[node]),
                prompts=tuple(inside.tolist()),
                outer=place.get(int(tree.parent_N[node])),
                ratio=float(ratio_N[node]),
            )
        )
    return tuple(groups)
