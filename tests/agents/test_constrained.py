"""A model cannot name what does not exist: members, votes, roles, scores, tools.

The model is random, so without grammars it would name nothing at all.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.agents import Agent, Protocol, Team, run, tool
from shoal.agents.turns import FINISH, SCORES
from shoal.core.protocols import Engine, Grammar, Sampling
from shoal.engine.local import LocalEngine
from shoal.engine.scripted import ScriptedEngine
from shoal.models.loading import load

WILD = Sampling(max_tokens=4, temperature=1.5, stop=("n",))
"""Too short for most names, and with a stop that stands in many: choices are not cut."""
NAMES = ("ann", "anna", "ann.b", "Zoë", "researcher-1")


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[Engine]:
    """A model whose answers are noise."""
    yield (engine := LocalEngine(load(str(tiny_model), dtype="fp32"), kv_bytes=32 << 20))
    asyncio.run(engine.close())


def people(*names: str) -> tuple[Agent, ...]:
    return tuple(Agent(name, sampling=WILD) for name in names)


TEAMS = {
    "select": (Protocol("select(ann)", "last", "rounds(4)"), {*NAMES, FINISH} - {"ann"}),
    "handoff": (Protocol("handoff(ann)", "last", "rounds(5)"), {*NAMES, FINISH}),
    "gate": (Protocol("gate(ann, 2)", "gate(ann, 2)", "rounds(2)"), {*NAMES} - {"ann"}),
    "bid": (Protocol("bid", "last", "rounds(3)"), set(SCORES)),
    "best_of": (Protocol("all(but=ann)", "best_of(ann)"), set(SCORES)),
    "vote": (Protocol("all", "vote(choices=[red, blue, 'deep red'])"), {"red", "blue", "deep red"}),
    "assign_roles": (
        Protocol("all", "last", "rounds(2)", rewire="assign_roles(ann, [critic, author])"),
        {"critic", "author"},
    ),
}


@pytest.mark.parametrize("rule", TEAMS)
async def test_every_choice_is_one_of_those_that_exist(rule: str, engine: Engine) -> None:
    protocol, allowed = TEAMS[rule]
    chosen = []
    for seed in range(4):
        team = Team("t", people(*NAMES), protocol, preamble=".")
        result = await run(team, "Go.", engine=engine, seed=seed)
        for step in result.episode.steps:
            assert "fallback" not in step.data, "the grammar held, so nothing was drawn"
            if "choice" in step.data:
                assert step.output == step.data["choice"], "the answer is the choice itself"
                chosen.append(step.output)
    assert set(chosen) <= allowed
    assert len(set(chosen)) > 1, "the model does choose"


@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.from_regex(r"[a-zA-Zäßλ][\w.-]{0,7}", fullmatch=True).filter(
            lambda name: name not in ("true", "false", FINISH)
        ),
        min_size=3, max_size=6, unique_by=lambda name: name,
    ),
    st.integers(0, 2**32),
)  # fmt: skip
async def test_whatever_the_names_the_hub_names_a_member(
    engine: Engine, names: list[str], seed: int
) -> None:
    team = Team(
        "t", people(*names), Protocol(f"select({names[0]})", "last", "rounds(2)"), preamble="."
    )
    result = await run(team, "Go.", engine=engine, seed=seed)
    turns = result.episode.steps
    for choice, work in zip(turns[::2], turns[1::2], strict=False):
        assert choice.data["choice"] == choice.output
        assert work.member == choice.output


async def test_tools_and_their_arguments_are_held_to_what_exists(engine: Engine) -> None:
    def add(a: int, b: int) -> str:
        """Add."""
        return str(a + b)

    def greet(formal: bool) -> str:
        """Greet."""
        return "Good day" if formal else "Hi"

    user = Agent("u", strategy="tools(3)", tools=(tool(add), tool(greet)), sampling=WILD, copies=4)
    calls = []
    for seed in range(2):
        team = Team("t", (user,), Protocol(until="rounds(1)"), preamble=".")
        result = await run(team, "Use tools.", engine=engine, seed=seed)
        calls += [call for step in result.episode.steps for call in step.tool_calls]
    assert {call.name for call in calls} == {"add", "greet"}
    for call in calls:
        try:
            given_ = json.loads(call.arguments)
        except ValueError:
            assert len(call.arguments) > 100, "only an answer cut at its length is no JSON"
            continue
        assert set(given_) == ({"a", "b"} if call.name == "add" else {"formal"})
        assert all(isinstance(value, int) for value in given_.values())


@pytest.mark.parametrize("rule", TEAMS)
async def test_the_engine_is_told_what_may_be_named(rule: str) -> None:
    protocol, allowed = TEAMS[rule]
    engine = ScriptedEngine()
    await run(Team("t", people(*NAMES), protocol), "Go.", engine=engine)
    grammars = [request.grammar for group in engine.groups for request in group]
    named = [grammar for grammar in grammars if grammar is not None]
    assert named
    for grammar in named:
        assert grammar == Grammar("choice", grammar.value)
        assert set(grammar.value) <= allowed
