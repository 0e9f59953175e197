"""/v1/responses through the official client."""

import json
from collections.abc import Callable

import httpx
import openai
import pytest

from patience import LONG
from shoal.core.protocols import Completion, TokenLogprob
from shoal.core.records import Message, ToolCall
from shoal.engine.scripted import ScriptedEngine
from shoal.server.response_store import ResponseStore

Start = Callable[..., str]
CITY = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>'


def client(url: str, key: str = "ann") -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=LONG)


def test_an_answer(start: Start) -> None:
    engine = ScriptedEngine("Hello there.")
    api = client(start(engine))
    answer = api.responses.create(
        model="small", input="Hi", instructions="Be kind.", max_output_tokens=9, temperature=0.5,
        metadata={"of": "mine"},
    )  # fmt: skip
    assert answer.output_text == "Hello there." and answer.status == "completed"
    assert answer.usage and (answer.usage.input_tokens, answer.usage.output_tokens) == (5, 2)
    assert answer.usage.total_tokens == 7 and answer.metadata == {"of": "mine"}
    ((request,),) = engine.groups
    assert request.prompt == (Message("system", "Be kind."), Message("user", "Hi"))
    assert request.sampling.max_tokens == 9 and request.sampling.temperature == 0.5
    again = api.responses.create(model="small", input="Hi", instructions="Be kind.")
    assert again.usage and again.usage.input_tokens_details.cached_tokens == 4


def test_a_conversation_goes_on_without_being_sent_again(start: Start) -> None:
    engine = ScriptedEngine(["one", "two", "three"])
    api = client(start(engine))
    first = api.responses.create(model="small", input="a", instructions="Only now.")
    second = api.responses.create(model="small", input="b", previous_response_id=first.id)
    api.responses.create(
        model="small",
        input=[{"role": "user", "content": [{"type": "input_text", "text": "c"}]}],
        previous_response_id=second.id,
    )
    assert [one.content for one in engine.groups[2][0].prompt] == ["a", "one", "b", "two", "c"]
    assert api.responses.retrieve(second.id).output_text == "two"
    items = api.responses.input_items.list(second.id).data
    assert [one.content[0].text for one in items] == ["b"]
    assert api.responses.delete(first.id) is None
    for gone in (first.id, "resp_none"):
        with pytest.raises(openai.NotFoundError, match="no longer"):
            api.responses.retrieve(gone)
    with pytest.raises(openai.BadRequestError, match="send the conversation") as caught:
        api.responses.create(model="small", input="d", previous_response_id=first.id)
    assert caught.value.code == "previous_response_not_found"


def test_responses_belong_to_their_key_and_some_are_not_kept(start: Start) -> None:
    url = start(ScriptedEngine("a"))
    mine = client(url).responses.create(model="small", input="a")
    with pytest.raises(openai.NotFoundError):
        client(url, "bob").responses.retrieve(mine.id)
    with pytest.raises(openai.BadRequestError):
        client(url, "bob").responses.create(model="small", input="b", previous_response_id=mine.id)
    passing = client(url).responses.create(model="small", input="a", store=False)
    with pytest.raises(openai.NotFoundError):
        client(url).responses.retrieve(passing.id)


def test_events_come_in_their_order(start: Start) -> None:
    api = client(start(ScriptedEngine("one two three", delay=0.01)))
    events = list(api.responses.create(model="small", input="Hi", stream=True))
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 3,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(11))
    assert "".join(one.delta for one in events if hasattr(one, "delta")) == "one two three"
    final = events[-1].response
    assert final.output_text == "one two three" and final.id == events[0].response.id
    assert api.responses.retrieve(final.id).output_text == "one two three"


def test_the_client_puts_a_stream_together(start: Start) -> None:
    api = client(start(ScriptedEngine(f"Let me see.\n{CALL}")))
    with api.responses.stream(model="small", input="Hi", tools=[CITY]) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds.count("response.output_item.done") == 2
    assert "response.function_call_arguments.done" in kinds
    text, call = final.output
    assert text.type == "message" and text.content[0].text == "Let me see."
    assert call.type == "function_call" and json.loads(call.arguments) == {"city": "Bern"}


def test_an_answer_cut_short_is_incomplete(start: Start) -> None:
    api = client(start(ScriptedEngine("one two three")))
    answer = api.responses.create(model="small", input="Hi", max_output_tokens=2)
    assert answer.status == "incomplete" and answer.output[0].status == "incomplete"
    assert answer.incomplete_details and answer.incomplete_details.reason == "max_output_tokens"
    stream = api.responses.create(model="small", input="Hi", max_output_tokens=2, stream=True)
    assert list(stream)[-1].type == "response.incomplete"


def test_calls_and_their_answers(start: Start) -> None:
    engine = ScriptedEngine([CALL, "Sunny."])
    api = client(start(engine))
    first = api.responses.create(
        model="small", input="Weather?", tools=[CITY], tool_choice="required"
    )
    (call,) = first.output
    assert call.type == "function_call" and call.name == "weather" and call.status == "completed"
    assert engine.groups[0][0].tools[0].name == "weather"
    grammar = engine.groups[0][0].grammar
    assert grammar and grammar.kind == "lark" and "weather" in grammar.value
    second = api.responses.create(
        model="small",
        previous_response_id=first.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "sun"}],
    )
    assert second.output_text == "Sunny."
    prompt = engine.groups[1][0].prompt
    assert prompt[1].tool_calls == (ToolCall(call.call_id, "weather", '{"city": "Bern"}'),)
    assert prompt[2] == Message("tool", "sun", tool_call_id=call.call_id)
    # the same, sent whole by a client that keeps no state on the server
    api.responses.create(
        model="small",
        input=[
            {"role": "user", "content": "Weather?"},
            *[one.model_dump(exclude_none=True) for one in first.output],
            {"type": "function_call_output", "call_id": call.call_id, "output": "sun"},
        ],
    )
    assert engine.groups[2][0].prompt == prompt


def test_formats(start: Start) -> None:
    engine = ScriptedEngine("{}")
    api = client(start(engine))
    schema = {"type": "object"}
    form = {"type": "json_schema", "name": "n", "schema": schema, "strict": True}
    answer = api.responses.create(model="small", input="Hi", text={"format": form})
    assert json.loads(engine.groups[0][0].grammar.value) == schema
    assert answer.text.format.type == "json_schema"


class Likely(ScriptedEngine):
    """Answers with log-probabilities."""

    async def generate(self, requests, on_delta=None):
        assert [one.sampling.logprobs for one in requests] == [1]
        return [Completion("Hé", logprobs=(TokenLogprob(1, "Hé", -0.1, ((1, "Hé", -0.1),)),))]


def test_logprobs(start: Start) -> None:
    answer = client(start(Likely())).responses.create(
        model="small", input="Hi", top_logprobs=1, include=["message.output_text.logprobs"]
    )
    (token,) = answer.output[0].content[0].logprobs
    assert (token.token, token.logprob, len(token.top_logprobs)) == ("Hé", -0.1, 1)


@pytest.mark.parametrize(
    ("options", "param", "words"),
    [
        ({"input": []}, "input", "at least 1 item"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input", "reasoning"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input",
            "input_text",
        ),
        ({"input": [{"role": "robot", "content": "a"}]}, "input", "'system'"),
        ({"max_output_tokens": 0}, "max_output_tokens", "greater than or equal to 1"),
        ({"tools": [{"type": "web_search"}]}, "tools", "'function'"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tools": [CITY, CITY]}, "tools", "two tools named 'weather'"),
        (
            {"tools": [CITY], "tool_choice": {"type": "function", "name": "clock"}},
            "tool_choice",
            "'clock'",
        ),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format", "schema"),
        ({"truncation": "auto"}, "truncation", "disabled"),
        ({"background": True}, "background", "does not know the field 'background'"),
        ({"metadata": {"a": 1}}, "metadata", "valid string"),
    ],
)
def test_a_wrong_field_is_named(url: str, options: dict, param: str, words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        client(url).responses.create(**{"model": "small", "input": "Hi", **options})
    assert str(caught.value.param).startswith(param)


def test_a_failure_in_a_stream_is_an_event(start: Start) -> None:
    url = start(ScriptedEngine("word " * 50, delay=0.05), request_seconds=0.2)
    events = list(client(url).responses.create(model="small", input="Hi", stream=True))
    assert events[-1].type == "response.failed"
    assert events[-1].response.error.code == "timeout"
    plain = httpx.post(f"{url}/responses", json={"model": "small", "input": "Hi"})
    assert plain.status_code == 408


def test_the_store_is_bounded_and_the_greedy_lose_first() -> None:
    store = ResponseStore(20_000)

    def put(scope: str, id: str, text: str = "x") -> None:
        store.put(scope, id, "{}", (), (Message("user", text),), 1)

    put("modest", "m")
    for number in range(30):
        put("greedy", f"r{number}")
        assert store.size <= 20_000
    assert store.get("modest", "m") and store.get("greedy", "r29")
    assert store.get("greedy", "r0") is None and store.get("modest", "r29") is None
    put("greedy", "huge", "x" * 20_000)
    assert store.get("greedy", "huge") is None and store.get("greedy", "r29")
    for scope, id in (("modest", "m"), *(("greedy", f"r{number}") for number in range(30))):
        store.drop(scope, id)
    assert store.size == 0 and not store.drop("modest", "m")
