"""The call grammar: what is written comes back; garbage is refused and never crashes."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.agents.rules import Call, Value, parse
from shoal.core.errors import ConfigError

names = st.from_regex(r"[a-z][a-z0-9_.-]{0,6}", fullmatch=True).filter(
    lambda name: name not in ("true", "false")
)
atoms = (
    st.integers(-(10**6), 10**6)
    | st.floats(-1e6, 1e6)
    | st.booleans()
    | names
    | st.text(max_size=8)
)
values: st.SearchStrategy[Value] = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple)
        | st.builds(
            Call,
            names,
            st.lists(inner, max_size=2).map(tuple),
            st.lists(st.tuples(names, inner), max_size=2, unique_by=lambda o: o[0]).map(tuple),
        )
    ),
    max_leaves=6,
)
calls = st.builds(
    Call,
    names,
    st.lists(values, max_size=3).map(tuple),
    st.lists(st.tuples(names, values), max_size=2, unique_by=lambda option: option[0]).map(tuple),
)


@given(calls)
def test_a_written_call_is_read_back(call: Call) -> None:
    assert parse(str(call)) == call


@given(st.text(max_size=40) | st.text("ab(),[]=\"'1.- \\", max_size=40))
def test_garbage_is_a_config_error_or_a_call(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(parse(text), Call)


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("all", Call("all")),
        (" all ( ) ", Call("all")),
        ("judge(fact-checker)", Call("judge", ("fact-checker",))),
        ("f(1, -2.5, true, 'a b', \"c\\n\",)", Call("f", (1, -2.5, True, "a b", "c\n"))),
        ("f(x, but=[a, b], n=1e3)", Call("f", ("x",), (("but", ("a", "b")), ("n", 1000.0)))),
        ("any(rounds(2), g())", Call("any", (Call("rounds", (2,)), Call("g")))),
    ],
)
def test_what_can_be_written(text: str, call: Call) -> None:
    assert parse(text) == call


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has its end where a name or a value should be"),
        ("f(", "has its end where a name or a value"),
        ("f(1", r"has its end where ',' or '\)'"),
        ("f(1 2)", r"has '2' where ',' or '\)'"),
        ("f) ", r"has '\)' where its end should be"),
        ("f(a=1, 2)", "a named argument"),
        ("f(a=1, a=2)", "gives 'a' twice"),
        ("f(#)", r"cannot be read from '#\)' on"),
        ("f('open)", "cannot be read from"),
        ('f("\\x")', "cannot be read"),
        ("3", "is not a rule"),
        ("[a]", "is not a rule"),
        ("'quoted'x", "its end"),
        ("f(" * 5000, "deep"),
    ],
)
def test_what_is_wrong_is_said(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse(text)
