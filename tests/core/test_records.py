"""Records survive a file unchanged, and usage adds up."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.records import Episode, Message, Step, ToolCall, Usage, from_json, to_json

texts = st.text(max_size=30)
counts = st.integers(0, 10**9)
times = st.floats(0, 1e9)
usages = st.builds(Usage, counts, counts, counts, times, times, counts, counts)
calls = st.builds(ToolCall, texts, texts, texts)
messages = st.builds(
    Message,
    st.sampled_from(["system", "user", "assistant", "tool"]),
    texts,
    st.none() | texts,
    st.tuples() | st.tuples(calls),
    st.none() | texts,
)
steps = st.builds(
    Step,
    key=texts,
    member=texts,
    superstep=counts,
    prompt=st.lists(messages, max_size=3).map(tuple),
    output=texts,
    seen=st.lists(texts, max_size=3).map(tuple),
    finish=st.sampled_from(["stop", "length", "cancelled", "budget", "error"]),
    tool_calls=st.lists(calls, max_size=2).map(tuple),
    data=st.dictionaries(texts, st.none() | st.booleans() | counts | texts, max_size=3),
    usage=usages,
    reward=st.none() | st.floats(-1, 1),
    seed=st.integers(0, 2**63 - 1),
    how=texts,
)


@given(steps)
def test_a_step_comes_back_from_json_as_it_was(step: Step) -> None:
    assert from_json(Step, to_json(step)) == step


@given(st.builds(Episode, texts, texts, st.lists(steps, max_size=2).map(tuple), st.none() | texts))
def test_an_episode_comes_back_from_json_as_it_was(episode: Episode) -> None:
    assert from_json(Episode, to_json(episode)) == episode


@given(steps)
def test_a_step_is_one_line(step: Step) -> None:
    assert len(to_json(step).splitlines()) <= 1 or "\n" not in to_json(step)


def test_json_leaves_defaults_out_and_keeps_what_names_the_turn() -> None:
    step = Step("r/0/a", "a", 0, (Message("user", "hi"),), "")
    assert json.loads(to_json(step)) == {
        "key": "r/0/a",
        "member": "a",
        "superstep": 0,
        "prompt": [{"role": "user", "content": "hi"}],
        "output": "",
    }


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"key": 1}', '{"key":"k","member":"m","superstep":"x"}']
)
def test_what_is_no_step_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"validation error"):
        from_json(Step, text)


@given(usages, usages)
def test_usage_adds_counts_and_keeps_the_larger_cache(a: Usage, b: Usage) -> None:
    total = a + b
    assert total.asked_tokens == a.asked_tokens + b.asked_tokens
    assert total.computed_prompt_tokens == a.computed_prompt_tokens + b.computed_prompt_tokens
    assert total.recomputed_tokens == a.recomputed_tokens + b.recomputed_tokens
    assert total.kv_bytes == max(a.kv_bytes, b.kv_bytes)


def test_an_episode_costs_the_sum_of_its_steps() -> None:
    steps = tuple(
        Step(f"r/{i}/a", "a", i, (), "x", usage=Usage(10, 4, 2, 1.0, 3.0, 7)) for i in range(3)
    )
    assert Episode("r", "t", steps).usage == Usage(30, 12, 6, 3.0, 9.0, 7)
    assert Episode("r", "t", ()).usage == Usage()
