"""The planner's tree and partitions against sets of prefixes, brute force and the paper."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import InputError
from shoal.engine.batch.partition import exact, greedy, multi, served_by, tokens_computed
from shoal.engine.batch.prefixes import Prefixes, find_prefixes, saving

PROMPTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=9)


def worked_example() -> list[list[int]]:
    """A·x1, A·x2, A·B·y1, A·B·y2, A·B·y3 with |A| = 10, |B| = 30, |x| = |y| = 5."""
    a, b = [1] * 10, [2] * 30
    ends = [[end] * 5 for end in range(10, 15)]
    return [a + ends[0], a + ends[1], *(a + b + end for end in ends[2:])]


def distinct_prefixes(prompts: list[list[int]]) -> set[tuple[int, ...]]:
    return {tuple(prompt[:end]) for prompt in prompts for end in range(1, len(prompt) + 1)}


def test_the_worked_example_computes_65_75_and_125_tokens() -> None:
    tree = find_prefixes(worked_example())
    assert tree.logical_tokens == 165
    assert tree.tokens == 65
    assert saving(65, 165) == pytest.approx(60.6, abs=0.05)
    assert tokens_computed(tree, exact(tree)) == 75
    assert tokens_computed(tree, greedy(tree)) == 75
    assert saving(75, 165) == pytest.approx(54.5, abs=0.05)
    only_a = (tree.end_N == 10) & multi(tree)
    assert tokens_computed(tree, only_a) == 125
    assert saving(125, 165) == pytest.approx(24.2, abs=0.05)
    assert sorted(tree.end_N[exact(tree)].tolist()) == [10, 40]


def best_single_level(tree: Prefixes) -> int:
    nodes = range(1, len(tree.parent_N))
    subsets = itertools.chain.from_iterable(
        itertools.combinations(nodes, size) for size in range(len(nodes) + 1)
    )
    best = tree.logical_tokens
    for subset in subsets:
        chosen = np.zeros(len(tree.parent_N), dtype=bool)
        chosen[list(subset)] = True
        best = min(best, tokens_computed(tree, chosen))
    return best


@given(PROMPTS)
@settings(max_examples=200)
def test_the_tree_holds_each_distinct_prefix_once(prompts: list[list[int]]) -> None:
    tree = find_prefixes(prompts)
    assert tree.tokens == len(distinct_prefixes(prompts))
    assert (tree.end_N[1:] > tree.end_N[tree.parent_N[1:]]).all()
    for index, prompt in enumerate(prompts):
        ends = [int(tree.end_N[node]) for node in tree.path(int(tree.terminal_P[index]))]
        assert ends[-1] == len(prompt)
        for node in tree.path(int(tree.terminal_P[index])):
            members = tree.order_P[tree.first_N[node] : tree.last_N[node]].tolist()
            prefix = prompt[: tree.end_N[node]]
            alike = [i for i, other in enumerate(prompts) if other[: len(prefix)] == prefix]
            assert sorted(members) == alike


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6), min_size=1, max_size=6))
@settings(max_examples=150)
def test_no_single_level_partition_beats_the_exact_one(prompts: list[list[int]]) -> None:
    tree = find_prefixes(prompts)
    computed = tokens_computed(tree, exact(tree))
    if len(tree.parent_N) <= 11:
        assert computed == best_single_level(tree)
    assert tree.tokens <= computed <= tokens_computed(tree, greedy(tree)) <= tree.logical_tokens


def test_the_exact_partition_beats_the_rule_where_a_deep_node_carries_all() -> None:
    draw = random.Random(0)
    better = 0
    for _ in range(200):
        prompts = [draw.choices([0, 1], k=draw.randint(1, 12)) for _ in range(20)]
        tree = find_prefixes(prompts)
        difference = tokens_computed(tree, greedy(tree)) - tokens_computed(tree, exact(tree))
        assert difference >= 0
        better += difference > 0
    assert better > 20


def test_a_prompt_that_begins_others_and_equal_prompts_have_their_places() -> None:
    tree = find_prefixes([[1, 2], [1, 2, 3, 4], [1, 2], [1, 2, 3, 5]])
    assert tree.tokens == 5
    assert tree.terminal_P[0] == tree.terminal_P[2]
    assert served_by(tree, exact(tree)).tolist() == [tree.terminal_P[0]] * 4
    assert tokens_computed(tree, exact(tree)) == 6


def test_prompts_of_different_scopes_never_share() -> None:
    prompts = [[1, 2, 3], [1, 2, 3], [1, 2, 4]]
    assert find_prefixes(prompts, ["a", "b", "a"]).tokens == 7
    assert find_prefixes(prompts, ["a", "a", "a"]).tokens == 4


def test_an_empty_prompt_is_named() -> None:
    with pytest.raises(InputError, match="Prompt 1 is empty"):
        find_prefixes([[1], [], [2]])


def test_no_prompts_make_an_empty_tree() -> None:
    tree = find_prefixes([])
    assert tree.tokens == tree.logical_tokens == 0
    assert not exact(tree).any() and not greedy(tree).any()
    assert saving(0, 0) == 0.0
