"""Plans: what is shared, where each token's row is, how batches are cut, when nothing pays."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.engine.batch.prefixes import find_prefixes
from shoal.models.decoder import DecoderConfig
from shoal.models.rope import Rope
from shoal.training.prefix_plan import FREE, PART, Cost, Forest, common, cut, forest, subtrees
from shoal.training.shared_prefix import plan

Tokens = tuple[int, ...]
NEVER = Cost(token=0.0, pair=0.0, span=1.0, read=0.0)
SOME = Cost(token=1.0, pair=0.0, span=6.0, read=0.1)

inputs_of = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple),
    min_size=1,
    max_size=9,
    unique=True,
)


def grown(inputs: list[Tokens], cost: Cost) -> Forest:
    return forest(inputs, find_prefixes([np.array(one) for one in inputs]), cost)


def distinct_prefixes(inputs: list[Tokens]) -> int:
    """Tokens of the tree, counted in the plainest way."""
    return len({one[: n + 1] for one in inputs for n in range(len(one))})


@settings(max_examples=150)
@given(inputs=inputs_of, cost=st.sampled_from([FREE, SOME, NEVER]))
def test_every_position_has_a_row_with_its_token_below_rows_of_what_came_before(
    inputs: list[Tokens], cost: Cost
) -> None:
    rows = grown(inputs, cost)
    node_T = np.repeat(np.arange(len(rows.first_N)), rows.own_N - rows.first_N)
    for index, tokens in enumerate(inputs):
        index_A, position_A = np.full(len(tokens), index), np.arange(len(tokens))
        row_A = rows.rows(index_A, position_A)
        assert rows.ids_T[row_A].tolist() == list(tokens)
        assert rows.positions_T[row_A].tolist() == list(range(len(tokens)))
        assert (np.diff(row_A) > 0).all()
        # the last row sees exactly the rows of its own input: those whose subtree it is in
        last = int(row_A[-1])
        seen = [t for t in range(last + 1) if last < rows.last_N[node_T[t]]]
        assert seen == row_A.tolist()


@settings(max_examples=100)
@given(inputs=inputs_of)
def test_what_costs_nothing_is_shared_and_what_never_pays_is_not(inputs: list[Tokens]) -> None:
    assert len(grown(inputs, FREE).ids_T) == distinct_prefixes(inputs)
    apart = grown(inputs, NEVER)
    assert (apart.last_N == apart.own_N).all()
    longest = [one for one in inputs if not any(o != one and o[: len(one)] == one for o in inputs)]
    assert len(apart.ids_T) == sum(map(len, longest))  # a beginning of another is read off it
    between = len(grown(inputs, SOME).ids_T)
    assert distinct_prefixes(inputs) <= between <= len(apart.ids_T)


def test_a_node_that_saves_less_than_a_look_is_given_to_its_children() -> None:
    system, task = tuple(range(100, 150)), (1, 2)
    inputs = [(*system, *task, 7, n) for n in range(3)] + [(*system, 9, n) for n in range(3)]
    rows = grown(inputs, Cost(token=1.0, pair=0.0, span=8.0, read=0.0))
    # three answers save twice the task's three tokens, 6 < 8; six of them five times 50
    assert len(rows.ids_T) == 50 + 3 * 4 + 3 * 2
    assert rows.level_N.tolist() == [0] + [1] * 6


@settings(max_examples=60)
@given(inputs=inputs_of, rows=st.integers(1, 4))
def test_cuts_compute_the_fewest_tokens_there_are(inputs: list[Tokens], rows: int) -> None:
    tree = find_prefixes([np.array(one) for one in inputs])
    parts = cut(tree, rows=rows)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(inputs)))
    assert max(map(len, parts)) <= rows

    def price(cuts: list[list[int]]) -> int:
        return sum(distinct_prefixes([inputs[place] for place in part]) + PART for part in cuts)

    order, n = tree.order_P.tolist(), len(inputs)
    best = min(
        price([order[a:b] for a, b in zip((0, *at), (*at, n), strict=True)])
        for k in range(n)
        for at in combinations(range(1, n), k)
        if max(b - a for a, b in zip((0, *at), (*at, n), strict=True)) <= rows
    )
    assert price([part.tolist() for part in parts]) == best


def test_groups_stay_together_however_they_are_shuffled() -> None:
    rows = [(*(group,) * 40, n) for n in range(4) for group in (1, 2, 3)]
    parts = subtrees(rows, rows=4)
    assert [{rows[place][0] for place in part} for part in parts] == [{1}, {2}, {3}]


def test_rows_without_tokens_are_kept() -> None:
    parts = subtrees([(1, 2), (), (1, 3), (), ()], rows=2)
    assert [part.tolist() for part in parts] == [[0, 2], [1, 3], [4]]


def test_common_beginnings_are_those_of_neighbours() -> None:
    inputs = [(1, 2, 3), (1, 2, 4, 5), (1, 9), (8,), (1, 2, 4)]
    tree = find_prefixes([np.array(one) for one in inputs])
    in_order = [inputs[place] for place in tree.order_P]
    expected = [
        next((n for n in range(9) if a[n : n + 1] != b[n : n + 1] or n == len(a)), 0)
        for a, b in pairwise(in_order)
    ]
    assert common(tree).tolist() == [0, *expected]


SMOLLM = DecoderConfig(
    family="llama", layers=30, hidden=576, heads=9, kv_heads=3, head_dim=64, intermediate=1536,
    vocab=49_152, context=8_192, eps=1e-5, rope=Rope(theta=1e5), tied_head=True,
)  # fmt: skip


def group(prompt: int, answers: int, answer: int) -> list[Tokens]:
    random = np.random.default_rng(1)
    seen = tuple(random.integers(0, 99, prompt).tolist())
    return [(*seen, *(random.integers(0, 10**6, answer).tolist())) for _ in range(answers)]


@pytest.mark.parametrize(
    ("inputs", "why"),
    [
        (group(16, 8, 256), "too_little_shared"),
        ([(1, 2, 3), (4, 5, 6)], "nothing_shared"),
        ([(1, 2, 3)], "nothing_shared"),
    ],
)
def test_a_plan_that_does_not_pay_says_why(inputs: list[Tokens], why: str) -> None:
    found = plan(inputs, Cost.of(SMOLLM, backward=True))
    assert found.declined == why and not found.parts
    assert found.tokens == found.alone == sum(map(len, inputs))


def test_attention_alone_can_eat_what_sharing_saves() -> None:
    dear = Cost(token=1.0, pair=0.0, span=1_000.0, read=0.0)
    found = plan(group(64, 4, 8), dear)
    assert found.declined == "would_not_pay"


def test_a_long_prompt_is_promised_what_it_saves() -> None:
    found = plan(group(768, 8, 32), Cost.of(SMOLLM, backward=True))
    assert not found.declined
    assert found.tokens == 768 + 8 * 32 and found.alone == 8 * (768 + 32)
    assert 4.5 < found.gain < 6.5  # tokens alone: 6.25


def test_turns_that_grow_are_one_row() -> None:
    turns = [tuple(range(n)) for n in (4, 9, 15)]
    found = plan(turns, Cost(token=1.0, pair=0.0, span=10.0, read=0.0))
    ((_, rows),) = found.parts
    assert found.tokens == 15 and len(rows.first_N) == 1  # nothing branches


def test_what_is_too_much_for_one_pass_is_cut_by_subtree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.training.shared_prefix.CHUNK", 100)
    inputs = [(*(group,) * 40, n, n) for group in (1, 2, 3) for n in range(4)]
    found = plan(inputs, FREE, share="always")
    assert [len(places) for places, _ in found.parts] == [8, 4]
    assert found.tokens == 3 * (40 + 4 * 2)
    monkeypatch.setattr("shoal.training.shared_prefix.CHUNK", 41)
    alone = plan(inputs, FREE, share="always")
    assert alone.declined == "would_not_pay"  # a row longer than a pass is a pass of its own
