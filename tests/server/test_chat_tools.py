"""Tools in chats through the official client: with a scripted engine, and held by a grammar."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest
from live_server import running

from patience import LONG
from shoal.core.records import Message, ToolCall
from shoal.engine.local import LocalEngine
from shoal.engine.remote import RemoteEngine
from shoal.engine.scripted import ScriptedEngine

Start = Callable[..., str]
ASKED = [{"role": "user", "content": "Will it rain in Bern?"}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern", "days": 2}}\n</tool_call>'
CLOCK = {"type": "function", "function": {"name": "clock"}}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Bern", "Rome"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key="x", max_retries=0, timeout=LONG)


def test_a_call_and_its_answer(start: Start) -> None:
    engine = ScriptedEngine([f"Let me see. {CALL}", "It will not."])
    api = client(start(engine))
    first = api.chat.completions.create(model="small", messages=ASKED, tools=[WEATHER, CLOCK])
    (choice,) = first.choices
    assert choice.finish_reason == "tool_calls" and choice.message.content == "Let me see."
    (call,) = choice.message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Bern", "days": 2}
    assert [tool.name for tool in engine.groups[0][0].tools] == ["weather", "clock"]
    told = {"role": "tool", "tool_call_id": call.id, "content": "dry"}
    second = api.chat.completions.create(
        model="small", messages=[*ASKED, choice.message, told], tools=[WEATHER]
    )
    assert second.choices[0].message.content == "It will not."
    assert second.choices[0].finish_reason == "stop"
    prompt = engine.groups[1][0].prompt
    arguments = call.function.arguments
    assert prompt[1] == Message(
        "assistant", "Let me see.", tool_calls=(ToolCall(call.id, "weather", arguments),)
    )
    assert prompt[2] == Message("tool", "dry", tool_call_id=call.id)


def test_calls_are_streamed_as_they_are_written(start: Start) -> None:
    api = client(start(ScriptedEngine(f"Well. {CALL}\n{CALL}", delay=0.001)))
    with api.chat.completions.stream(model="small", messages=ASKED, tools=[WEATHER]) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert kinds.count("tool_calls.function.arguments.delta") > 4
    assert kinds.count("tool_calls.function.arguments.done") == 2
    (choice,) = final.choices
    assert choice.message.content == "Well." and choice.finish_reason == "tool_calls"
    parsed = [json.loads(call.function.arguments) for call in choice.message.tool_calls]
    assert parsed == [{"city": "Bern", "days": 2}] * 2
    assert len({call.id for call in choice.message.tool_calls}) == 2


def test_no_tools_where_none_are_wished(start: Start) -> None:
    engine = ScriptedEngine(CALL)
    answer = client(start(engine)).chat.completions.create(
        model="small", messages=ASKED, tools=[WEATHER], tool_choice="none"
    )
    assert answer.choices[0].message.content == CALL and not answer.choices[0].message.tool_calls
    assert engine.groups[0][0].tools == () and engine.groups[0][0].grammar is None


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Iterator[tuple[str, LocalEngine]]:
    """A model of noise behind a server: what it writes well, the grammar made it write."""
    engine = LocalEngine.open(str(tiny_model), dtype="fp32", kv_bytes=8 << 20)
    with running(engine) as url:
        yield url, engine


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
@pytest.mark.parametrize("stream", [False, True])
def test_even_noise_calls_by_the_schema(
    tiny: tuple[str, LocalEngine], choice: object, stream: bool
) -> None:
    url, engine = tiny
    assert not engine.info.knows_tools
    for seed in range(4):
        options = {
            "model": "small", "messages": ASKED, "tools": [WEATHER], "tool_choice": choice,
            "parallel_tool_calls": False, "seed": seed, "temperature": 1, "max_tokens": 300,
        }  # fmt: skip
        if stream:
            with client(url).chat.completions.stream(**options) as events:
                (answer,) = events.get_final_completion().choices
        else:
            (answer,) = client(url).chat.completions.create(**options).choices
        assert answer.finish_reason == "tool_calls"
        (call,) = answer.message.tool_calls
        arguments = json.loads(call.function.arguments)
        assert call.function.name == "weather" and arguments.keys() == {"city", "days"}
        assert arguments["city"] in ("Bern", "Rome") and 1 <= arguments["days"] <= 9
    assert engine.load.pinned_bytes == 0


def test_an_endpoint_calls_tools_by_itself(start: Start) -> None:
    behind = ScriptedEngine(CALL)
    front = start(RemoteEngine(start(behind), "small"))
    (choice,) = client(front).chat.completions.create(
        model="small", messages=ASKED, tools=[WEATHER], tool_choice="required"
    ).choices  # fmt: skip
    assert choice.message.tool_calls[0].function.name == "weather"
    assert choice.message.content is None and choice.finish_reason == "tool_calls"
    ((request,),) = behind.groups
    assert request.grammar and not request.grammar.value.startswith("start: TEXT")
    with client(front).chat.completions.stream(
        model="small", messages=ASKED, tools=[WEATHER]
    ) as events:
        (choice,) = events.get_final_completion().choices
    assert json.loads(choice.message.tool_calls[0].function.arguments)["city"] == "Bern"


@pytest.mark.parametrize(
    ("options", "param", "words"),
    [
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tools": [CLOCK, CLOCK]}, "tools", "two tools named 'clock'"),
        (
            {"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice",
            "names 'x'",
        ),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools", "pattern"),
        ({"tools": [{"type": "function", "function": {"name": "auto"}}]}, "tools", "'auto'"),
        (
            {"tools": [{**CLOCK, "function": {"name": "a", "parameters": {"type": "string"}}}]},
            "tools",
            "not of type 'object'",
        ),
        ({"tools": [CLOCK], "extra_body": {"guided_regex": "a"}}, "tools", "JSON schemas only"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages", "tool_call_id"),
        ({"messages": [{"role": "assistant"}]}, "messages", "needs content"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(url: str, options: dict, param: str, words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        client(url).chat.completions.create(**{"model": "small", "messages": ASKED, **options})
    assert str(caught.value.param).startswith(param)


def test_a_schema_that_cannot_be_compiled_is_the_clients_fault(
    tiny: tuple[str, LocalEngine],
) -> None:
    bad = {"name": "a", "parameters": {"type": "object", "properties": {"x": {"type": "odd"}}}}
    with pytest.raises(openai.BadRequestError, match="grammar is not valid"):
        client(tiny[0]).chat.completions.create(
            model="small", messages=ASKED, tools=[{"type": "function", "function": bad}]
        )
