"""What is foreseen is what happens, where answers are as long as foreseen."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_rows import TEAMS, python_rows
from traces import members, protocol

from shoal.agents import Agent, Material, Script, Team, load_team, run
from shoal.agents.forecast import forecast
from shoal.core.budget import Limits
from shoal.core.protocols import Sampling
from shoal.core.records import Message
from shoal.engine.scripted import ScriptedEngine


def talking(words: int) -> ScriptedEngine:
    def answer(messages: tuple[Message, ...], seed: int) -> str:
        return "x " * words

    return ScriptedEngine(answer)


@given(
    st.sampled_from(["mesh", "mesh(all)", "bus", "ring", "chain", "star(a)", "tree(2)", "none"]),
    st.integers(1, 4),
    st.integers(1, 9),
    st.sampled_from(["last", "judge(a)"]),
)
@settings(max_examples=60)
def test_tokens_are_foreseen_to_the_last_one(
    channels: str, rounds: int, words: int, reduce: str
) -> None:
    team = Team("t", members("a", "b", "c"), protocol("all", reduce, f"rounds({rounds})"), channels)
    team = replace(
        team,
        members=tuple(replace(m, sampling=Sampling(max_tokens=9)) for m in team.members),  # type: ignore[arg-type]
    )
    engine = talking(words)
    foreseen = asyncio.run(forecast(team, "Go.", "text", engine=engine, answer_tokens=words))
    real = asyncio.run(run(team, "Go.", "text", engine=engine)).episode
    assert foreseen.prompt_tokens == real.usage.prompt_tokens
    assert foreseen.answer_tokens == real.usage.decoded_tokens
    assert foreseen.requests == len(real.steps)
    assert len(engine.groups) == rounds + (reduce != "last")  # the forecast asked nobody


@pytest.mark.parametrize("path", sorted(TEAMS.glob("*.toml")), ids=lambda path: path.stem)
async def test_every_mechanism_can_be_foreseen(path: object) -> None:
    team = load_team(path)  # type: ignore[arg-type]
    foreseen = await forecast(team, "", Material("", ("a", "b")), engine=ScriptedEngine())
    assert foreseen.outcome in ("done", "undecided")  # fillers hold no bids
    assert foreseen.requests > 0


async def test_functions_and_people_are_not_asked() -> None:
    called = []
    counting = Script(lambda messages, seed: called.append(seed) or "x")
    team = Team("t", (Agent("f", model=counting), *members("a")), protocol())
    foreseen = await forecast(team, "?", engine=ScriptedEngine())
    assert called == []
    assert foreseen.requests == 1
    assert (await forecast(python_rows().game, engine=ScriptedEngine())).requests == 6


async def test_a_budget_that_does_not_suffice_is_foreseen() -> None:
    team = Team("t", members("a", "b"), protocol(until="rounds(5)"), limits=Limits(calls=3))
    foreseen = await forecast(team, "?", engine=ScriptedEngine())
    assert foreseen.outcome == "budget_exhausted"
