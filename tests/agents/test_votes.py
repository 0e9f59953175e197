"""Votes are counted by what was answered; ties are broken by the seed, and the log says so."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from traces import members, protocol

from shoal.agents import Agent, Protocol, Team, run
from shoal.agents.votes import ballot
from shoal.core.log import EventLog
from shoal.core.protocols import Grammar
from shoal.core.records import Message
from shoal.engine.scripted import ScriptedEngine


@pytest.mark.parametrize(
    ("text", "vote"),
    [
        ("4", "4"),
        (" Yes.\n", "yes"),
        ("I add them up. Answer: 4", "4"),
        ("answer: 3? No.\nANSWER: **Four**!", "four"),
        ("So the answer is 12.", "12"),
        ("The answer is: blue sky", "blue sky"),
        ("I cannot answer that", "i cannot answer that"),
        ("two\n  words", "two words"),
        ("", ""),
    ],
)
def test_a_ballot_is_the_answer_in_a_text(text: str, vote: str) -> None:
    assert ballot(text) == vote


@given(st.text(max_size=40))
def test_any_text_is_a_ballot_and_a_ballot_votes_for_itself(text: str) -> None:
    plain = ballot(text)
    if "answer" not in plain:
        assert ballot(plain) == plain


async def elect(votes: list[str], method: str, seed: int = 0) -> tuple[str | None, str, list[dict]]:  # type: ignore[type-arg]
    team = Team(
        "t",
        (Agent("voter", copies=len(votes)),),
        protocol(reduce=f"vote({method})"),
        channels="none",
    )
    with EventLog() as log:
        result = await run(team, "?", engine=ScriptedEngine(votes), log=log, seed=seed)
        notes = [dict(event.body) for event in log.events("note")]
    return result.result, result.outcome, notes


@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=9), st.integers(0, 50))
async def test_plurality_elects_one_of_those_with_most_votes(votes: list[str], seed: int) -> None:
    counts = Counter(votes)
    most = sorted(vote for vote, count in counts.items() if count == max(counts.values()))
    result, outcome, notes = await elect(votes, "plurality", seed)
    assert outcome == "done"
    assert result in most
    expected: dict[str, object] = {"votes": dict(counts)}
    if len(most) > 1:
        expected["tie"] = {"between": most, "drawn": result}
    assert notes == [expected]


async def test_ties_fall_either_way_by_seed_and_the_same_way_for_one_seed() -> None:
    drawn = [(await elect(["a", "b"], "plurality", seed))[0] for seed in range(60)]
    again = [(await elect(["a", "b"], "plurality", seed))[0] for seed in range(60)]
    assert drawn == again
    assert 15 <= drawn.count("a") <= 45


@pytest.mark.parametrize(
    ("votes", "result", "outcome"),
    [
        (["a", "a", "b"], "a", "done"),
        (["a", "a", "b", "b"], None, "undecided"),
        (["a", "b", "c"], None, "undecided"),
    ],
)
async def test_majority_needs_more_than_half(
    votes: list[str], result: str | None, outcome: str
) -> None:
    assert (await elect(votes, "majority"))[:2] == (result, outcome)


async def test_ballots_are_held_to_the_choices_and_cast_after_the_last_word() -> None:
    def answer(messages: tuple[Message, ...], seed: int) -> str:
        last = messages[-1].content
        return "no" if "How do you vote?" in last and "You are b" in last else "yes of course"

    team = Team("t", members("a", "b", "c"), protocol(reduce="vote(majority, choices=[no, yes])"))
    engine = ScriptedEngine(answer)
    with EventLog() as log:
        result = await run(team, "?", engine=engine, log=log)
        notes = [event.body for event in log.events("note")]
    assert (result.result, result.outcome) == ("yes", "done")
    assert notes == [{"votes": {"yes": 2, "no": 1}}]
    assert [(s.superstep, s.member, s.output) for s in result.episode.steps[3:]] == [
        (1, "a", "yes"),
        (1, "b", "no"),
        (1, "c", "yes"),
    ]
    assert [len(step.seen) for step in result.episode.steps[3:]] == [3, 3, 3]
    assert {request.grammar for request in engine.groups[1]} == {Grammar("choice", ("no", "yes"))}


async def test_who_failed_does_not_vote() -> None:
    engine = ScriptedEngine(["x", "y", "y"], failures={1: "hot", 2: "hot"})
    team = Team("t", members("a", "b", "c"), Protocol(reduce="vote", on_failure="skip"))
    result = await run(team, "?", engine=engine)
    assert (result.result, result.outcome) == ("x", "degraded")


async def test_concat_keeps_the_order_declared() -> None:
    team = Team("t", members("b", "a"), protocol(reduce="concat"))
    result = await run(team, "?", engine=ScriptedEngine(["from a", "from b"]))
    assert result.result == "b: from b\n\na: from a"


@pytest.mark.parametrize(("share", "rounds"), [(1.0, 3), (0.6, 1)])
async def test_consensus_waits_for_its_share_of_those_who_spoke(share: float, rounds: int) -> None:
    team = Team("t", members("a", "b", "c"), protocol(until=f"any(rounds(3), consensus({share}))"))
    engine = ScriptedEngine(["x", "x", "y"] * 3)
    await run(team, "?", engine=engine)
    assert len(engine.groups) == rounds


async def test_all_needs_every_rule_and_gives_every_reason() -> None:
    team = Team("t", members("a"), protocol(until="all(rounds(2), turns(3))"))
    result = await run(team, "?", engine=ScriptedEngine("x"))
    assert (len(result.episode.steps), result.why) == (3, "2 rounds and 3 turns")
