"""Working sets: tools keep their places, and only what must go ends a cached prefix."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.errors import ConfigError
from shoal.core.records import ToolSpec
from shoal.tools.retrieval.index import ToolIndex
from shoal.tools.retrieval.toolset import Growth, ScoredTool, WorkingSet


def found(*names: str, version: str = "1") -> list[ScoredTool]:
    return [ScoredTool(name, version, 1.0) for name in names]


def test_new_tools_come_after_those_that_are_there() -> None:
    working = WorkingSet()
    assert working.grow(found("c", "a")) == Growth(("c", "a"))
    growth = working.grow(found("b", "a"))
    assert growth == Growth(("b",)) and growth.prefix_holds
    assert working.names == ("c", "a", "b")


def test_above_the_limit_the_longest_unused_goes_and_is_named() -> None:
    working = WorkingSet(3)
    working.grow(found("a", "b", "c"))
    working.grow(found("a"))
    growth = working.grow(found("d"))
    assert growth.evicted == ("b",) and not growth.prefix_holds
    assert working.names == ("a", "c", "d")
    assert working.grow(found("1", "2", "3", "4")).added == ("1", "2", "3")
    with pytest.raises(ConfigError):
        WorkingSet(0)


def test_a_changed_tool_moves_to_the_end() -> None:
    working = WorkingSet()
    working.grow(found("a", "b"))
    growth = working.grow(found("a", version="2"))
    assert growth == Growth((), (), ("a",)) and working.names == ("b", "a")


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=4), max_size=12))
def test_a_prompt_begins_as_before_while_the_prefix_holds(turns: list[list[str]]) -> None:
    working, before = WorkingSet(5), ""
    for names in turns:
        growth = working.grow(found(*names))
        block = working.block(lambda name: ToolSpec(name, f"does {name}"))
        assert len(working.names) <= 5 and set(names[:5]) <= set(working.names)
        assert not growth.prefix_holds or block.startswith(before)
        before = block


def test_agents_of_one_index_do_not_see_each_others_tools() -> None:
    index = ToolIndex()
    tools = [ToolSpec(f"a.b.{name}", f"{name}s a file") for name in ("Open", "Close", "Print")]
    index.add(tools, label="a")
    index.plan("open a file", 1, agent="ann")
    index.plan("print a file", 1, agent="bob")
    index.plan("close a file", 1, agent="ann")
    index.plan("close a file", 1)
    assert index.working_set("ann").names == ("a.b.Open", "a.b.Close")
    assert index.working_set("bob").names == ("a.b.Print",)
    assert index.stats().agents == 2
    index.sync(tools[1:], label="a")
    growth = index.grow("ann", found("a.b.Print", "a.b.Gone"))
    assert growth.evicted == ("a.b.Open",) and growth.added == ("a.b.Print",)
