"""A member that fails does not take its team along; what happened shows in the outcome."""

from __future__ import annotations

import pytest
from traces import members, numbered, protocol, trace

from shoal.agents import Agent, Protocol, Script, Team, run
from shoal.agents.events import TeamEvent, TurnFailed
from shoal.core.errors import EngineError, LogError
from shoal.core.log import EventLog
from shoal.core.records import Message, Usage
from shoal.engine.scripted import ScriptedEngine


def crash(messages: tuple[Message, ...], seed: int) -> str:
    raise ValueError("boom")


async def test_a_failed_turn_is_retried_in_one_call_and_its_cost_adds_up() -> None:
    events: list[TeamEvent] = []
    engine = ScriptedEngine("x", failures={0: "hot", 2: "hot"})
    team = Team("t", members("a", "b", "c"))
    result = await run(team, "?", engine=engine, on_event=events.append)
    assert (result.outcome, len(result.episode.steps)) == ("done", 3)
    assert [len(group) for group in engine.groups] == [3, 2]
    assert [step.data for step in result.episode.steps] == [{"attempts": 2}, {}, {"attempts": 2}]
    failed = [event for event in events if isinstance(event, TurnFailed)]
    assert failed == [TurnFailed("a", 0, "hot", "retry"), TurnFailed("c", 0, "hot", "retry")]


async def test_a_crashing_member_is_skipped_and_the_others_go_on() -> None:
    team = Team(
        "t",
        (Agent("a"), Agent("b", model=Script(crash, "tool")), Agent("c")),
        protocol(until="rounds(2)"),
    )
    with EventLog() as log:
        result = await run(team, "?", engine=numbered(), log=log)
        assert len(list(log.steps())) == 6
    assert [(m, heard) for s, m, heard, _ in trace(result) if s == 1] == [
        ("a", "a1 c1"),
        ("b", "a1 c1"),
        ("c", "a1 c1"),
    ]
    assert result.outcome == "degraded"
    assert result.why == "2 rounds; b failed: tool raised ValueError: boom (and 1 more)"
    bad = result.episode.steps[1]
    assert (bad.finish, bad.output, bad.data["attempts"]) == ("error", "", 2)


async def test_replace_lets_another_model_take_the_turn() -> None:
    team = Team("t", members("a", "b"), Protocol(on_failure="replace(spare)"))
    engines = {"default": ScriptedEngine("x", failures={0: "hot"}), "spare": ScriptedEngine("y")}
    result = await run(team, "?", engine=engines)
    a, b = result.episode.steps
    assert (a.output, a.data) == ("y", {"attempts": 2, "model": "spare"})
    assert (b.output, b.data) == ("x", {})
    assert result.outcome == "done"


async def test_skip_does_not_try_again() -> None:
    engine = ScriptedEngine("x", failures={0: "hot"})
    team = Team("t", members("a", "b"), Protocol(on_failure="skip"))
    result = await run(team, "?", engine=engine)
    assert (len(engine.groups), result.outcome) == (1, "degraded")


@pytest.mark.parametrize("policy", ["abort", "retry(then=abort)"])
async def test_abort_stops_the_run_which_can_be_resumed(policy: str) -> None:
    team = Team("t", members("a", "b"), Protocol(until="rounds(2)", on_failure=policy))
    failures = dict.fromkeys(range(2, 6), "hot")
    with EventLog() as log:
        result = await run(team, "?", engine=ScriptedEngine("x", failures=failures), log=log)
        assert (result.outcome, result.result, result.why) == ("failed", None, "a: hot")
        assert log.episode().outcome == "open"
        again = await run(team, "?", engine=ScriptedEngine("x"), log=log)
    assert (again.outcome, len(again.episode.steps)) == ("done", 4)


async def test_a_dead_engine_stops_the_run_and_nothing_is_logged_as_said() -> None:
    dead = ScriptedEngine(failures={i: EngineError("endpoint away") for i in range(99)})
    team = Team("t", members("a", "b"), protocol(until="rounds(2)"))
    with EventLog() as log:
        result = await run(team, "?", engine=dead, log=log)
        assert (result.outcome, result.why) == ("failed", "a: endpoint away")
        assert list(log.steps()) == []
        again = await run(team, "?", engine=ScriptedEngine("x"), log=log)
    assert (again.outcome, len(again.episode.steps)) == ("done", 4)


async def test_when_nobody_answers_in_a_round_the_run_fails() -> None:
    engine = ScriptedEngine("x", failures={i: f"hot {i}" for i in range(2, 99)})
    team = Team("t", members("a", "b"), Protocol("round_robin", until="rounds(3)"))
    result = await run(team, "?", engine=engine)
    assert result.outcome == "failed"
    assert result.why.startswith("nobody answered in round 2; b: hot")
    assert [step.output for step in result.episode.steps] == ["x", "x", ""]


async def test_a_judge_that_fails_leaves_the_last_words_and_says_so() -> None:
    team = Team("t", members("a", "j"), protocol("all(but=j)", "judge(j)"))
    engine = ScriptedEngine("x", failures={1: "hot", 2: "hot"})
    with EventLog() as log:
        result = await run(team, "?", engine=engine, log=log)
        notes = [event.body for event in log.events("note")]
    assert (result.outcome, result.result) == ("degraded", "x")
    assert result.why == "1 round; j failed: hot"
    assert notes == [{"fallback": "last", "from": [result.episode.steps[0].key]}]


async def test_an_inner_team_that_fails_is_a_member_that_fails() -> None:
    inner = Team("inner", (Agent("x", model=Script(crash)),))
    team = Team("outer", (Agent("a"), inner))
    result = await run(team, "?", engine=ScriptedEngine("fine"))
    assert result.outcome == "degraded"
    assert [(step.member, step.finish) for step in result.episode.steps] == [
        ("a", "stop"),
        ("inner", "error"),
    ]
    assert "nobody answered in round 1; inner/x: script raised ValueError" in result.why


async def test_a_hub_that_is_away_leaves_the_workers_taking_turns() -> None:
    team = Team(
        "t",
        members("hub", "v", "w"),
        Protocol("select(hub)", "last", "rounds(3)", "skip"),
        channels="star(hub)",
    )
    engine = ScriptedEngine("x", failures={0: "hot", 2: "hot", 4: "hot"})
    result = await run(team, "?", engine=engine)
    assert [s.member for s in result.episode.steps if s.finish == "stop"] == ["v", "w", "v"]
    assert result.outcome == "degraded"


async def test_a_log_that_cannot_be_written_stops_the_run_and_keeps_what_was_done() -> None:
    team = Team("t", members("a", "b"), protocol(until="rounds(500)"))
    with EventLog() as log:
        log._db.execute("PRAGMA max_page_count=60")
        with pytest.raises(LogError, match="what was logged before is safe"):
            await run(team, "?", "words " * 200, engine=numbered(), log=log)
        kept = list(log.steps())
        assert kept
        assert [(s.superstep, s.member) for s in kept] == [
            (i // 2, "ab"[i % 2]) for i in range(len(kept))
        ]


async def test_usage_of_failed_attempts_is_not_lost() -> None:
    class Costly(ScriptedEngine):
        async def generate(self, requests, on_delta=None):  # type: ignore[no-untyped-def]
            from dataclasses import replace

            done = await ScriptedEngine.generate(self, requests, on_delta)
            return [replace(c, usage=Usage(prompt_tokens=10)) if c.error else c for c in done]

    result = await run(Team("t", members("a")), "?", engine=Costly("x", failures={0: "hot"}))
    (step,) = result.episode.steps
    assert step.usage.prompt_tokens == 10 + len(["<system>", "<user>"]) + len(
        " ".join(message.content for message in step.prompt).split()
    )
