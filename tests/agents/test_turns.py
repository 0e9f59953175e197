"""First come, first served; and stopping while there is budget left for a result."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from traces import members, numbered, protocol, trace

from shoal.agents import Agent, Channel, Protocol, Team, run
from shoal.core.budget import Limits
from shoal.core.errors import ConfigError
from shoal.engine.scripted import ScriptedEngine


async def test_who_has_waited_longest_speaks_alone() -> None:
    team = Team(
        "desk",
        members("ann", "bob", "cem"),
        protocol("first_come(ann)", until="rounds(5)"),
        channels=(Channel("ann", "*"), Channel("cem", "ann"), Channel("bob", "ann")),
    )
    result = await run(team, "Go.", engine=numbered())
    # bob and cem wait for ann's word; when bob answers, ann waits too, but cem came first
    assert trace(result) == [
        (0, "ann", "", "ann1"),
        (1, "bob", "ann1", "bob1"),
        (2, "cem", "ann1", "cem1"),
        (3, "ann", "ann1 bob1 cem1", "ann2"),
        (4, "bob", "ann2", "bob2"),
    ]


async def test_when_nobody_waits_the_work_is_over() -> None:
    team = Team("line", members("a", "b"), protocol("first_come(a)", until="rounds(9)"), "chain")
    result = await run(team, "Go.", engine=numbered())
    assert (result.why, result.result) == ("nobody waits to speak", "b1")


@given(st.integers(2, 6), st.sampled_from(["mesh", "ring", "star(m0)", "bus", "tree(2)"]))
async def test_in_a_group_that_hears_each_other_everybody_gets_a_turn(n: int, wires: str) -> None:
    team = Team(
        "t", members(*(f"m{i}" for i in range(n))), protocol("first_come", until=f"turns({3 * n})"),
        wires,
    )  # fmt: skip
    result = await run(team, "Go.", engine=ScriptedEngine("ok"))
    steps = [step.superstep for step in result.episode.steps]
    assert steps == list(range(3 * n))
    turns = [sum(step.member == f"m{i}" for step in result.episode.steps) for i in range(n)]
    assert min(turns) >= 1


async def test_a_team_stops_while_there_is_budget_for_its_judge() -> None:
    team = Team(
        "court",
        members("a", "b", "judge"),
        Protocol("round_robin(but=judge)", "judge(judge)", "any(rounds(99), budget(0.5))"),
        limits=Limits(calls=10),
    )
    result = await run(team, "Go.", engine=numbered())
    assert (result.result, result.outcome) == ("judge1", "done")
    assert result.why == "5 of 10 calls are used"


async def test_tokens_inside_teams_count_towards_the_share() -> None:
    inner = Team("inner", (Agent("x"),), Protocol(until="rounds(2)"))
    team = Team(
        "outer",
        (inner,),
        Protocol(until="any(rounds(99), budget(0.1))"),
        limits=Limits(tokens=10_000),
    )
    result = await run(team, "Go.", engine=ScriptedEngine("word " * 30))
    used = result.episode.usage.asked_tokens
    assert result.why == f"{used:,} of 10,000 tokens are used"
    assert 1000 <= used < 1300


def test_a_budget_rule_alone_needs_a_budget() -> None:
    with pytest.raises(ConfigError, match="may never stop"):
        Team("t", members("a"), Protocol(until="budget"))
    Team("t", members("a"), Protocol(until="budget"), limits=Limits(calls=3))
