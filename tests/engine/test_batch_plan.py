"""Order, forecast and LRU baseline of a plan, against plain models of the same."""

from __future__ import annotations

import random
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import InputError
from shoal.engine.batch.lru import lru_tokens
from shoal.engine.batch.order import execution_order, forecast, ratios
from shoal.engine.batch.partition import exact, tokens_computed
from shoal.engine.batch.plan import plan, reduced
from shoal.engine.batch.prefixes import find_prefixes

PROMPTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=12)


@given(PROMPTS, st.sampled_from(["ratio", "prefix"]), st.sampled_from(["multi", "single", "none"]))
@settings(max_examples=200)
def test_each_prefix_is_needed_during_one_stretch(
    prompts: list[list[int]], order: str, level: str
) -> None:
    answers = [len(prompt) % 4 for prompt in prompts]
    found = plan(prompts, answers, order=order, level=level, capacity=50)  # type: ignore[arg-type]
    assert sorted(found.order_P.tolist()) == list(range(len(prompts)))
    for node in range(1, len(found.tree.parent_N)):
        below = [node in found.tree.path(int(found.tree.terminal_P[p])) for p in found.order_P]
        assert [key for key, _ in groupby(below)].count(True) == 1


def test_groups_that_decode_most_for_what_they_read_come_first() -> None:
    reading = [[1] * 60 + [9, n] for n in range(4)]
    writing = [[2] * 6 + [9, n] for n in range(4)]
    found = plan(reading + writing, [4] * 4 + [64] * 4, capacity=1000)
    assert found.order_P.tolist() == [4, 5, 6, 7, 0, 1, 2, 3]
    assert [group.tokens for group in found.groups] == [7, 61]
    assert found.groups[0].ratio == pytest.approx(4 * 64 / (7 + 4))
    assert [group.saved_tokens for group in found.groups] == [3 * 7, 3 * 61]
    assert found.processed_tokens == 7 + 61 + 8
    by_prefix = plan(reading + writing, [4] * 4 + [64] * 4, capacity=1000, order="prefix")
    assert by_prefix.order_P.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_nested_groups_name_their_outer_group() -> None:
    a, b = [1] * 10, [2] * 30
    prompts = [[*a, 8], [*a, 9], *(a + b + [n] for n in range(3))]
    found = plan(prompts, [1] * 5, capacity=1000, order="prefix")
    assert [(group.tokens, group.own, group.outer) for group in found.groups] == [
        (10, 10, None),
        (40, 30, 0),
    ]
    assert sum(group.saved_tokens for group in found.groups) == (
        found.logical_tokens - found.processed_tokens
    )
    assert found.groups[0].prompts[:3] == found.groups[1].prompts == (2, 3, 4)


@given(PROMPTS)
@settings(max_examples=150)
def test_reduced_trees_hold_what_a_single_level_computes(prompts: list[list[int]]) -> None:
    tree = find_prefixes(prompts)
    assert reduced(tree, "single").tokens == tokens_computed(tree, exact(tree))
    assert reduced(tree, "none").tokens == tree.logical_tokens
    for level in ("single", "greedy", "none"):
        flat = reduced(tree, level)  # type: ignore[arg-type]
        assert (flat.parent_N[flat.parent_N] == 0).all()
        for node in range(1, len(flat.parent_N)):
            members = flat.order_P[flat.first_N[node] : flat.last_N[node]]
            begins = {tuple(prompts[m][: flat.end_N[node]]) for m in members}
            assert len(begins) == 1
            assert all(node in flat.path(int(flat.terminal_P[m])) for m in members)


def test_the_ratio_counts_shared_tokens_once() -> None:
    tree = find_prefixes([[1, 1, 2], [1, 1, 3]])
    assert ratios(tree, np.array([5, 7]))[0] == pytest.approx(12 / 4)


def test_what_is_in_memory_comes_first() -> None:
    tree = find_prefixes([[1, 1], [2, 2]])
    urgent = tree.first_N == 1
    order = execution_order(tree, np.array([9, 1]), "ratio", urgent & (tree.end_N > 0))
    assert order.tolist() == [1, 0]


def test_the_forecast_of_one_prompt_is_its_tokens() -> None:
    tree = find_prefixes([[1] * 100])
    found = forecast(tree, np.array([0]), np.array([16]), capacity=500, rows=10)
    assert (found.steps, found.rows, found.peak_tokens) == (26, 116, 116)


def test_the_forecast_keeps_within_memory() -> None:
    prompts = [[d] * 100 + [5, q] for d in range(10) for q in range(6)]
    tree = find_prefixes(prompts)
    answers = np.full(60, 20)
    order = execution_order(tree, answers)
    wide = forecast(tree, order, answers, capacity=10_000, rows=64)
    tight = forecast(tree, order, answers, capacity=200, rows=64)
    assert tight.peak_tokens <= 200 < wide.peak_tokens
    assert tight.steps > wide.steps
    assert tight.rows == wide.rows == tree.tokens + 60 * 20


def plain_lru(prompts: list[list[int]], capacity: int) -> int:
    """Tokens computed one request at a time; single tokens are cached and evicted, leaves first."""
    cache: dict[tuple[int, ...], int] = {}
    computed = 0
    for now, prompt in enumerate(prompts):
        prefixes = [tuple(prompt[:end]) for end in range(1, len(prompt) + 1)]
        computed += sum(prefix not in cache for prefix in prefixes)
        cache.update(dict.fromkeys(prefixes, now))
        while len(cache) > capacity:
            leaves = [p for p in cache if not any(q[:-1] == p for q in cache) and cache[p] < now]
            if not leaves:
                break
            del cache[min(leaves, key=lambda p: (cache[p], -len(p)))]
    return computed


def test_an_unlimited_lru_cache_computes_the_tree() -> None:
    draw = random.Random(1)
    prompts = [draw.choices([0, 1], k=draw.randint(1, 12)) for _ in range(40)]
    tree = find_prefixes(prompts)
    assert lru_tokens(tree, range(40), capacity=None) == tree.tokens
    assert lru_tokens(tree, range(40), capacity=1) <= tree.logical_tokens


@given(PROMPTS, st.integers(1, 30))
@settings(max_examples=150)
def test_the_simulated_cache_is_no_worse_than_a_plain_one_of_whole_runs(
    prompts: list[list[int]], capacity: int
) -> None:
    tree = find_prefixes(prompts)
    computed = lru_tokens(tree, range(len(prompts)), capacity=capacity)
    assert tree.tokens <= computed <= tree.logical_tokens
    if capacity >= tree.tokens:
        assert computed == plain_lru(prompts, capacity) == tree.tokens


def test_documents_in_turn_defeat_a_small_cache() -> None:
    prompts = [[d] * 99 + [q] for q in range(5) for d in range(4)]
    tree = find_prefixes(prompts)
    assert lru_tokens(tree, range(20), capacity=250) == plain_lru(prompts, 250) == 2000
    by_document = np.argsort([prompt[0] for prompt in prompts], kind="stable")
    assert lru_tokens(tree, by_document, capacity=250) == tree.tokens == 4 * 99 + 20


def test_an_empty_prompt_is_named_before_anything_runs() -> None:
    with pytest.raises(InputError, match="Prompt 2 is empty"):
        plan([[1], [2], []], [1, 1, 1], capacity=10)
