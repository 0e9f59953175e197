import asyncio
import json
import logging
import time
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from fake_endpoint import (
    answer,
    fake_endpoint,
    finish,
    send,
    stream,
    usage,
)

from patience import LONG, until
from shoal.core.errors import ConfigError, EngineError, RemoteError
from shoal.core.protocols import Delta, Grammar, Request, Sampling, Segment
from shoal.core.records import Message, ToolCall, ToolSpec
from shoal.engine import endpoint
from shoal.engine.remote import LEADER_CHARACTERS, RemoteEngine

HELLO = Request((Message("user", "Hello"),), Sampling(max_tokens=5))
ERROR: dict[str, Any] = {"error": {"message": "not today", "type": "x", "code": None}}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_DELAY", 0.01)
    for name in ("SHOAL_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


async def ask(url: str, request: Request = HELLO, **options: Any) -> Any:
    engine = RemoteEngine(url, "m", **{"timeout": 5.0, "retries": 2, **options})
    try:
        return (await engine.generate([request]))[0]
    finally:
        await engine.close()


# -- answers ------------------------------------------------------------------------------


async def test_an_answer_is_streamed_counted_and_timed() -> None:
    deltas: list[Delta] = []
    parts = stream(
        "Hel", 0.05, "lo\u2028!", finish("length"), usage(prompt=12, cached=8, decoded=3)
    )
    async with fake_endpoint(parts) as fake:
        engine = RemoteEngine(fake.url + "/v1/", "m")
        (got,) = await engine.generate([HELLO], deltas.append)
        await engine.close()
    assert got.text == "Hello\u2028!" and got.finish == "length" and got.how == "exact"
    assert deltas == [Delta(0, "Hel"), Delta(0, "lo\u2028!")]
    assert (got.usage.prompt_tokens, got.usage.shared_tokens) == (12, 8)
    assert got.usage.decoded_tokens == 3
    assert got.usage.total_ms - got.usage.first_token_ms > 40
    ((path, body),) = fake.seen
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 5,
        "temperature": 0.0,
        "top_p": 1.0,
        "seed": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_an_endpoint_that_does_not_stream_is_understood() -> None:
    whole = {
        "choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 4, "completion_tokens": 1},
    }
    async with fake_endpoint(send(200, whole)) as fake:
        got = await ask(fake.url)
    assert (got.text, got.usage.prompt_tokens, got.usage.shared_tokens) == ("Hi", 4, 0)


async def test_counts_that_are_not_reported_are_estimated_and_said_to_be() -> None:
    async with fake_endpoint(stream("a", "b", finish())) as fake:
        got = await ask(fake.url)
    assert got.usage.decoded_tokens == 2 and got.usage.prompt_tokens > 0
    assert "estimated" in got.how


async def test_every_option_has_its_field() -> None:
    sampling = Sampling(
        max_tokens=7,
        temperature=0.5,
        top_p=0.9,
        top_k=4,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.4,
        stop=("\n", "END"),
        seed=3,
        min_tokens=2,
        ignore_eos=True,
        logprobs=2,
    )
    tool = ToolSpec("add", "Adds.", {"type": "object"})
    call = ToolCall("c1", "add", '{"a":1}')
    messages = (
        Message("system", "Be brief.", name="not a name"),
        Message("user", "1+1?", name="ann"),
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", "2", tool_call_id="c1"),
    )
    request = Request(messages, sampling, tools=(tool,), salt="s", adapter="lora")
    async with fake_endpoint(answer("2")) as fake:
        await ask(fake.url, request)
    body = fake.bodies[0]
    assert body["model"] == "lora" and body["cache_salt"] == "s"
    assert body["stop"] == ["\n", "END"] and body["logprobs"] is True
    assert [body[x] for x in ("top_k", "min_p", "repetition_penalty")] == [4, 0.1, 1.1]
    assert body["presence_penalty"] == 0.4
    assert [body[x] for x in ("min_tokens", "ignore_eos", "top_logprobs")] == [2, True, 2]
    assert "name" not in body["messages"][0] and body["messages"][1]["name"] == "ann"
    assert body["messages"][2]["tool_calls"][0]["function"] == {
        "name": "add",
        "arguments": '{"a":1}',
    }
    assert body["messages"][3]["tool_call_id"] == "c1"
    assert body["tools"][0]["function"]["name"] == "add"


async def test_segments_go_to_plain_completion() -> None:
    reply = {
        "choices": [
            {
                "text": " c",
                "finish_reason": "stop",
                "logprobs": {
                    "tokens": [" c"],
                    "token_logprobs": [-0.5],
                    "top_logprobs": [{" d": -1.5, " c": -0.5}],
                },
            }
        ],
        "usage": {"prompt_tokens": 2, "completion_tokens": 1},
    }
    request = Request((Segment("a "), Segment("b")), Sampling(logprobs=2))
    async with fake_endpoint(send(200, reply)) as fake:
        got = await ask(fake.url, request)
        await ask(fake.url, Request((Segment(tokens=(1, 2)), Segment(tokens=(3,)))))
        mixed = await ask(fake.url, Request((Segment("a"), Segment(tokens=(3,)))))
    assert [path for path, _ in fake.seen] == ["/v1/completions"] * 2
    assert [body["prompt"] for body in fake.bodies] == ["a b", [1, 2, 3]]
    assert fake.bodies[0]["logprobs"] == 2
    (token,) = got.logprobs
    assert (token.token, token.text, token.logprob) == (-1, " c", -0.5)
    assert token.top == ((-1, " c", -0.5), (-1, " d", -1.5))
    assert mixed.finish == "error" and "mixture" in mixed.error


async def test_chat_logprobs_and_tool_calls_are_put_together() -> None:
    entry = {"token": "A", "logprob": -0.1, "top_logprobs": [{"token": "A", "logprob": -0.1}]}
    call = {"index": 0, "id": "c1", "function": {"name": "add", "arguments": '{"a"'}}
    more = {"index": 0, "function": {"arguments": ":1}"}}
    parts = stream(
        {"choices": [{"delta": {"content": "A"}, "logprobs": {"content": [entry]}}]},
        {"choices": [{"delta": {"tool_calls": [call]}}]},
        {"choices": [{"delta": {"tool_calls": [more]}}]},
        finish("tool_calls"),
    )
    async with fake_endpoint(parts) as fake:
        got = await ask(fake.url, replace(HELLO, sampling=Sampling(logprobs=1)))
    assert got.tool_calls == (ToolCall("c1", "add", '{"a":1}'),)
    assert got.finish == "stop" and got.logprobs[0].top == ((-1, "A", -0.1),)


# -- failures -----------------------------------------------------------------------------


async def test_busy_endpoints_are_asked_again_after_as_long_as_they_say() -> None:
    busy = send(429, ERROR, headers=["Retry-After: 0.2"])
    async with fake_endpoint(busy, send(500, b"oops", kind="text/plain"), answer("ok")) as fake:
        started = time.perf_counter()
        got = await ask(fake.url)
    assert got.text == "ok" and len(fake.seen) == 3
    assert time.perf_counter() - started >= 0.2


@pytest.mark.parametrize(
    ("responder", "words"),
    [
        (send(503, ERROR), "answered 503: not today (tried 3 times)"),
        (send(429, ERROR, headers=["Retry-After: 3600"]), "(tried once)"),
        (
            send(429, {"error": {"message": "pay", "code": "insufficient_quota"}}),
            "answered 429: pay.",
        ),
        (send(401, ERROR), "set SHOAL_API_KEY"),
        (send(301, b""), "redirects elsewhere"),
        (send(501, ERROR), "answered 501"),
        (send(200, b"<html>hello</html>", kind="text/html"), "sent no JSON ('<html>hello</html>'"),
        (send(200, [1, 2]), "JSON of another shape"),
        (send(200, b"data: {oops\n\n", kind="text/event-stream"), "an event that is no JSON"),
        (stream({"choices": [{"delta": {"content": 5}}]}), "of another shape (in choices.0.delta"),
        (stream("Hel", None), "cut its answer short (tried 3 times)"),
        (stream("Hel"), "cut its answer short"),
        (stream("Hel", ERROR), "broke off: not today."),
    ],
)
async def test_what_an_endpoint_does_wrong_is_one_sentence(responder: Any, words: str) -> None:
    async with fake_endpoint(responder) as fake:
        with pytest.raises(RemoteError) as caught:
            await ask(fake.url)
    message = str(caught.value)
    assert words in message and "127.0.0.1" in message and "\n" not in message
    assert message.endswith(".")


async def test_text_that_was_passed_on_is_not_asked_for_again() -> None:
    async with fake_endpoint(stream("Hel", None), answer("Hello")) as fake:
        engine = RemoteEngine(fake.url, "m")
        with pytest.raises(RemoteError, match="after it had begun"):
            await engine.generate([HELLO], lambda delta: None)
        assert len(fake.seen) == 1
        assert (await engine.generate([HELLO]))[0].text == "Hello"
        await engine.close()


async def test_a_cut_answer_nobody_heard_is_asked_for_again() -> None:
    async with fake_endpoint(stream("Hel", None), answer("Hello")) as fake:
        assert (await ask(fake.url)).text == "Hello"


async def test_a_closed_port_is_one_sentence() -> None:
    async with fake_endpoint(answer("x")) as fake:
        url = fake.url
    with pytest.raises(RemoteError, match=r"cannot be reached .*\(tried 3 times\)"):
        await ask(url)
    with pytest.raises(RemoteError, match="cannot be reached"):
        await asyncio.to_thread(RemoteEngine.open, url, "m")


async def test_slow_endpoints_end_at_the_time_out() -> None:
    async with fake_endpoint(stream("Hel", 30.0)) as fake:
        started = time.perf_counter()
        with pytest.raises(RemoteError, match=r"did not finish within 0\.3 s"):
            await ask(fake.url, timeout=0.3)
        assert time.perf_counter() - started < 20  # the endpoint would take thirty
        assert await until(lambda: fake.closed == 1)


async def test_cancelling_closes_the_stream() -> None:
    heard = asyncio.Event()
    async with fake_endpoint(stream("Hel", 30.0)) as fake:
        engine = RemoteEngine(fake.url, "m")
        task = asyncio.create_task(engine.generate([HELLO], lambda delta: heard.set()))
        await asyncio.wait_for(heard.wait(), LONG)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await until(lambda: fake.closed == 1)
        await engine.close()
    assert len(fake.seen) == 1


async def test_one_request_fails_alone() -> None:
    refused = send(400, {"error": {"message": "too long", "code": "context_length_exceeded"}})
    async with fake_endpoint(refused, answer("b"), send(401, ERROR)) as fake:
        engine = RemoteEngine(fake.url, "m", concurrency=1)
        first, second, third = await engine.generate([HELLO] * 3)
        await engine.close()
    assert first.finish == "error" and "answered 400: too long." in first.error
    assert second.text == "b"
    assert third.finish == "error" and "401" in third.error


async def test_keys_come_from_the_environment_and_are_never_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SHOAL_API_KEY", "sk-secret")
    caplog.set_level(logging.DEBUG)
    refused = send(401, {"error": {"message": "Incorrect API key provided: sk-secret"}})
    async with fake_endpoint(refused) as fake:
        with pytest.raises(RemoteError) as caught:
            await ask(fake.url)
    assert "authorization: bearer sk-secret" in fake.headers[0].lower()
    assert "provided: ***" in str(caught.value)
    assert "sk-secret" not in str(caught.value) + caplog.text
    assert "Hello" not in caplog.text


async def test_a_closed_engine_says_so() -> None:
    engine = RemoteEngine("http://127.0.0.1:1", "m")
    await engine.close()
    with pytest.raises(EngineError, match="closed"):
        await engine.generate([HELLO])


async def test_a_shared_client_stays_open() -> None:
    async with fake_endpoint(answer("a")) as fake, httpx.AsyncClient() as client:
        assert (await ask(fake.url, client=client)).text == "a"
        assert not client.is_closed


def test_keys_in_addresses_are_refused() -> None:
    with pytest.raises(ConfigError, match="SHOAL_API_KEY") as caught:
        RemoteEngine("http://user:word@host/v1", "m")
    assert "word" not in str(caught.value)


@pytest.mark.parametrize("url", ["ftp://x", "localhost:8000", "http://", "http://[::1"])
def test_bad_addresses_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="address"):
        RemoteEngine(url, "m")


# -- grammars -----------------------------------------------------------------------------

CHOICE = Grammar("choice", ("yes", "no"))


async def test_choices_are_said_in_the_way_the_endpoint_understands() -> None:
    unknown = send(400, {"error": {"message": "Unrecognized argument: guided_choice"}})
    replies = (unknown, answer("Well, it depends."), answer('{"answer": "no"}'))
    deltas: list[Delta] = []
    async with fake_endpoint(*replies) as fake:
        engine = RemoteEngine(fake.url, "m")
        request = replace(HELLO, grammar=CHOICE)
        (got,) = await engine.generate([request], deltas.append)
        (again,) = await engine.generate([request])
        await engine.close()
    assert got.text == again.text == "no" and deltas == [Delta(0, "no")]
    first, second, third, fourth = fake.bodies
    assert first["guided_choice"] == ["yes", "no"]
    assert second["structured_outputs"] == {"choice": ["yes", "no"]}
    schema = third["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["answer"]["enum"] == ["yes", "no"]
    assert fourth["response_format"] == third["response_format"]


@pytest.mark.parametrize(
    ("grammar", "said", "kept"),
    [
        (CHOICE, "maybe", False),
        (Grammar("regex", r"\d+"), "12", True),
        (Grammar("regex", r"\d+"), "twelve", False),
        (Grammar("json_schema", '{"type": "object"}'), '{"a": 1}', True),
        (Grammar("json_schema", '{"type": "object"}'), "Sure: {", False),
    ],
)
async def test_answers_are_held_against_their_grammar(
    grammar: Grammar, said: str, kept: bool
) -> None:
    async with fake_endpoint(answer(said)) as fake:
        got = await ask(fake.url, replace(HELLO, grammar=grammar))
    assert (got.finish == "stop") == kept
    assert got.text == said if kept else "does not keep to a" in got.error


@pytest.mark.parametrize(
    ("grammar", "words"),
    [(Grammar("lark", 'start: "a"'), "Lark"), (Grammar("json_schema", "{"), "is no JSON")],
)
async def test_grammars_that_cannot_be_sent(grammar: Grammar, words: str) -> None:
    async with fake_endpoint(answer("a")) as fake:
        got = await ask(fake.url, replace(HELLO, grammar=grammar))
    assert words in got.error and not fake.seen


# -- groups, models, scores, vectors ------------------------------------------------------


async def test_the_first_of_a_group_that_begins_alike_goes_ahead() -> None:
    order: list[str] = []

    async def respond(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        order.append(body["messages"][1]["content"])
        await stream("a", 0.1, "b", finish())(body, writer)

    def group(size: int) -> list[Request]:
        system = Message("system", "x" * size)
        return [Request((system, Message("user", str(i)))) for i in range(3)]

    async with fake_endpoint(respond) as fake:
        engine = RemoteEngine(fake.url, "m")
        task = asyncio.create_task(engine.generate(group(LEADER_CHARACTERS)))
        while not order:
            await asyncio.sleep(0.001)
        assert order == ["0"]
        answers = await task
        assert order[0] == "0" and sorted(order) == ["0", "1", "2"]
        assert [one.text for one in answers] == ["ab"] * 3
        # The others went when the first token came, not when the answer was complete.
        assert answers[1].usage.total_ms < answers[0].usage.total_ms * 1.8
        await engine.close()


async def test_no_more_requests_are_under_way_than_allowed() -> None:
    under_way = most = 0

    async def respond(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await stream(0.02, "a", finish())(body, writer)
        under_way -= 1

    async with fake_endpoint(respond) as fake:
        engine = RemoteEngine(fake.url, "m", concurrency=3)
        assert len(await engine.generate([HELLO] * 9)) == 9
        await engine.close()
    assert most == 3


async def test_the_endpoint_says_which_models_it_has() -> None:
    listed = {"data": [{"id": "big-model", "max_model_len": 4096}]}
    async with fake_endpoint(send(200, listed)) as fake:
        open_ = RemoteEngine.open
        engine = await asyncio.to_thread(open_, fake.url)
        assert (engine.info.model, engine.info.context_tokens) == ("big-model", 4096)
        assert engine.info.kind == "remote" and not engine.info.exact_counts
        await engine.close()
        with pytest.raises(ConfigError, match="Did you mean 'big-model'"):
            await asyncio.to_thread(open_, fake.url, "bigmodel")
    async with fake_endpoint(send(404, ERROR)) as fake:
        await (await asyncio.to_thread(open_, fake.url, "m")).close()
        with pytest.raises(ConfigError, match="--model-name"):
            await asyncio.to_thread(open_, fake.url)


async def test_the_name_of_the_limit_follows_the_endpoint() -> None:
    refused = send(
        400, {"error": {"message": "'max_tokens' is unknown, use 'max_completion_tokens'"}}
    )
    async with fake_endpoint(refused, answer("a")) as fake:
        assert (await ask(fake.url)).text == "a"
    assert fake.bodies[1]["max_completion_tokens"] == 5 and "max_tokens" not in fake.bodies[1]


async def test_scores_come_from_echoed_prompts() -> None:
    async def respond(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        choices = [
            {
                "index": index,
                "text": text,
                "logprobs": {
                    "tokens": ["The", " cat", text[7:], " x"],
                    "token_logprobs": [None, -1.0, -0.5 * (index + 1), -9.0],
                    "text_offset": [0, 3, 7, len(text)],
                },
            }
            for index, text in enumerate(body["prompt"])
        ]
        await send(200, {"choices": choices[::-1]})(body, writer)

    async with fake_endpoint(respond) as fake:
        engine = RemoteEngine(fake.url, "m")
        scores = await engine.score((Segment("The cat"),), [" sat", " ran"])
        with pytest.raises(EngineError, match="text segments"):
            await engine.score((Message("user", "a"),), ["b"])
        await engine.close()
    assert [(one.text, one.logprob) for one in scores] == [(" sat", -0.5), (" ran", -1.0)]
    assert fake.bodies[0]["echo"] is True
    async with fake_endpoint(send(200, {"choices": [{"text": "x"}]})) as fake:
        engine = RemoteEngine(fake.url, "m")
        with pytest.raises(EngineError, match="does not echo"):
            await engine.score((Segment("The cat"),), [" sat"])
        await engine.close()


async def test_vectors_are_ordered_and_of_unit_length() -> None:
    rows = [{"index": 1, "embedding": [0, 2]}, {"index": 0, "embedding": [3, 4]}]
    async with fake_endpoint(send(200, {"data": rows}), send(404, ERROR)) as fake:
        engine = RemoteEngine(fake.url, "m")
        vectors = await engine.embed(["a", "b"])
        with pytest.raises(EngineError, match="has no /embeddings"):
            await engine.embed(["a"])
        await engine.close()
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, [[0.6, 0.8], [0, 1]], atol=1e-6)


async def test_token_counts_are_near_those_of_a_tokenizer() -> None:
    engine = RemoteEngine("http://127.0.0.1:1", "m")
    text = "The quick brown fox jumps over the lazy dog. " * 10  # 100 tokens in most vocabularies
    assert 95 <= engine.count_tokens((Message("user", text),)) <= 150
    assert engine.count_tokens((Segment(tokens=(1, 2, 3)),)) == 3
    await engine.close()


async def test_bodies_are_valid_json_even_for_odd_text() -> None:
    async with fake_endpoint(answer("ok")) as fake:
        await ask(fake.url, Request((Message("user", 'quote " \\ \n \u2028 漢'),)))
    assert json.loads(json.dumps(fake.bodies[0]))["messages"][0]["content"].endswith("漢")
