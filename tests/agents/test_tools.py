"""Strategies: tools are called by schema and once; drafts are looked at again."""

from __future__ import annotations

import json

import pytest
from traces import trace

from shoal.agents import Agent, Protocol, Team, run, tool
from shoal.agents.tools import UNKNOWN
from shoal.core.budget import Limits
from shoal.core.errors import ConfigError
from shoal.core.log import EventLog
from shoal.core.protocols import Sampling
from shoal.core.records import Message
from shoal.engine.scripted import ScriptedEngine
from shoal.tools.functions import KEY


def add(a: int, b: int = 1) -> int:
    """Add two whole numbers."""
    return a + b


def in_turn(*said: str) -> ScriptedEngine:
    left = iter(said)
    return ScriptedEngine(lambda messages, seed: next(left))


def solo(*tools: object, strategy: str = "tools(3)", limits: Limits = Limits()) -> Team:
    agent = Agent("a", strategy=strategy, tools=tools, sampling=Sampling(max_tokens=8))
    return Team("t", (agent,), Protocol(), channels="none", limits=limits)


async def test_a_member_calls_tools_by_name_and_schema_and_then_answers() -> None:
    engine = in_turn("add", '{"a": 2, "b": 3}', "add", '{"a": 5}', "answer", "It is 6.")
    result = await run(solo(add), "2+3+1?", engine=engine)
    (step,) = result.episode.steps
    assert [(call.name, call.arguments) for call in step.tool_calls] == [
        ("add", '{"a": 2, "b": 3}'),
        ("add", '{"a": 5}'),
    ]
    assert step.data == {"requests": 6, "returned": ["5", "6"]}
    assert result.result == "It is 6."
    grammars = [request.grammar for (request,) in engine.groups]
    assert [g.kind if g else None for g in grammars] == [
        "choice", "json_schema", "choice", "json_schema", "choice", None,
    ]  # fmt: skip
    assert grammars[0] is not None
    assert grammars[0].value == ("add", "answer")
    said = [message.content for message in engine.groups[-1][0].prompt]
    assert "add returned: 6" in said
    assert result.episode.usage.decoded_tokens == sum(
        len(text.split()) for text in ("add", '{"a": 2, "b": 3}', "add", '{"a": 5}', "answer",
                                       "It is 6.")
    )  # fmt: skip


async def test_a_tool_that_fails_or_is_called_wrongly_says_so_to_the_model() -> None:
    def broken() -> str:
        """Never works."""
        raise OSError("no disk")

    engine = in_turn("add", '{"a": "x"}', "broken", "{}", "answer", "Sorry.")
    result = await run(solo(add, broken), "?", engine=engine)
    wrong, failed = result.episode.steps[0].data["returned"]
    assert wrong.startswith("Wrong arguments: a: Input should be a valid integer")
    assert failed == "broken failed: OSError: no disk"
    assert result.outcome == "done"


async def test_no_more_tools_are_called_than_allowed() -> None:
    engine = in_turn("add", '{"a": 1}', "Two.")
    result = await run(solo(add, strategy="tools(1)"), "?", engine=engine)
    assert result.result == "Two."
    assert len(engine.groups) == 3


async def test_a_call_that_was_logged_is_not_made_again_and_costs_the_same() -> None:
    written: list[int] = []

    def write(n: int) -> str:
        """Write a number down."""
        written.append(n)
        return f"wrote {n}"

    team = solo(tool(write, side_effect="write"))

    def engine(*more: str) -> ScriptedEngine:
        return in_turn(*more)

    whole = await run(team, "?", engine=engine("write", '{"n": 7}', "answer", "Done."), run_id="r")
    with EventLog() as log:

        def dies(messages: tuple[Message, ...], seed: int) -> str:
            script = {1: "write", 2: '{"n": 7}'}
            count[0] += 1
            if count[0] not in script:
                raise KeyboardInterrupt
            return script[count[0]]

        count = [0]
        with pytest.raises(KeyboardInterrupt):
            await run(team, "?", engine=ScriptedEngine(dies), log=log, run_id="r")
        again = await run(team, "?", engine=engine("answer", "Done."), log=log, run_id="r")
    assert written == [7, 7]  # once in each run
    (one,), (other,) = whole.episode.steps, again.episode.steps
    assert (one.output, one.data, one.tool_calls) == (other.output, other.data, other.tool_calls)
    assert one.usage.asked_tokens == other.usage.asked_tokens


@pytest.mark.parametrize(
    ("side_effect", "keyed", "times"), [("write", False, 0), ("write", True, 1), ("read", False, 1)]
)
async def test_a_call_cut_off_midway_is_repeated_only_where_that_is_harmless(
    side_effect: str, keyed: bool, times: int
) -> None:
    calls: list[str] = []

    def plain() -> str:
        """Do it."""
        calls.append("")
        return "ok"

    def with_key(idempotency_key: str) -> str:
        """Do it."""
        calls.append(idempotency_key)
        return "ok"

    made = tool(with_key if keyed else plain, side_effect=side_effect, name="act")  # type: ignore[arg-type]
    assert KEY not in json.dumps(made.spec.parameters)
    cost = {"prompt": 10, "shared": 0, "decoded": 2, "requests": 2}
    with EventLog() as log:
        key = "r/0/a/call/0"
        log.append("call", {"name": "act", "arguments": "{}", "cost": cost}, key=key)
        result = await run(solo(made), "?", engine=in_turn("answer", "Done."), log=log, run_id="r")
    (step,) = result.episode.steps
    assert len(calls) == times
    assert calls == [key] * times if keyed else True
    assert step.data["returned"] == ["ok" if times else UNKNOWN]
    assert step.data["requests"] == 4


async def test_a_member_reflects_on_its_draft() -> None:
    engine = in_turn("draft", "too short", "final")
    result = await run(solo(strategy="reflect"), "?", engine=engine)
    assert trace(result) == [(0, "a", "", "final")]
    assert result.episode.steps[0].data == {"drafts": ["draft"], "requests": 3}


async def test_a_turn_of_several_requests_keeps_to_the_budget() -> None:
    """The answer is paid for first; what is left covers one thought of three."""
    engine = in_turn("draft", "final", "never")
    result = await run(solo(strategy="reflect(2)", limits=Limits(calls=2)), "?", engine=engine)
    assert result.result == "final"
    assert result.episode.steps[0].data == {"drafts": ["draft"], "cut_short": True, "requests": 2}


async def test_calls_inside_a_turn_count_against_the_team() -> None:
    engine = in_turn("draft", "meh", "final", "never")
    agent = Agent("a", strategy="reflect", sampling=Sampling(max_tokens=8))
    team = Team("t", (agent,), Protocol(until="rounds(3)"), "none", limits=Limits(calls=3))
    result = await run(team, "?", engine=engine)
    assert (result.result, result.outcome) == ("final", "budget_exhausted")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: solo(add, add), "tools named add, add: give each its own name"),
        (lambda: solo(tool(add, name="answer")), "none the name 'answer'"),
        (lambda: solo(add, strategy="answer"), "1 tools and the strategy 'answer'"),
        (lambda: solo(strategy="tools"), "0 tools and the strategy 'tools'"),
        (lambda: solo(lambda x: x), "needs a type hint for its parameter 'x'"),
        (lambda: solo("no-such-tool"), "There is no tool rule 'no-such-tool'"),
    ],
)
def test_tools_that_make_no_sense_are_refused(make: object, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make()  # type: ignore[operator]
