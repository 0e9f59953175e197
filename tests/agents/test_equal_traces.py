"""The same mechanism in LangGraph, AutoGen and here: who heard and said what is equal."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from collaboration import plays


@pytest.mark.parametrize("row", plays.PLAYS)
async def test_a_trace_equals_that_of_langgraph(row: str) -> None:
    pytest.importorskip("langgraph", reason="the extra 'peers' is not installed")
    play = plays.PLAYS[row]
    assert await plays.with_shoal(play) == plays.with_langgraph(play)


@pytest.mark.parametrize("row", plays.PLAYS)
async def test_a_trace_equals_that_of_autogen(row: str) -> None:
    pytest.importorskip("autogen_agentchat", reason="the extra 'peers' is not installed")
    play = plays.PLAYS[row]
    assert await plays.with_shoal(play) == await plays.with_autogen(play)


@pytest.mark.parametrize("row", plays.PLAYS)
async def test_a_play_says_all_it_has_to_say(row: str) -> None:
    play = plays.PLAYS[row]
    turns = await plays.with_shoal(play)
    said: dict[str, tuple[str, ...]] = {}
    for name, _, text in turns:
        said[name] = (*said.get(name, ()), text)
    assert said == {name: words for name, words in play.said.items() if words}
