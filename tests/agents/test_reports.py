"""The sharing report adds up, compares honestly, and replay tells a run again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from traces import members, numbered, protocol

from shoal.agents import Agent, Difference, Team, compare, diff, replay, run, sharing_report
from shoal.agents.events import (
    RunEnded,
    RunStarted,
    SuperstepEnded,
    SuperstepStarted,
    TeamEvent,
    TurnDelta,
    TurnEnded,
    TurnStarted,
)
from shoal.agents.report import Row
from shoal.core.budget import Limits
from shoal.core.errors import LogError
from shoal.core.log import EventLog
from shoal.core.records import Episode, Step, Usage
from shoal.engine.scripted import ScriptedEngine

STEPS = (
    Step("r/0/a", "a", 0, (), "x", usage=Usage(100, 0, 10, 50.0, 80.0, 7000)),
    Step("r/0/b", "b", 0, (), "x", usage=Usage(100, 90, 20, 10.0, 60.0, 500)),
    Step("r/1/a", "a", 1, (), "x", usage=Usage(120, 100, 10, 20.0, 40.0, 600)),
    Step("r/1/s", "s", 1, (), "script"),
)


def test_rows_and_totals_by_hand() -> None:
    report = sharing_report(Episode("r", "t", STEPS))
    assert report.rows == (
        Row("a", 2, 240, 140, 100, 20, 35.0, 120.0, 7000),
        Row("b", 1, 120, 30, 90, 20, 10.0, 60.0, 500),
    )
    # one superstep after the other, the slowest turn of each: 80 + 40 milliseconds
    assert report.total == Row("all", 3, 360, 170, 190, 40, 80 / 3, 120.0, 7500)
    assert sharing_report(Episode("r", "t", STEPS), wall_seconds=0.5).total.wall_ms == 500.0
    assert json.loads(json.dumps(report.as_dict()))["rows"][0]["member"] == "a"


def test_a_run_without_models_has_an_empty_report() -> None:
    report = sharing_report(Episode("r", "t", STEPS[3:]))
    assert report.rows == ()
    assert report.total == Row("all", 0, 0, 0, 0, 0, 0.0, 0.0, 0)
    comparison = compare((Episode("r", "t", ()), None), (Episode("r", "t", ()), None))
    assert (comparison.computed_ratio, comparison.wall_ratio) == (None, None)
    assert comparison.identical


async def test_with_and_without_sharing_texts_are_the_same_and_work_is_not() -> None:
    team = Team("t", members("a", "b", "c", "d"), protocol(until="rounds(2)"))
    material = "long material " * 300
    with_ = await run(team, "?", material, engine=ScriptedEngine("word"), seed=1)
    without = await run(team, "?", material, engine=ScriptedEngine("word", sharing=False), seed=1)
    comparison = compare((with_.episode, with_.seconds), (without.episode, without.seconds))
    assert comparison.identical
    assert comparison.shared.total.asked_tokens == comparison.unshared.total.asked_tokens
    assert comparison.unshared.total.shared_tokens == 0
    asked = comparison.unshared.total.asked_tokens
    assert comparison.unshared.total.computed_tokens == asked
    assert comparison.computed_ratio == asked / comparison.shared.total.computed_tokens
    assert comparison.computed_ratio > 7
    assert comparison.wall_ratio == pytest.approx(without.seconds / with_.seconds)
    assert json.loads(json.dumps(comparison.as_dict()))["identical"] is True


def test_the_first_turn_that_differs_is_named() -> None:
    one = Episode("r", "t", STEPS, "end")
    other = replace(one, steps=(STEPS[0], replace(STEPS[1], output="y"), *STEPS[2:]))
    comparison = compare((one, None), (other, None))
    assert not comparison.identical
    assert comparison.difference == Difference(1, "b", 0, "output", "x", "y")


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({}, None),
        ({"id": "other"}, None),
        (
            {"steps": (replace(STEPS[0], key="z/0/a", usage=Usage(1)), *STEPS[1:])},
            None,
        ),
        ({"steps": STEPS[:2]}, Difference(2, "a", 1, "length", "4 turns", "2 turns")),
        ({"result": "no"}, Difference(4, "", -1, "result", "end", "no")),
        (
            {"steps": (replace(STEPS[0], seed=5), *STEPS[1:])},
            Difference(0, "a", 0, "seed", "0", "5"),
        ),
    ],
)
def test_where_two_runs_part(change: dict[str, object], difference: Difference | None) -> None:
    one = Episode("r", "t", STEPS, "end")
    assert diff(one, replace(one, **change)) == difference  # type: ignore[arg-type]
    assert (diff(replace(one, **change), one) is None) == (difference is None)  # type: ignore[arg-type]


async def test_events_tell_a_run_in_order() -> None:
    events: list[TeamEvent] = []
    team = Team("t", members("b", "a"), limits=Limits(calls=5))
    result = await run(
        team, "?", engine=ScriptedEngine("one two"), on_event=events.append, run_id="r"
    )
    a, b = result.episode.steps
    assert events == [
        RunStarted("r", "t", "?", ("b", "a"), 0),
        SuperstepStarted(0, 0, ("a", "b")),
        TurnStarted("a", 0),
        TurnStarted("b", 0),
        TurnDelta("a", 0, "one"),
        TurnDelta("b", 0, "one"),
        TurnDelta("a", 0, " two"),
        TurnDelta("b", 0, " two"),
        TurnEnded(a),
        TurnEnded(b),
        SuperstepEnded(0, Limits(calls=3)),
        RunEnded(result),
    ]


async def test_a_log_is_replayed_as_the_episode_it_was(tmp_path: Path) -> None:
    inner = Team("panel", members("x", "y"))
    team = Team("t", (Agent("q"), inner, Agent("z")), protocol(until="rounds(2)"))
    with EventLog(tmp_path / "log.sqlite") as log:
        result = await run(team, "?", engine=numbered(), log=log, seed=3)
    events: list[TeamEvent] = []
    with EventLog(tmp_path / "log.sqlite") as log:
        episode = replay(log, events.append)
        assert replay(log) == episode
    assert episode == result.episode
    assert events[0] == RunStarted(episode.id, "t", "?", ("q", "panel", "z"), 10)
    assert [e.step for e in events if isinstance(e, TurnEnded)] == list(episode.steps)
    last = events[-1]
    assert isinstance(last, RunEnded)
    assert (last.result.outcome, last.result.why) == ("done", "2 rounds")


async def test_an_open_run_replays_without_an_end_and_an_empty_log_is_refused() -> None:
    with EventLog() as log:
        with pytest.raises(LogError, match="holds no run"):
            replay(log)
        log.append("run", {"id": "r", "task": "?", "team": "t"})
        log.append_step(STEPS[0])
        events: list[TeamEvent] = []
        assert replay(log, events.append).outcome == "open"
    assert len(events) == 2
