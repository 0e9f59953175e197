"""The room for material is what a run can really hold."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st
from traces import protocol

from shoal.agents import Agent, Material, Room, Team, load_team, material_room, run
from shoal.core.protocols import Sampling
from shoal.engine.scripted import ScriptedEngine


def worker(name: str, reads: str = "all") -> Agent:
    return Agent(name, reads=reads, sampling=Sampling(max_tokens=9))  # type: ignore[arg-type]


@given(
    st.integers(1, 4),
    st.sampled_from(["rounds(1)", "rounds(3)", "turns(5)"]),
    st.sampled_from(["mesh", "bus", "ring", "star(a)", "mesh(view=last(2))"]),
    st.sampled_from([("all", "last"), ("all(but=a)", "judge(a)"), ("round_robin", "judge(a)")]),
    st.booleans(),
)
def test_material_that_fills_the_room_fits_in_every_turn(
    size: int, until: str, channels: str, rules: tuple[str, str], nested: bool
) -> None:
    inner = Team("inner", (worker("x"), worker("y")), protocol(until="rounds(2)"))
    team = Team(
        "t",
        (*(worker(name) for name in "abcde"[: size + 1]), *([inner] if nested else [])),
        protocol(*rules, until),
        channels,
    )
    engine = ScriptedEngine("word " * 20, context_tokens=600)
    room = material_room(team, "Why is it so?", engine)
    assert room.part is None
    assert room.whole is not None
    assert room.whole > 0
    result = asyncio.run(run(team, "Why is it so?", "word " * room.whole, engine=engine))
    assert result.outcome == "done", result.why


async def test_the_room_of_parts_is_told_apart() -> None:
    team = Team("t", (worker("m", "part"), worker("e", "none")), protocol("all(but=e)", "judge(e)"))
    engine = ScriptedEngine("word " * 20, context_tokens=200)
    room = material_room(team, "Why?", engine)
    assert room.whole is None
    assert room.part is not None
    material = Material("", ("word " * room.part,) * 4)
    result = await run(team, "Why?", material, engine=engine)
    assert result.outcome == "done", result.why


def test_an_unknown_context_has_no_room_and_a_short_one_too_little() -> None:
    team = load_team("reading-room")
    assert material_room(team, "", ScriptedEngine()) == Room(None, None)
    assert (material_room(team, "", ScriptedEngine(context_tokens=300)).whole or 0) < 1
