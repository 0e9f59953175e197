"""A run that was cut off goes on from its log and ends as if nothing had happened."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traces import members, numbered, protocol, trace

from shoal.agents import Agent, Material, Protocol, Script, Team, TeamResult, run
from shoal.agents.events import RunStarted, TeamEvent, TurnEnded
from shoal.core import rng
from shoal.core.budget import Limits
from shoal.core.errors import ConfigError
from shoal.core.log import EventLog
from shoal.core.protocols import Completion, Request, Sampling
from shoal.core.records import Message, Step
from shoal.engine.scripted import ScriptedEngine


class Killed(RuntimeError):
    """The process ends here."""


class MortalLog(EventLog):
    """A log whose process dies before it writes its ``n``-th turn or its end."""

    lives: int | None = None

    def append_step(self, step: Step) -> None:
        self._live()
        super().append_step(step)

    def append(self, kind, body, *, key=None):  # type: ignore[no-untyped-def]
        if kind == "end":
            self._live()
        return super().append(kind, body, key=key)

    def _live(self) -> None:
        if self.lives is not None:
            if self.lives == 0:
                raise Killed
            self.lives -= 1


class Moody(ScriptedEngine):
    """Fails some requests, depending on nothing but their seeds; remembers no prefixes."""

    def _complete(self, request: Request, number: int) -> Completion:
        if rng.uniform(request.sampling.seed, "mood") < 0.15:
            return Completion("", finish="error", error="bad mood")
        return super()._complete(request, number)


def moody_script(messages: tuple[Message, ...], seed: int) -> str:
    if rng.uniform(seed, "mood") < 0.3:
        raise ValueError("bad mood")
    return f"script {seed % 100}"


def engine() -> Moody:
    return Moody(sharing=False)


async def finish_after_deaths(team: Team, deaths: list[int], seed: int) -> TeamResult:
    """Run a team whose process dies after so many writes, again and again, then lives."""
    material = Material("some long material", ("part one", "part two", "part three"))
    with MortalLog() as log:
        for lives in deaths:
            log.lives = lives
            try:
                return await run(team, "Why?", material, engine=engine(), log=log, seed=seed)
            except Killed:
                pass
        log.lives = None
        result = await run(team, "Why?", material, engine=engine(), log=log, seed=seed)
        keys = [event.key for event in log.events("step")]
        assert len(set(keys)) == len(keys)
        assert {step.key for step in result.episode.steps} == set(keys)
    return result


def comparable(result: TeamResult) -> tuple[object, ...]:
    """All of a result but the run's id and its time."""
    steps = [
        (s.key.partition("/")[2], s.member, s.prompt, s.output, s.finish, dict(s.data), s.usage)
        for s in result.episode.steps
    ]
    return steps, result.result, result.outcome, result.why


limits = st.builds(
    Limits, st.none() | st.integers(40, 1500), st.none() | st.integers(1, 20), st.none()
)
sampling = st.builds(Sampling, max_tokens=st.integers(1, 12))
agents = st.builds(
    lambda name, script, sampling, limits: Agent(
        name,
        model=Script(moody_script) if script else "default",
        sampling=sampling,
        limits=limits,
    ),
    st.sampled_from("pqrs"),
    st.integers(0, 3).map(lambda n: n == 0),
    sampling,
    st.just(Limits()) | limits,
)
inner_teams = st.builds(
    lambda agents, turn, until, limits: Team(
        "inner", agents, protocol(turn, "concat", until), "mesh", limits=limits
    ),
    st.lists(agents, min_size=1, max_size=2, unique_by=lambda a: a.name).map(tuple),
    st.sampled_from(["all", "round_robin"]),
    st.sampled_from(["rounds(1)", "rounds(2)"]),
    st.just(Limits()) | limits,
)
hub = Agent("hub", sampling=Sampling(max_tokens=8))
teams = st.builds(
    lambda agents, mapper, inner, rules, channels, until, policy, limits: Team(
        "t",
        (hub, *agents, *([mapper] if mapper else []), *([inner] if inner else [])),
        Protocol(rules[0], rules[1], until, policy),
        channels,
        limits=limits,
    ),
    st.lists(agents, min_size=1, max_size=3, unique_by=lambda a: a.name).map(tuple),
    st.none() | st.just(Agent("mapper", reads="part", sampling=Sampling(max_tokens=5))),
    st.none() | inner_teams,
    st.sampled_from(
        [
            ("all", "last"),
            ("all", "vote"),
            ("all(but=hub)", "judge(hub)"),
            ("round_robin", "concat"),
            ("chain", "last"),
            ("select(hub)", "judge(hub)"),
        ]
    ),
    st.sampled_from(["mesh", "bus", "ring", "star(hub)", "none"]),
    st.sampled_from(["rounds(1)", "rounds(2)", "any(rounds(3), consensus)", "turns(5)"]),
    st.sampled_from(["retry", "skip", "retry(2)"]),
    st.just(Limits()) | limits,
)


@given(teams, st.integers(0, 9))
@settings(max_examples=40)
def test_a_run_killed_before_any_write_ends_like_one_that_was_not(team: Team, seed: int) -> None:
    whole = asyncio.run(finish_after_deaths(team, [], seed))
    for lives in range(len(whole.episode.steps) + 1):
        resumed = asyncio.run(finish_after_deaths(team, [lives], seed))
        assert comparable(resumed) == comparable(whole)


@given(teams, st.lists(st.integers(0, 4), max_size=6), st.integers(0, 9))
@settings(max_examples=60)
def test_a_run_killed_many_times_ends_like_one_that_was_not(
    team: Team, deaths: list[int], seed: int
) -> None:
    whole = asyncio.run(finish_after_deaths(team, [], seed))
    resumed = asyncio.run(finish_after_deaths(team, deaths, seed))
    assert comparable(resumed) == comparable(whole)


async def test_finished_turns_are_not_taken_again_and_are_told_as_recorded() -> None:
    team = Team("t", members("a", "b", "c"), protocol(until="rounds(2)"))
    with MortalLog() as log:
        log.lives = 4
        with pytest.raises(Killed):
            await run(team, "?", engine=numbered(), log=log)
        log.lives = None
        events: list[TeamEvent] = []
        second = ScriptedEngine("later")
        result = await run(team, "?", engine=second, log=log, on_event=events.append)
    assert [m for _, m, _, said in trace(result) if said == "later"] == ["b", "c"]
    assert [len(group) for group in second.groups] == [2]
    assert events[0] == RunStarted(result.episode.id, "t", "?", ("a", "b", "c"), 4)
    told = [(e.step.member, e.recorded) for e in events if isinstance(e, TurnEnded)]
    assert told == [(m, True) for m in "abca"] + [("b", False), ("c", False)]


async def test_a_finished_run_is_read_not_run() -> None:
    team = Team("t", members("a", "b"))
    with EventLog() as log:
        first = await run(team, "?", engine=numbered(), log=log)
        engine = ScriptedEngine("never")
        again = await run(team, "?", engine=engine, log=log)
        events = [event.kind for event in log.events()]
    assert engine.groups == []
    assert comparable(again) == comparable(first)
    assert again.episode == first.episode
    assert events == ["run", "step", "step", "end"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"task": "other"}, "another task"),
        ({"seed": 1}, "another seed"),
        ({"material": "other"}, "another material"),
        ({"team": Team("t", members("a", "c"))}, "another team"),
        ({"run_id": "r2", "seed": 2}, "another id and seed"),
    ],
)
async def test_a_log_of_another_run_is_refused(change: dict[str, object], named: str) -> None:
    given: dict[str, object] = {
        "team": Team("t", members("a", "b")),
        "task": "?",
        "material": "m",
        "seed": 0,
        "run_id": "r1",
    }
    with EventLog() as log:
        await run(**given, engine=numbered(), log=log)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=f"{named}: give the same to resume"):
            await run(**given | change, engine=numbered(), log=log)  # type: ignore[arg-type]


async def test_a_cancelled_run_leaves_a_log_without_the_turn_under_way() -> None:
    team = Team("t", members("a", "b"), protocol(until="rounds(2)"))
    with EventLog() as log:
        pieces: list[TeamEvent] = []
        task = asyncio.create_task(
            run(
                team,
                "?",
                engine=ScriptedEngine("one two three", delay=0.1),
                log=log,
                on_event=pieces.append,
            )
        )
        while sum(isinstance(event, TurnEnded) for event in pieces) < 2:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.015)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [step.superstep for step in log.steps()] == [0, 0]
        assert log.episode().outcome == "open"
        result = await run(team, "?", engine=ScriptedEngine("one two three"), log=log)
    whole = await run(team, "?", engine=ScriptedEngine("one two three"))
    assert trace(result) == trace(whole)
    assert result.outcome == "done"


RUNNER = """
import asyncio, sys
from pathlib import Path
from shoal.agents import Agent, Protocol, Team, run
from shoal.core.log import EventLog
from shoal.engine.scripted import ScriptedEngine

panel = Team("panel", (Agent("x"), Agent("y")), Protocol(reduce="concat", until="rounds(2)"))
team = Team(
    "t",
    (Agent("a"), Agent("b"), panel, Agent("z")),
    Protocol("all(but=z)", "judge(z)", "rounds(6)"),
)
engine = ScriptedEngine(sharing=False, delay=0.0005)
print("ready", flush=True)
result = asyncio.run(
    run(team, "Why?", "some words", engine=engine, log=EventLog(Path(sys.argv[1])), seed=4,
        run_id="r")
)
for step in result.episode.steps:
    print(step.key, repr(step.output))
print(result.outcome, repr(result.result))
"""


def output_of(
    path: Path, draws: random.Random | None = None, how: int = signal.SIGKILL
) -> str | None:
    """What the run prints in the end; None where it was killed before, at a random moment."""
    process = subprocess.Popen(
        [sys.executable, "-c", RUNNER, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    if draws is not None:
        time.sleep(draws.uniform(0, 0.12))
        os.kill(process.pid, how)
    printed = process.communicate()[0]
    return printed if process.returncode == 0 else None


def kill_and_resume(folder: Path, times: int, seed: int) -> None:
    draws = random.Random(seed)
    expected = output_of(folder / "whole.sqlite")
    assert expected is not None
    assert expected.splitlines()[-1].startswith("done ")
    assert len(expected.splitlines()) == 6 * (2 + 5) + 2
    kills, round_ = 0, 0
    while kills < times:
        path = folder / f"log{round_}.sqlite"
        round_ += 1
        held = 0
        for _ in range(4):
            if output_of(path, draws) is not None:
                break
            kills += 1
            with EventLog(path) as log:
                steps = list(log.steps())
                assert len(steps) >= held
                held = len(steps)
        assert output_of(path) == expected


def test_kill_9_at_random_moments_and_the_run_ends_the_same(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, 8, seed=1)


def test_an_interrupt_from_the_keyboard_leaves_a_log_that_goes_on(tmp_path: Path) -> None:
    draws = random.Random(3)
    while output_of(tmp_path / "log.sqlite", draws, signal.SIGINT) is None:
        with EventLog(tmp_path / "log.sqlite") as log:
            assert log.episode().outcome in ("open", "done")
    assert output_of(tmp_path / "log.sqlite") == output_of(tmp_path / "whole.sqlite")


@pytest.mark.slow
def test_kill_9_at_fifty_random_moments(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, 50, seed=2)
