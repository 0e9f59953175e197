"""Budgets in a run: never overspent, handed back once, and never called done."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from traces import content, members, numbered, protocol, trace

from shoal.agents import Agent, Script, Team, run
from shoal.agents.events import SuperstepEnded, TeamEvent
from shoal.agents.prompt import HAND_BACK
from shoal.core.budget import Limits
from shoal.core.protocols import Sampling
from shoal.engine.scripted import ScriptedEngine

LONG = "word " * 200
HINT = len(HAND_BACK.split())


def worker(name: str, max_tokens: int = 20, **limits: float) -> Agent:
    return Agent(
        name,
        sampling=Sampling(max_tokens=max_tokens),
        limits=Limits(**limits),  # type: ignore[arg-type]
    )


async def prompt_tokens(team: Team) -> int:
    result = await run(team, "?", engine=ScriptedEngine(LONG))
    return result.episode.steps[0].usage.prompt_tokens


async def test_a_budget_that_suffices_changes_nothing() -> None:
    team = Team("t", members("a", "b"), protocol(until="rounds(2)"))
    bounded = Team(
        "t", members("a", "b"), protocol(until="rounds(2)"), limits=Limits(tokens=10**6, calls=4)
    )
    free = await run(team, "?", engine=numbered())
    held = await run(bounded, "?", engine=numbered())
    assert trace(free) == trace(held)
    assert held.outcome == "done"


async def test_what_is_left_allows_one_shorter_turn_that_is_told_so() -> None:
    prompt = await prompt_tokens(Team("t", (worker("a"),)))
    team = Team("t", (worker("a", 60),), limits=Limits(tokens=prompt + HINT + 7))
    result = await run(team, "?", engine=ScriptedEngine(LONG))
    (step,) = result.episode.steps
    assert content(step).endswith(HAND_BACK)
    assert (step.finish, step.usage.decoded_tokens) == ("budget", 7)
    assert (result.outcome, result.result) == ("budget_exhausted", "word " * 6 + "word")
    assert result.why == "the budget is used up"


async def test_too_little_to_say_so_still_allows_a_short_turn() -> None:
    prompt = await prompt_tokens(Team("t", (worker("a"),)))
    team = Team("t", (worker("a"),), limits=Limits(tokens=prompt + 3))
    result = await run(team, "?", engine=ScriptedEngine(LONG))
    assert (result.result, result.outcome) == ("word word word", "budget_exhausted")
    assert HAND_BACK not in content(result.episode.steps[0])


async def test_nothing_left_means_no_turn_at_all() -> None:
    team = Team("t", (worker("a"),), limits=Limits(tokens=5))
    engine = ScriptedEngine(LONG)
    result = await run(team, "?", engine=engine)
    assert engine.groups == []
    assert (result.outcome, result.result, result.episode.steps) == ("budget_exhausted", None, ())


async def test_the_judge_gets_the_last_turn() -> None:
    def jury(limits: Limits) -> Team:
        jurors = tuple(worker(name, 60) for name in ("a", "b", "judge"))
        rules = protocol("all(but=judge)", "judge(judge)", "rounds(2)")
        return Team("t", jurors, rules, limits=limits)

    free = await run(jury(Limits()), "?", engine=ScriptedEngine(LONG))
    first_round = sum(step.usage.asked_tokens for step in free.episode.steps[:2])
    limits = Limits(tokens=first_round + free.episode.steps[-1].usage.prompt_tokens + HINT + 5)
    result = await run(jury(limits), "?", engine=ScriptedEngine(LONG))
    assert [(s.member, s.finish, s.usage.decoded_tokens) for s in result.episode.steps] == [
        ("a", "length", 60),
        ("b", "length", 60),
        ("judge", "budget", 5),
    ]
    assert content(result.episode.steps[-1]).endswith(HAND_BACK)
    assert result.result == "word word word word word"
    assert result.outcome == "budget_exhausted"


async def test_members_before_the_bound_still_speak() -> None:
    """Turns are granted in order of name; those that were granted are not lost."""
    team = Team("t", members("a", "b", "c"), protocol(until="rounds(5)"), limits=Limits(calls=5))
    result = await run(team, "?", engine=numbered())
    assert [(s, m) for s, m, _, _ in trace(result)] == [
        (0, "a"),
        (0, "b"),
        (0, "c"),
        (1, "a"),
        (1, "b"),
    ]
    assert (result.outcome, result.result) == ("budget_exhausted", "b2")


async def test_a_member_out_of_budget_hands_back_once_and_the_others_go_on() -> None:
    alone = await prompt_tokens(Team("t", (worker("a"),)))
    heard = 2 * len(["a", "said:"]) + 60 + 20
    tokens = (alone + 60) + (alone + heard + HINT + 4)
    team = Team("t", (worker("a", 60, tokens=tokens), worker("b")), protocol(until="rounds(4)"))
    result = await run(team, "?", engine=ScriptedEngine(LONG))
    turns = [(s.superstep, s.finish) for s in result.episode.steps if s.member == "a"]
    assert turns == [(0, "length"), (1, "budget")]
    assert [s.superstep for s in result.episode.steps if s.member == "b"] == [0, 1, 2, 3]
    assert result.outcome == "budget_exhausted"


async def test_a_team_inside_a_team_is_held_to_both_budgets() -> None:
    inner = Team("inner", members("x"), protocol(until="rounds(9)"), limits=Limits(calls=2))
    team = Team("outer", (inner, Agent("z")), protocol("chain"), "chain")
    result = await run(team, "?", engine=numbered())
    assert [(s.member, s.finish) for s in result.episode.steps] == [
        ("inner/x", "stop"),
        ("inner/x", "stop"),
        ("inner", "budget"),
        ("z", "stop"),
    ]
    assert (result.outcome, result.result) == ("budget_exhausted", "z1")
    tight = Team("outer", (inner, Agent("z")), protocol("chain"), "chain", limits=Limits(calls=1))
    result = await run(tight, "?", engine=numbered())
    assert [s.member for s in result.episode.steps] == ["inner/x", "inner"]
    assert (result.outcome, result.result) == ("budget_exhausted", "x1")


async def test_retries_are_paid_for() -> None:
    team = Team("t", members("a", "b"), limits=Limits(calls=3))
    engine = ScriptedEngine("x", failures={0: "hot", 1: "hot"})
    result = await run(team, "?", engine=engine)
    assert [len(group) for group in engine.groups] == [2, 1]
    assert [(s.member, s.finish) for s in result.episode.steps] == [("a", "stop"), ("b", "error")]


async def test_time_runs_out() -> None:
    async def slow(messages: object, seed: int) -> str:
        await asyncio.sleep(0.4)
        return "x"

    team = Team(
        "t",
        (Agent("a", model=Script(slow)),),
        protocol(until="rounds(100)"),
        limits=Limits(seconds=1.0),
    )
    result = await run(team, "?", engine=numbered())
    assert result.outcome == "budget_exhausted"
    assert 1 <= len(result.episode.steps) <= 3


async def test_what_is_left_is_told_after_each_superstep() -> None:
    events: list[TeamEvent] = []
    team = Team("t", members("a"), protocol(until="rounds(3)"), limits=Limits(calls=10))
    await run(team, "?", engine=numbered(), on_event=events.append)
    left = [event.left.calls for event in events if isinstance(event, SuperstepEnded)]
    assert left == [9, 8, 7]


@given(
    tokens=st.integers(0, 900),
    calls=st.none() | st.integers(0, 12),
    own=st.none() | st.integers(0, 300),
    reduce=st.sampled_from(["last", "vote", "judge(c)"]),
    turn=st.sampled_from(["all", "round_robin", "all(but=c)"]),
)
def test_no_run_spends_more_than_its_budget(
    tokens: int, calls: int | None, own: int | None, reduce: str, turn: str
) -> None:
    team = Team(
        "t",
        (
            Agent("a", sampling=Sampling(max_tokens=15), limits=Limits(tokens=own)),
            worker("b", 30),
            worker("c", 10),
        ),
        protocol(turn, reduce, "rounds(4)"),
        limits=Limits(tokens=tokens, calls=calls),
    )
    result = asyncio.run(run(team, "?", engine=ScriptedEngine(LONG)))
    steps = result.episode.steps
    assert sum(step.usage.asked_tokens for step in steps) <= tokens
    assert calls is None or len(steps) <= calls
    assert own is None or sum(s.usage.asked_tokens for s in steps if s.member == "a") <= own
    full = {"all": 12, "round_robin": 12, "all(but=c)": 8}[turn] + (reduce == "judge(c)")
    whole = len(steps) == full and all(step.finish != "budget" for step in steps)
    assert (result.outcome == "done") == whole
    assert result.outcome in ("done", "budget_exhausted")
    if steps:
        assert result.result is not None


@pytest.mark.parametrize("calls", [0, 1])
async def test_a_bound_on_calls_alone_stops_a_team_without_rounds(calls: int) -> None:
    team = Team("t", members("a", "b"), protocol(until="consensus"), limits=Limits(calls=calls))
    result = await run(team, "?", engine=numbered())
    assert len(result.episode.steps) == calls
    assert result.outcome == "budget_exhausted"
