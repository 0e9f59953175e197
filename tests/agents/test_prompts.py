"""The prompt layout: common text first, own words last, nothing that no channel carries."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st
from traces import content, members, numbered, protocol

from shoal.agents import Agent, Channel, Material, Team, run
from shoal.agents.payloads import PLAIN, Heard
from shoal.agents.prompt import DEFAULT_PREAMBLE, split_common
from shoal.core.records import Step
from shoal.engine.scripted import ScriptedEngine

MATERIAL = "A long story about a fox. " * 20


async def test_a_prompt_is_material_task_transcript_and_role_in_this_order() -> None:
    team = Team(
        "room",
        (Agent("a", "Say more.", objective="Be right."), Agent("b", "Doubt it.")),
        protocol(until="rounds(2)"),
        preamble="Read this.",
    )
    result = await run(team, "Who?", "A fox.", engine=numbered())
    system, user = result.episode.steps[2].prompt
    assert (system.role, system.content) == ("system", "Read this.\n\nA fox.")
    assert user.role == "user"
    assert user.content == (
        "Task: Who?\n\na said: a1\n\nb said: b1\n\nYou are a. Say more.\nYour goal: Be right."
    )
    assert content(result.episode.steps[3]).endswith("b said: b1\n\nYou are b. Doubt it.")


async def test_the_system_message_is_the_same_bytes_for_all_and_in_all_rounds() -> None:
    team = Team("room", members("a", "b", "c"), protocol(until="rounds(3)"))
    result = await run(team, "Who?", MATERIAL, engine=numbered())
    systems = {step.prompt[0].content for step in result.episode.steps}
    assert systems == {f"{DEFAULT_PREAMBLE}\n\n{MATERIAL}"}


async def test_in_a_mesh_prompts_of_a_superstep_differ_in_the_role_only() -> None:
    team = Team("room", (Agent("a", "One."), Agent("b", "Two.")), protocol(until="rounds(2)"))
    result = await run(team, "Who?", MATERIAL, engine=numbered())
    first, second = (content(step) for step in result.episode.steps[2:])
    assert first.removesuffix("a. One.") == second.removesuffix("b. Two.")


async def test_what_all_speakers_hear_comes_before_what_one_hears() -> None:
    team = Team(
        "room",
        members("a", "b", "c"),
        protocol(until="rounds(2)"),
        channels=(Channel("c", "*"), Channel("a", "b"), Channel("b", "a")),
    )
    result = await run(team, "Who?", engine=numbered())
    a, b, c = (content(step) for step in result.episode.steps[3:])
    assert a == "Task: Who?\n\nc said: c1\n\nb said: b1\n\nYou are a."
    assert b == "Task: Who?\n\nc said: c1\n\na said: a1\n\nYou are b."
    assert c == "Task: Who?\n\nc said: c1\n\nYou are c."


edges = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), max_size=8)


@given(edges, st.integers(0, 3))
async def test_a_member_never_sees_what_no_channel_carries(
    pairs: list[tuple[str, str]], seed: int
) -> None:
    channels = tuple(Channel(src, dst, "all") for src, dst in pairs)
    team = Team("room", members(*"abcd"), protocol(until="rounds(3)"), channels)
    result = await run(team, "Who?", engine=numbered(), seed=seed)
    for step in result.episode.steps:
        heard = {src for src, dst in pairs if dst == step.member}
        for other in "abcd":
            for turn in range(1, 4):
                visible = other in heard and turn <= step.superstep
                assert (f"{other} said: {other}{turn}" in content(step)) == visible
        assert len(set(step.seen)) == len(step.seen) == len(heard) * step.superstep


@given(st.lists(st.sets(st.integers(0, 8)), min_size=1, max_size=4))
def test_splitting_off_the_common_part_loses_nothing_and_keeps_order(
    wanted: list[set[int]],
) -> None:
    steps = [Heard(Step(f"r/{i}/a", "a", i, (), str(i)), PLAIN) for i in range(9)]
    inboxes = [tuple(one for one in steps if one.step.superstep in want) for want in wanted]
    common, privates = split_common(inboxes)

    def when(one: Heard) -> int:
        return one.step.superstep

    assert list(map(when, common)) == sorted(set.intersection(*wanted))
    for inbox, private in zip(inboxes, privates, strict=True):
        assert sorted((*common, *private), key=when) == list(inbox)
        assert list(private) == sorted(private, key=when)


async def test_the_engine_finds_the_material_and_the_transcript_shared() -> None:
    """All but the first of a superstep compute their own role only: 2 words and a name."""
    team = Team("room", members("a", "b", "c"), protocol(until="rounds(2)"))
    result = await run(team, "Who?", MATERIAL, engine=ScriptedEngine("word"))
    computed = [step.usage.computed_prompt_tokens for step in result.episode.steps]
    prompt = result.episode.steps[0].usage.prompt_tokens
    heard = len(
        ["You", "are", "a.", "a", "said:", "word", "b", "said:", "word", "c", "said:", "word"]
    )
    assert computed == [prompt, 1, 1, heard, 1, 1]


async def test_who_reads_nothing_gets_no_material_and_parts_go_one_by_one() -> None:
    team = Team("room", (Agent("all"), Agent("none", reads="none"), Agent("part", reads="part")))
    result = await run(team, "Who?", Material("whole", ("one", "two")), engine=numbered())
    systems = {step.member: step.prompt[0].content for step in result.episode.steps}
    assert systems == {
        "all": f"{DEFAULT_PREAMBLE}\n\nwhole",
        "none": DEFAULT_PREAMBLE,
        "part-1": f"{DEFAULT_PREAMBLE}\n\none",
        "part-2": f"{DEFAULT_PREAMBLE}\n\ntwo",
    }


async def test_members_of_an_inner_team_share_the_outer_system_message() -> None:
    inner = Team("inner", members("x", "y"), preamble="ignored inside")
    team = Team("outer", (*members("a"), inner), preamble="Read.")
    result = await run(team, "Who?", MATERIAL, engine=numbered())
    for one, other in combinations(result.episode.steps, 2):
        assert one.prompt[0] == other.prompt[0]
