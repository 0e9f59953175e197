"""Calls as text: dialects, strict JSON, values by schema, ground truths checked when loaded."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.errors import ConfigError
from shoal.core.records import ToolSpec
from shoal.envs.calls import DIALECTS, Answer, BadTruth, Call, Unreadable, Wanted, dialect
from shoal.envs.calls.answers import strict_json
from shoal.envs.calls.task import exact
from shoal.envs.calls.values import Fields, equal, plain
from shoal.envs.calls.wanted import WantedCall, wanted
from shoal.server.tool_calls import read as served

names = st.from_regex(r"[a-z]{2,6}(\.[a-z]{2,6})?", fullmatch=True)
keys = st.from_regex(r"[a-z]{2,6}", fullmatch=True).filter(lambda word: word not in ("in", "is"))
scalars = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=8)
numbers = st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    scalars | numbers,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)
arguments = st.dictionaries(keys, values, max_size=3)
calls = st.builds(Call, names, arguments)


def is_keyword(name: str) -> bool:
    import keyword

    return any(keyword.iskeyword(part) for part in name.split("."))


@given(st.lists(calls, min_size=1, max_size=3), st.sampled_from(["hermes", "tags", "openai"]))
def test_what_a_dialect_writes_it_reads(some: list[Call], name: str) -> None:
    spoken = DIALECTS[name]
    wrote = Answer(tuple(some), ("think",) * spoken.thinks + ("calls",))
    read = spoken.read(spoken.write(wrote))
    assert (read.calls, read.blocks, read.error) == (wrote.calls, wrote.blocks, "")


@given(st.lists(calls, min_size=1, max_size=3))
def test_python_calls_are_parsed_and_never_run(some: list[Call]) -> None:
    some = [
        call for call in some
        if not is_keyword(call.name) and not any(map(is_keyword, call.arguments))
    ]  # fmt: skip
    spoken = dialect("pythonic")
    read = spoken.read(spoken.write(Answer(tuple(some), ("calls",))))
    assert read.calls == tuple(some) and not read.error
    hostile = spoken.read("[f(a=__import__('os').getcwd())]")
    assert hostile.error and not hostile.calls


def test_the_server_reads_what_the_hermes_dialect_writes() -> None:
    some = (Call("weather", {"city": "Rome", "days": 3}), Call("time"))
    text = dialect("hermes").write(Answer(some, ("calls",)))
    said, found = served(text, ["weather", "time"])
    assert not said
    assert tuple(Call(one.name, json.loads(one.arguments)) for one in found) == some


@given(st.text(max_size=60))
def test_no_text_makes_a_dialect_raise(text: str) -> None:
    for spoken in DIALECTS.values():
        for one in (text, f"[{text}]", f"<tool_call>{text}</tool_call>", f"call {text}"):
            assert isinstance(spoken.read(one), Answer)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"a": 1, "a": 2}', "given twice"),
        ('{"a": {"b": 1, "b": 1}}', "given twice"),
        ('{"a": NaN}', "no JSON number"),
        ('{"a": -Infinity}', "no JSON number"),
        ('{"a": 1e999}', "too large"),
        ('{"a": ' + "9" * 5000 + "}", "too large"),
        ("[" * 100 + "]" * 100, "deep"),
        ("[" * 100_000, "deep"),
        ("{'a': 1}", "No valid JSON"),
        ('{"a": 1} and more', "No valid JSON"),
        ("", "No valid JSON"),
    ],
)
def test_json_nobody_can_rely_on_is_not_read(text: str, why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        strict_json(text)


def test_huge_numbers_that_json_allows_are_exact() -> None:
    assert strict_json("1" + "0" * 300) == 10**300
    assert not equal(10**300, 10**300 + 1, {"type": "integer"}, "schema")


@pytest.mark.parametrize(
    ("text", "blocks", "count", "error"),
    [
        ('<think> a </think>\n<tool_call>\n{"name": "f", "parameters": {}}\n</tool_call>',
         ("think", "calls"), 1, ""),
        # a text beside the blocks, or blocks without the line between them, are no format
        ('Sure! <think> a </think>\n<tool_call>\n{"name": "f", "parameters": {}}\n</tool_call>',
         (), 1, ""),
        ('<think> a </think><tool_call>\n{"name": "f", "parameters": {}}\n</tool_call>',
         (), 1, ""),
        # several blocks of calls are not a longer one
        ('<think> a </think>\n<tool_call>\n{"name": "f", "parameters": {}}\n</tool_call>\n'
         '<tool_call>\n{"name": "g", "parameters": {}}\n</tool_call>',
         ("think", "calls", "calls"), 0, "more than one"),
        # format does not look into the calls, calls do not mend what is inside
        ('<think> a </think>\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>',
         ("think", "calls"), 0, "missing"),
        ('<think> a </think>\n<tool_call>\n{"name": "f", "parameters": {"a": 1,}}\n</tool_call>',
         ("think", "calls"), 0, "No valid JSON"),
        ("<think> a </think>\n<response> Hello. </response>", ("think", "response"), 0, ""),
        # calls outside of their block do not count
        ('{"name": "f", "parameters": {}}', (), 0, ""),
    ],
)  # fmt: skip
def test_the_form_of_toolrl(text: str, blocks: tuple[str, ...], count: int, error: str) -> None:
    read = dialect("tags").read(text)
    assert read.blocks == blocks and len(read.calls) == count
    assert error in read.error if error else not read.error


@pytest.mark.parametrize(
    ("text", "calls", "error"),
    [
        ("call f", [Call("f")], False),
        ("call f a 1 b x call g", [Call("f", {"a": 1, "b": "x"}), Call("g")], False),
        ("call f a true", [Call("f", {"a": True})], False),
        ("none", [], False),
        ("call f a", [], True),
        ("call f a 1 a 2", [], True),
        ("call", [], True),
        ("f a 1", [], False),
    ],
)
def test_calls_of_a_few_words(text: str, calls: list[Call], error: bool) -> None:
    read = dialect("words").read(text)
    assert list(read.calls) == calls and bool(read.error) == error


@pytest.mark.parametrize(
    ("ours", "theirs", "schema", "json_equal", "schema_equal"),
    [
        (1, 1.0, {"type": "number"}, True, True),
        (1, "1", {}, False, False),
        (True, 1, {}, False, False),
        (1, True, {"type": "integer"}, False, False),
        ([1, 2], [2, 1], {"type": "array"}, False, False),
        (0.1 + 0.2, 0.3, {"type": "number"}, False, True),
        (0.31, 0.3, {"type": "number"}, False, False),
        (3.0000001, 3, {"type": "integer"}, False, False),
        ("new york", "New-York", {"type": "string"}, False, True),
        ("Red", "red", {"type": "string", "enum": ["red"]}, False, False),
        ({"a": [1, {"b": "X"}]}, {"a": [1, {"b": "x"}]}, {}, False, True),
        ({"a": 1}, {"a": 1, "b": 2}, {}, False, False),
        (10**400, 1.5, {"type": "number"}, False, False),
        (None, None, {}, True, True),
    ],
)
def test_values_are_equal_by_their_schema(
    ours: Any, theirs: Any, schema: dict[str, Any], json_equal: bool, schema_equal: bool
) -> None:
    assert equal(ours, theirs, schema, "json") == json_equal
    assert equal(ours, theirs, schema, "schema") == schema_equal


@given(values)
def test_every_value_is_itself(value: Any) -> None:
    assert equal(value, value, {}, "json") and equal(value, value, {}, "schema")


def test_fields_have_sets_of_right_values() -> None:
    fields = Fields({"city": ("Rome", "Roma"), "days": (1,)}, frozenset({"days"}))
    assert equal({"city": "roma"}, fields, {}, "schema")
    assert equal({"city": "Rome", "days": 1}, [fields][0], {}, "json")
    assert not equal({"city": "Paris"}, fields, {}, "schema")
    assert not equal({"days": 1}, fields, {}, "schema")
    assert not equal({"city": "Rome", "mood": 1}, fields, {}, "schema")
    assert not equal("Rome", fields, {}, "schema")
    assert plain([fields]) == [{"city": "Rome", "days": 1}]


WEATHER = ToolSpec(
    "weather",
    "",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer", "default": 1},
            "unit": {"type": "string", "enum": ["c", "f"]},
        },
        "required": ["city"],
    },
)


def test_what_may_be_left_out_and_what_is_the_default_anyway() -> None:
    right = {"city": ["Rome", "Roma"], "unit": ["c"]}
    (call,) = wanted("1", [("weather", right)], [WEATHER], optional=[{"unit"}]).calls
    assert call.matches(Call("weather", {"city": "Roma"}))
    assert call.matches(Call("weather", {"city": "Rome", "unit": "c", "days": 1}))
    assert not call.matches(Call("weather", {"city": "Rome", "unit": "f"}))
    assert not call.matches(Call("weather", {"city": "Rome", "days": 2}))
    assert not call.matches(Call("weather", {"city": "Rome", "days": 1}), "json")
    assert not call.matches(Call("weather", {"unit": "c"}))
    assert call.example() == Call("weather", {"city": "Rome"})


@pytest.mark.parametrize(
    ("calls", "why"),
    [
        ([("time", {})], "not among its tools"),
        ([("weather", {"town": ["Rome"], "city": ["Rome"]})], "no parameter 'town'"),
        ([("weather", {"city": []})], "no right values"),
        ([("weather", {"city": "Rome"})], "no right values"),
        ([("weather", {})], "needs 'city'"),
        ([("weather", {"city": [math.nan]})], "no JSON number"),
        ([("weather", {"city": [{"a": [math.inf]}]})], "no JSON number"),
        ([("weather", {"city": [object()]})], "no JSON"),
    ],
)
def test_a_truth_that_cannot_be_one_is_rejected_by_its_id(calls: Any, why: str) -> None:
    with pytest.raises(BadTruth, match=f"Example case-7.*{why}"):
        wanted("case-7", calls, [WEATHER])


def test_an_exact_answer_pairs_calls_in_any_order() -> None:
    spoken = dialect("hermes")
    one = WantedCall("f", {"a": (1, 2)})
    two = WantedCall("f", {"a": (1,)})
    truth = Wanted("x", (one, two))
    # the first takes 1 greedily, and only the other order leaves both something
    assert exact(
        Answer((Call("f", {"a": 1}), Call("f", {"a": 2})), ("calls",)), truth, spoken, "json"
    )
    assert not exact(
        Answer((Call("f", {"a": 2}), Call("f", {"a": 2})), ("calls",)), truth, spoken, "json"
    )
    assert not exact(Answer((Call("f", {"a": 1}),), ("calls",)), truth, spoken, "json")
    nothing = Wanted("y")
    assert exact(Answer((), ("response",), response="No."), nothing, spoken, "json")
    assert not exact(Answer((Call("f"),), ("calls",)), nothing, spoken, "json")
    assert not exact(Answer(), nothing, spoken, "json")


def test_an_unknown_dialect_is_refused_by_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'hermes'"):
        dialect("hermmes")
