"""The world of typed tools: its promises, its split, and its errors."""

from __future__ import annotations

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from shoal.core.errors import ConfigError
from shoal.envs.tool_world import HELD_OUT, KINDS, NUMBERS, PARAMETER_NAMES, TOOL_NAMES, ToolWorld
from shoal.training.policies import word_policy

SEEDS = range(400)


@pytest.fixture(scope="module")
def world() -> ToolWorld:
    return ToolWorld()


def described(world: ToolWorld, seed: int) -> set[str]:
    world.reset(seed)
    return {tool.description for tool in world.tools}


def signatures(world: ToolWorld, seed: int) -> set[tuple[str, frozenset[str]]]:
    """What the tools of a request are, whatever they are called."""
    world.reset(seed)
    return {
        (
            tool.description,
            frozenset(one["description"] for one in tool.parameters["properties"].values()),
        )
        for tool in world.tools
    }


def test_the_expert_is_always_exactly_right(world: ToolWorld) -> None:
    for seed in [*SEEDS, *range(HELD_OUT, HELD_OUT + 100)]:
        world.reset(seed)
        found = world.step(world.expert_action())
        assert found.solved and found.reward == 1 and found.terminated


def test_arguments_of_a_right_call_fit_the_schema_that_is_shown(world: ToolWorld) -> None:
    for seed in SEEDS:
        world.reset(seed)
        tools = {tool.name: tool for tool in world.tools}
        for call in world.wanted.example().calls:
            schema = tools[call.name].parameters
            Draft202012Validator(schema).validate(dict(call.arguments))


def test_held_out_tools_are_never_trained_on(world: ToolWorld) -> None:
    train = set().union(*(signatures(world, seed) for seed in range(1_000)))
    held_out = set().union(*(signatures(world, HELD_OUT + seed) for seed in SEEDS))
    assert len(train) == 36 and len(held_out) == 12 and not train & held_out
    assert {verb for verb, _ in train} == {verb for verb, _ in held_out}


def test_names_mean_nothing_and_change_with_every_request(world: ToolWorld) -> None:
    called: dict[str, set[str]] = {}
    for seed in SEEDS:
        world.reset(seed)
        for tool in world.tools:
            called.setdefault(tool.description, set()).add(tool.name)
            assert tool.name in TOOL_NAMES
            assert set(tool.parameters["properties"]) <= set(PARAMETER_NAMES)
    assert min(len(names) for names in called.values()) > 13


def test_a_number_alone_may_be_what_is_drawn() -> None:
    world = ToolWorld(masked="numbers", calls=(1, 1), parameters=(1, 1), irrelevant=0.0)
    numbers: dict[str, set[int]] = {}
    for seed in SEEDS:
        text = world.reset(seed)
        for tool in world.tools:
            (kind,) = tool.parameters["properties"]
            assert f"tool {tool.name} {kind}" in text
            number = int(tool.name.removeprefix(tool.description))
            numbers.setdefault(tool.description, set()).add(number)
        assert world.step(world.expert_action()).solved
    assert set().union(*numbers.values()) == set(NUMBERS) and min(map(len, numbers.values())) > 13


def test_each_part_can_slip_by_itself() -> None:
    world = ToolWorld(masked="numbers", calls=(1, 1), parameters=(1, 1), slips={"value": 1.0})
    right, silent = [], []
    for seed in SEEDS:
        world.reset(seed)
        said = world.dialect.read(world.expert_action())
        if not world.wanted.calls:
            silent.append(not said.calls)
            continue
        (call,), (mine,) = world.wanted.example().calls, said.calls
        assert mine.name == call.name and mine.arguments.keys() == call.arguments.keys()
        right.append(mine.arguments == call.arguments)
    assert all(silent)
    # any value of its type is as likely as the right one
    chance = np.mean([1 / len(values) for values in KINDS.values()])
    assert np.mean(right) == pytest.approx(chance, abs=0.08)


def test_slips_call_where_nothing_should_be_called() -> None:
    world = ToolWorld(slips=0.5)
    silent = [seed for seed in SEEDS if not world.ask(seed)[2].calls]
    said = []
    for seed in silent:
        world.reset(seed)
        said.append(world.expert_action())
    assert 0.3 < sum(one == "none" for one in said) / len(said) < 0.7


def test_a_fifth_of_the_requests_want_no_call(world: ToolWorld) -> None:
    counts = np.zeros(4)
    for seed in range(2_000):
        _, _, truth = world.ask(seed)
        counts[len(truth.calls)] += 1
    share = counts / counts.sum()
    assert share[0] == pytest.approx(0.2, abs=0.03)
    assert share[1:] == pytest.approx([0.8 / 3] * 3, abs=0.04)


def test_what_no_tool_fits_is_not_among_the_tools(world: ToolWorld) -> None:
    for seed in SEEDS:
        tools, request, truth = world.ask(seed)
        asked = request.split()[1]
        assert (asked in {tool.description for tool in tools}) == bool(truth.calls)
        if not truth.calls:
            world.reset(seed)
            assert world.step("none").solved
            world.reset(seed)
            assert not world.step(f"call {tools[0].name}").solved


def test_slips_are_the_same_each_time_and_as_many_as_asked_for() -> None:
    world = ToolWorld(slips=0.3, calls=(1, 1), irrelevant=0.0)
    wrong = 0
    for seed in SEEDS:
        world.reset(seed)
        said = world.expert_action()
        assert said == world.expert_action()
        wrong += not world.step(said).solved
    assert 0.5 < wrong / len(SEEDS) < 0.9
    world = ToolWorld(slips=0.0, calls=(1, 1), irrelevant=0.0)
    world.reset(3)
    assert world.step(world.expert_action()).solved


@pytest.mark.parametrize("masked", ["all", "numbers"])
def test_a_policy_of_words_reads_and_writes_all_of_it(masked: str) -> None:
    world = ToolWorld(masked=masked)  # type: ignore[arg-type]
    policy = word_policy(world.words(), hidden=16, heads=2, layers=1, context=256)
    unknown = policy.tokenizer.encode("<unknown>")[0]
    for seed in range(100):
        tokens = policy.tokenizer.encode(world.reset(seed).replace("\n", " "))
        assert unknown not in tokens and len(tokens) < 60
        said = world.expert_action()
        assert policy.decode(policy.tokenizer.encode(said)) == said


def test_answers_compare_as_calls_in_no_order() -> None:
    world = ToolWorld(calls=(2, 2), irrelevant=0.0)
    world.reset(1)
    first, second = world.expert_action().removeprefix("call ").split(" call ")
    answers = []
    for said in (f"call {first} call {second}", f"call {second} call {first}", "call x y"):
        world.reset(1)
        world.step(said)
        answers.append(world.final_answer)
    assert answers[0] == answers[1] is not None and answers[2] is None


@pytest.mark.parametrize(
    "options",
    [
        {"calls": (0, 2)},
        {"calls": (2, 4)},
        {"offered": 12},
        {"parameters": (0, 2)},
        {"masked": "some"},
        {"slips": {"values": 0.5}},
    ],
)
def test_worlds_that_cannot_be_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        ToolWorld(**options)  # type: ignore[arg-type]


def test_prompts_of_real_models_hold_json_schemas() -> None:
    world = ToolWorld(dialect="hermes")
    text = world.reset(2)
    assert text.count('"parameters"') == 3 and "enum" in text
    assert "<tool_call>" in world.instructions
    with pytest.raises(ConfigError, match="dialect 'words'"):
        world.words()
