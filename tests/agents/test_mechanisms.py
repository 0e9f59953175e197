"""Mechanisms as configuration: who saw what, in what order, why it stopped, what it cost."""

from __future__ import annotations

import pytest
from traces import members, numbered, protocol, trace

from shoal.agents import Agent, Channel, Material, Protocol, Script, Team, run
from shoal.core.errors import ConfigError
from shoal.core.protocols import Sampling
from shoal.core.records import Message
from shoal.engine.scripted import ScriptedEngine


async def test_single_agent() -> None:
    result = await run(Team("solo", members("ann")), "Why?", engine=numbered())
    assert trace(result) == [(0, "ann", "", "ann1")]
    assert (result.result, result.outcome, result.why) == ("ann1", "done", "1 round")


async def test_pipeline_hands_on_in_the_order_declared() -> None:
    team = Team("line", members("c", "a", "b"), protocol("chain"), channels="chain")
    result = await run(team, "Go.", engine=numbered())
    assert trace(result) == [
        (0, "c", "", "c1"),
        (1, "a", "c1", "a1"),
        (2, "b", "a1", "b1"),
    ]
    assert result.result == "b1"


async def test_self_consistency_asks_copies_that_hear_nobody_and_votes() -> None:
    answers = iter(["Answer: 4", "I think 5", "Thus the answer is 4."])
    team = Team(
        "vote", (Agent("solver", copies=3),), protocol(reduce="vote(plurality)"), channels="none"
    )
    result = await run(team, "2+2?", engine=ScriptedEngine(lambda m, s: next(answers)))
    assert [t[:3] for t in trace(result)] == [
        (
            0,
            "solver-1",
            "",
        ),
        (0, "solver-2", ""),
        (0, "solver-3", ""),
    ]
    assert result.result == "Answer: 4"
    seeds = [step.seed for step in result.episode.steps]
    assert len(set(seeds)) == 3


async def test_debate_hears_everybodys_last_word_once_a_round_has_passed() -> None:
    team = Team("debate", members("a", "b", "c"), protocol(reduce="vote", until="rounds(3)"))
    result = await run(team, "?", engine=numbered())
    assert trace(result) == [
        (0, "a", "", "a1"),
        (0, "b", "", "b1"),
        (0, "c", "", "c1"),
        *[(1, x, "a1 b1 c1", f"{x}2") for x in "abc"],
        *[(2, x, "a2 b2 c2", f"{x}3") for x in "abc"],
    ]


async def test_debate_ends_early_when_all_agree() -> None:
    said = iter(["yes", "no", "yes", "Yes."])
    team = Team(
        "debate",
        members("a", "b"),
        Protocol(reduce="vote", until="any(rounds(5), consensus)"),
    )
    result = await run(team, "?", engine=ScriptedEngine(lambda m, s: next(said)))
    assert len(result.episode.steps) == 4
    assert (result.result, result.why) == ("yes", "2 of 2 agree")


async def test_ring_hears_the_one_before_only() -> None:
    team = Team("ring", members("a", "b", "c"), protocol(until="rounds(2)"), channels="ring")
    result = await run(team, "?", engine=numbered())
    assert [(m, heard) for s, m, heard, _ in trace(result) if s == 1] == [
        ("a", "c1"),
        ("b", "a1"),
        ("c", "b1"),
    ]


async def test_group_chat_reads_all_that_was_said() -> None:
    team = Team("chat", members("a", "b"), protocol("round_robin", until="turns(4)"), "bus")
    result = await run(team, "?", engine=numbered())
    assert trace(result) == [
        (0, "a", "", "a1"),
        (1, "b", "a1", "b1"),
        (2, "a", "a1 b1", "a2"),
        (3, "b", "a1 b1 a2", "b2"),
    ]
    assert (result.result, result.why) == ("b2", "4 turns")


async def test_critic_pair_alternates_until_the_verdict() -> None:
    said = iter(["draft", "poor", "better", "I approve"])
    team = Team(
        "pair",
        members("writer", "critic"),
        Protocol("round_robin", "last", "any(rounds(9), verdict(critic, approve))"),
        channels=(Channel("writer", "critic"), Channel("critic", "writer")),
    )
    result = await run(team, "?", engine=ScriptedEngine(lambda m, s: next(said)))
    assert trace(result) == [
        (0, "writer", "", "draft"),
        (1, "critic", "draft", "poor"),
        (2, "writer", "poor", "better"),
        (3, "critic", "better", "I approve"),
    ]
    assert result.why == "critic said 'approve'"


async def test_judge_takes_no_part_but_reads_all_last_words() -> None:
    team = Team(
        "jury",
        members("a", "b", "judge"),
        protocol("all(but=judge)", "judge(judge)", "rounds(2)"),
        channels="none",
    )
    result = await run(team, "?", engine=numbered())
    assert trace(result)[-1] == (2, "judge", "a2 b2", "judge1")
    assert result.result == "judge1"
    assert len(result.episode.steps) == 5


async def test_supervisor_delegates_again_and_again_and_writes_the_result() -> None:
    choices = iter(["w2", "w1", "w1", "finish"])

    def answer(messages: tuple[Message, ...], seed: int) -> str:
        last = messages[-1].content
        if "Who works next?" in last:
            return next(choices)
        return "final" if "You are hub" in last else last.rpartition("You are ")[2][:2] + " done"

    team = Team(
        "office",
        members("hub", "w1", "w2"),
        protocol("select(hub)", "judge(hub)", "rounds(9)"),
        channels="star(hub)",
    )
    engine = ScriptedEngine(answer)
    result = await run(team, "?", engine=engine)
    assert trace(result) == [
        (0, "hub", "", "w2"),
        (1, "w2", "", "w2 done"),
        (2, "hub", "w2 done", "w1"),
        (3, "w1", "", "w1 done"),
        (4, "hub", "w2 done w1 done", "w1"),
        (5, "w1", "", "w1 done"),
        (6, "hub", "w2 done w1 done", "finish"),
        (7, "hub", "w2 done w1 done", "final"),
    ]
    assert (result.result, result.why) == ("final", "hub said finish")
    grammars = [request.grammar.value for (request,) in engine.groups if request.grammar]
    assert grammars == [("w1", "w2"), *[("w1", "w2", "finish")] * 3]


async def test_the_supervisor_must_delegate_before_it_may_finish() -> None:
    team = Team(
        "office",
        members("hub", "w"),
        protocol("select(hub)", "judge(hub)", "rounds(2)"),
        channels="star(hub)",
    )
    result = await run(team, "?", engine=ScriptedEngine("finish"))
    assert [m for _, m, _, _ in trace(result)] == ["hub", "w", "hub", "hub"]


async def test_a_choice_without_grammar_support_is_retried_then_drawn_and_logged() -> None:
    team = Team(
        "office",
        members("hub", "w1", "w2"),
        protocol("select(hub)", "judge(hub)", "rounds(1)"),
        channels="star(hub)",
    )
    runs = [
        await run(team, "?", engine=ScriptedEngine("hm, both", grammar=False), seed=3)
        for _ in range(2)
    ]
    first = runs[0].episode.steps[0]
    assert first.data == {"attempts": 2, "fallback": True, "choice": first.data["choice"]}
    assert first.data["choice"] in ("w1", "w2")
    assert runs[0].episode.steps[1].member == first.data["choice"]
    assert trace(runs[0]) == trace(runs[1])
    assert runs[0].outcome == "done"


async def test_a_choice_is_read_out_of_a_sentence_that_names_one() -> None:
    team = Team(
        "office",
        members("hub", "w1", "w2"),
        protocol("select(hub)", "last", "rounds(1)"),
        channels="star(hub)",
    )
    engine = ScriptedEngine("I want W2 to work now.", grammar=False)
    result = await run(team, "?", engine=engine)
    assert result.episode.steps[0].data == {"choice": "w2"}


async def test_dag_waits_for_all_sources_and_runs_layers_together() -> None:
    team = Team(
        "graph",
        members("a", "b", "c", "d"),
        protocol("dag"),
        channels=(Channel("a", ("b", "c")), Channel(("b", "c"), "d")),
    )
    engine = numbered()
    result = await run(team, "?", engine=engine)
    assert trace(result) == [
        (0, "a", "", "a1"),
        (1, "b", "a1", "b1"),
        (1, "c", "a1", "c1"),
        (2, "d", "b1 c1", "d1"),
    ]
    assert [len(group) for group in engine.groups] == [1, 2, 1]


async def test_dag_with_a_cycle_is_refused() -> None:
    team = Team("graph", members("a", "b"), protocol("dag"), channels="ring")
    with pytest.raises(ConfigError, match="without a cycle, but these wait: a, b"):
        await run(team, "?", engine=numbered())


async def test_mixture_of_agents_feeds_layers_of_copies() -> None:
    team = Team(
        "moa",
        (Agent("low", copies=2), Agent("high", copies=2), Agent("top")),
        protocol("chain"),
        channels="chain",
    )
    result = await run(team, "?", engine=numbered())
    assert [(s, m, heard) for s, m, heard, _ in trace(result)] == [
        (0, "low-1", ""),
        (0, "low-2", ""),
        (1, "high-1", "low-11 low-21"),
        (1, "high-2", "low-11 low-21"),
        (2, "top", "high-11 high-21"),
    ]


async def test_tree_hears_parents_and_children() -> None:
    team = Team("tree", members("a", "b", "c", "d"), protocol(until="rounds(2)"), "tree(2)")
    heard = {m: h for s, m, h, _ in trace(await run(team, "?", engine=numbered())) if s == 1}
    assert heard == {"a": "b1 c1", "b": "a1 d1", "c": "a1", "d": "b1"}


async def test_map_reduce_gives_each_copy_its_part_and_the_editor_none() -> None:
    team = Team(
        "books",
        (Agent("mapper", reads="part"), Agent("editor", reads="none")),
        protocol("all(but=editor)", "judge(editor)"),
        channels="none",
    )
    parts = tuple(f"chapter {i}" for i in range(12))
    engine = numbered()
    result = await run(team, "?", Material("whole book", parts), engine=engine)
    mappers = result.episode.steps[:12]
    assert [step.member for step in mappers] == [f"mapper-{i:02}" for i in range(1, 13)]
    for part, step in zip(parts, mappers, strict=True):
        assert step.prompt[0].content.endswith(part)
        assert "whole book" not in step.prompt[0].content
    editor = result.episode.steps[-1]
    assert "chapter" not in editor.prompt[0].content
    assert len(editor.seen) == 12
    assert [len(group) for group in engine.groups] == [12, 1]


async def test_notes_that_exceed_the_judges_context_are_judged_in_levels() -> None:
    def answer(messages: tuple[Message, ...], seed: int) -> str:
        last = messages[-1].content
        if "You are editor" in last:
            return f"sum of {last.count(' said: ')}"
        return "note " * 20

    team = Team(
        "books",
        (
            Agent("mapper", reads="part", sampling=Sampling(max_tokens=30)),
            Agent("editor", reads="none", sampling=Sampling(max_tokens=10)),
        ),
        protocol("all(but=editor)", "judge(editor)"),
        channels="none",
    )
    engine = ScriptedEngine(answer, context_tokens=120)
    result = await run(team, "?", Material("", ("x",) * 8), engine=engine)
    editors = [step for step in result.episode.steps if step.member == "editor"]
    assert [(step.superstep, len(step.seen)) for step in editors] == [
        (1, 3),
        (1, 3),
        (1, 2),
        (2, 3),
    ]
    assert [len(group) for group in engine.groups] == [8, 3, 1]
    assert {key for step in editors[:3] for key in step.seen} == {
        step.key for step in result.episode.steps[:8]
    }
    assert (result.result, result.outcome) == ("sum of 3", "done")


async def test_a_team_is_a_member_and_its_turns_stand_inside() -> None:
    panel = Team("panel", members("x", "y"), protocol(reduce="concat", until="rounds(2)"))
    team = Team(
        "house",
        (Agent("asker"), panel, Agent("closer")),
        protocol("chain"),
        channels="chain",
    )
    result = await run(team, "?", engine=numbered())
    assert trace(result) == [
        (0, "asker", "", "asker1"),
        (0, "panel/x", "", "x1"),
        (0, "panel/y", "", "y1"),
        (1, "panel/x", "x1 y1", "x2"),
        (1, "panel/y", "x1 y1", "y2"),
        (1, "panel", "asker1", "x: x2\n\ny: y2"),
        (2, "closer", "x: x2\n\ny: y2", "closer1"),
    ]
    inner = result.episode.steps[1].prompt[-1].content
    assert "asker said: asker1" in inner
    keys = [step.key.partition("/")[2] for step in result.episode.steps]
    assert keys[1:6] == ["1/panel/0/x", "1/panel/0/y", "1/panel/1/x", "1/panel/1/y", "1/panel"]
    assert result.episode.usage == sum(
        (step.usage for step in result.episode.steps if step.member != "panel"),
        start=result.episode.steps[0].usage.__class__(),
    )


async def test_scripts_and_several_engines_take_turns_in_one_superstep() -> None:
    async def slow(messages: tuple[Message, ...], seed: int) -> str:
        return f"script {seed % 10}"

    team = Team(
        "mixed",
        (
            Agent("a", model="small"),
            Agent("b", model="large"),
            Agent("c", model=Script(slow)),
            Agent("d", model="small"),
        ),
        protocol(until="rounds(2)"),
    )
    small, large = ScriptedEngine("small"), ScriptedEngine("large")
    result = await run(team, "?", engine={"small": small, "large": large})
    assert [len(group) for group in small.groups] == [2, 2]
    assert [len(group) for group in large.groups] == [1, 1]
    outputs = {step.member: step.output for step in result.episode.steps if step.superstep == 1}
    assert outputs["a"] == outputs["d"] == "small"
    assert outputs["b"] == "large"
    assert outputs["c"].startswith("script ")


async def test_all_members_of_a_superstep_go_to_the_engine_in_one_call() -> None:
    engine = numbered()
    await run(Team("t", members(*"abcdef"), protocol(until="rounds(2)")), "?", engine=engine)
    assert [len(group) for group in engine.groups] == [6, 6]


async def test_one_seed_gives_one_run_and_members_do_not_disturb_each_others_draws() -> None:
    team = Team("t", members("a", "b"), protocol(until="rounds(2)"), channels="none")
    wider = Team("t", members("a", "b", "c"), protocol(until="rounds(2)"), channels="none")
    first = await run(team, "?", "some words", engine=ScriptedEngine(), seed=5)
    again = await run(team, "?", "some words", engine=ScriptedEngine(), seed=5)
    other = await run(team, "?", "some words", engine=ScriptedEngine(), seed=6)
    more = await run(wider, "?", "some words", engine=ScriptedEngine(), seed=5)
    assert trace(first) == trace(again)
    assert trace(first) != trace(other)
    assert trace(first) == [turn for turn in trace(more) if turn[1] != "c"]


async def test_rules_may_be_functions_of_what_has_happened() -> None:
    from shoal.agents.turns import Plan, Turn

    team = Team(
        "own",
        members("a", "b"),
        Protocol(
            turn=lambda state: Plan((Turn("b"),)),
            until="rounds(2)",
        ),
    )
    assert [m for _, m, _, _ in trace(await run(team, "?", engine=numbered()))] == ["b", "b"]
