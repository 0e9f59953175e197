"""Environments as members: what actions bring travels on channels, also in a resumed run."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from traces import trace

from shoal.agents import Agent, Channel, Protocol, Team, World, run
from shoal.core.log import EventLog
from shoal.core.records import Message
from shoal.engine.scripted import ScriptedEngine


@dataclass(frozen=True)
class Moved:
    observation: str
    reward: float
    done: bool


class Heap:
    """Seven stones; who takes the last one or two gets a point. Counts how often it is open."""

    left_open = 0

    def __init__(self) -> None:
        self.stones = 7
        Heap.left_open += 1

    def reset(self, seed: int) -> str:
        self.stones = 7 + seed
        return f"{self.stones} stones."

    def step(self, action: str) -> Moved:
        taken = {"one": 1, "two": 2}.get(action, 0)
        self.stones -= min(taken, self.stones)
        over = self.stones == 0
        return Moved(f"{self.stones} stones.", float(over), over)

    def admissible_actions(self) -> tuple[str, ...]:
        return ("one", "two")[: self.stones]

    def close(self) -> None:
        Heap.left_open -= 1


def nim(heap: World) -> Team:
    return Team(
        "nim",
        (Agent("heap", model=heap), Agent("ann"), Agent("bob")),
        Protocol(
            "chain", "last(of=heap)", "any(rounds(9), verdict(heap, 'It is over'))",
            payoff="scored(heap)",
        ),
        channels=(Channel(("ann", "bob"), "heap", "all"), Channel("heap", ("ann", "bob"))),
    )  # fmt: skip


def taking(*moves: str) -> ScriptedEngine:
    return ScriptedEngine(list(moves))


async def test_members_act_on_a_world_and_hear_nothing_else() -> None:
    engine = taking("I take two.", "one", "two", "nothing", "two", "one")
    with EventLog() as log:
        result = await run(nim(World(Heap)), "Nim.", engine=engine, log=log)
        (note,) = (event.body for event in log.events("note"))
    assert [turn[2:] for turn in trace(result) if turn[1] == "heap"] == [
        ("", "7 stones.\nYou may: one, two.\n{}"),
        ("I take two. one", '4 stones.\nYou may: one, two.\n{"ann": 0.0, "bob": 0.0}'),
        (
            "I take two. one two nothing",
            '2 stones.\nYou may: one, two.\n{"ann": 0.0, "bob": 0.0}',
        ),
        (
            "I take two. one two nothing two one",
            '0 stones.\nIt is over.\n{"ann": 1.0, "bob": 0.0}',
        ),
    ]
    by = {step.key: step.member for step in result.episode.steps}
    heard = {by[key] for step in result.episode.steps if step.member == "bob" for key in step.seen}
    assert heard == {"heap"}
    assert result.why == "heap said 'It is over'"
    assert note == {"payoff": {"ann": 1.0, "bob": 0.0}}
    assert Heap.left_open == 0


async def test_a_run_cut_off_anywhere_meets_the_same_world_again() -> None:
    def player(messages: tuple[Message, ...], seed: int) -> str:
        stones = int(messages[-1].content.split(" stones.")[0].rpartition(" ")[2])
        return "two" if stones % 3 == 2 else "one"

    team, engine = nim(World(Heap, 1)), ScriptedEngine(player)
    with EventLog() as first:
        whole = await run(team, "Nim.", engine=engine, log=first)
        (begun,) = first.events("run")
    steps = whole.episode.steps
    for cut in range(1, len(steps)):
        with EventLog() as log:
            log.append("run", begun.body, key="run")
            for step in steps[:cut]:
                log.append_step(step)
            again = await run(team, "Nim.", engine=engine, log=log)
        assert trace(again) == trace(whole)
        assert (again.result, again.why) == (whole.result, whole.why)


class Broken(Heap):
    def step(self, action: str) -> Moved:
        raise RuntimeError("the heap fell over")


async def test_a_world_that_crashes_fails_its_turn_and_is_closed() -> None:
    result = await run(nim(World(Broken)), "Nim.", engine=taking("one"))
    errors = [step.data.get("error") for step in result.episode.steps if step.member == "heap"]
    assert errors[0] is None
    assert str(errors[1]).startswith("World('Broken', 0) raised RuntimeError: the heap fell over")
    assert result.outcome == "degraded"
    assert Heap.left_open == 0


async def test_an_environment_of_the_house_is_a_member() -> None:
    pytest.importorskip("gymnasium", reason="the extra 'envs' is not installed")
    from shoal.envs.catalog import open_environment

    def make() -> object:
        return open_environment("frozen-lake")

    lake = Agent("lake", model=World(make, 3))  # type: ignore[arg-type]
    team = Team(
        "walk",
        (lake, Agent("walker")),
        Protocol("chain", "last(of=lake)", "any(rounds(40), verdict(lake, 'It is over'))"),
        channels=(Channel("walker", "lake", "all"), Channel("lake", "walker")),
    )
    guide = open_environment("frozen-lake")
    guide.reset(3)
    way = []
    while True:
        way.append(guide.expert_action())  # type: ignore[attr-defined]
        if guide.step(way[-1]).done:
            break
    guide.close()
    result = await run(team, "Cross the lake.", engine=taking(*way))
    assert result.why == "lake said 'It is over'"
    assert str(result.result).endswith('{"walker": 1.0}')
    assert len(result.episode.steps) == 2 * len(way) + 1
