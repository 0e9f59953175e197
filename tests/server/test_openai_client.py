"""The official client against a real server."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import httpx
import openai
import pytest
from live_server import asked

from patience import LONG
from shoal.core.errors import EngineError, RemoteError
from shoal.core.protocols import Completion, OnDelta, Request, TokenLogprob
from shoal.core.records import Message
from shoal.engine.scripted import ScriptedEngine
from shoal.server.tenants import Keyring

Start = Callable[..., str]
HI = [{"role": "user", "content": "Say hello to the world"}]


def client(url: str, key: str = "unused") -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=LONG)


def test_chat(start: Start) -> None:
    engine = ScriptedEngine("Hello, wide world.")
    url = start(engine)
    answer = client(url).chat.completions.create(model="small", messages=HI)
    (choice,) = answer.choices
    assert choice.message.content == "Hello, wide world."
    assert choice.finish_reason == "stop" and choice.message.role == "assistant"
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (6, 3)
    assert answer.usage.total_tokens == 9
    again = client(url).chat.completions.create(model="small", messages=HI)
    assert again.usage and again.usage.prompt_tokens_details
    assert again.usage.prompt_tokens_details.cached_tokens == 5


def test_a_chat_is_streamed(start: Start) -> None:
    stream = client(start(ScriptedEngine("one two three"))).chat.completions.create(
        model="small",
        messages=HI,
        stream=True,
        stream_options={"include_usage": True},
        max_tokens=2,
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    deltas = [chunk.choices[0].delta.content for chunk in chunks[1:-2]]
    assert deltas == ["one", " two"]
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == [] and chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == 2
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_text_is_streamed_while_it_is_made(start: Start) -> None:
    engine = Watched("word " * 3000, delay=0.01)
    stream = client(start(engine)).completions.create(
        model="small", prompt="x", max_tokens=3000, stream=True
    )
    texts = (chunk.choices[0].text for chunk in stream)
    assert [next(texts) for _ in range(3)] == ["word"] + [" word"] * 2
    assert not engine.ended.is_set()
    stream.close()


def test_several_choices_draw_differently_and_count_their_prompt_once(start: Start) -> None:
    engine = ScriptedEngine()
    answer = client(start(engine)).chat.completions.create(
        model="small", messages=HI, n=3, seed=7, temperature=1
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1
    assert answer.usage and answer.usage.prompt_tokens == 6
    (group,) = engine.groups
    assert group[0].sampling.seed == 7 and len({one.sampling.seed for one in group}) == 3


def test_plain_completions_take_text_and_tokens(start: Start) -> None:
    engine = ScriptedEngine("of course")
    api = client(start(engine))
    answer = api.completions.create(model="small", prompt=["one two", "three"], n=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage and answer.usage.prompt_tokens == 3
    api.completions.create(model="small", prompt=[5, 6, 7], max_tokens=4)
    (request,) = engine.groups[-1]
    assert request.prompt[0].tokens == (5, 6, 7) and request.sampling.max_tokens == 4
    assert engine.groups[0][0].sampling.max_tokens == 16


def test_every_option_reaches_the_engine(start: Start) -> None:
    engine = ScriptedEngine("a")
    api = client(start(engine))
    api.chat.completions.create(
        model="small",
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "ann"},
            {"role": "assistant", "content": "Hello."},
        ],
        max_completion_tokens=9,
        temperature=0.5,
        top_p=0.8,
        stop=["END"],
        seed=-1,
        logprobs=True,
        top_logprobs=3,
        user="someone",
        presence_penalty=0.5,
        extra_body={
            "top_k": 5,
            "min_p": 0.1,
            "repetition_penalty": 1.2,
            "ignore_eos": True,
            "min_tokens": 2,
            "guided_choice": ["a", "b"],
        },
    )
    ((request,),) = engine.groups
    assert request.prompt == (
        Message("system", "Be brief."),
        Message("user", "Hi", "ann"),
        Message("assistant", "Hello."),
    )
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (9, 0.5, 0.8)
    assert (sampling.top_k, sampling.min_p, sampling.repetition_penalty) == (5, 0.1, 1.2)
    assert sampling.presence_penalty == 0.5
    assert (sampling.stop, sampling.ignore_eos, sampling.min_tokens) == (("END",), True, 2)
    assert sampling.logprobs == 3 and sampling.seed >= 0
    assert request.grammar and request.grammar.value == ("a", "b")


@pytest.mark.parametrize(
    ("options", "kind", "value"),
    [
        ({"response_format": {"type": "json_object"}}, "json_schema", '{"type": "object"}'),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": {"type": "array"}, "strict": True},
                }
            },
            "json_schema",
            '{"type": "array"}',
        ),
        ({"extra_body": {"guided_regex": "a+"}}, "regex", "a+"),
        ({"extra_body": {"guided_json": {"type": "null"}}}, "json_schema", '{"type": "null"}'),
        ({"response_format": {"type": "text"}}, None, None),
    ],
)
def test_grammars(start: Start, options: dict, kind: str | None, value: str | None) -> None:
    engine = ScriptedEngine("a")
    client(start(engine)).chat.completions.create(model="small", messages=HI, **options)
    grammar = engine.groups[0][0].grammar
    assert (grammar and grammar.kind, grammar and grammar.value) == (kind, value)


def test_models(url: str) -> None:
    api = client(url)
    (card,) = api.models.list().data
    assert card.id == "small" and card.max_model_len == 64
    assert api.models.retrieve("small").id == "small"


@dataclass(slots=True)
class Likely(ScriptedEngine):
    """Answers with log-probabilities."""

    async def generate(
        self, requests: Sequence[Request], on_delta: OnDelta | None = None
    ) -> list[Completion]:
        tokens = (
            TokenLogprob(1, "Hé", -0.1, ((1, "Hé", -0.1), (2, "Yo", -2.5))),
            TokenLogprob(3, "!", -0.2, ((3, "!", -0.2),)),
        )
        return [Completion("Hé!", logprobs=tokens) for _ in requests]


def test_logprobs(start: Start) -> None:
    api = client(start(Likely()))
    options = {"model": "small", "messages": HI, "logprobs": True, "top_logprobs": 2}
    whole = api.chat.completions.create(**options).choices[0].logprobs
    assert whole and whole.content
    assert whole.content[0].bytes == list("Hé".encode())
    assert [x.token for x in whole.content[0].top_logprobs] == ["Hé", "Yo"]
    last = list(api.chat.completions.create(stream=True, **options))[-1].choices[0]
    assert last.logprobs and last.logprobs.content == whole.content
    text = api.completions.create(model="small", prompt="x", logprobs=2).choices[0].logprobs
    assert text and text.tokens == ["Hé", "!"] and text.text_offset == [0, 2]
    assert text.token_logprobs == [-0.1, -0.2] and text.top_logprobs[0] == {"Hé": -0.1, "Yo": -2.5}


# -- who may ask, and what others may see -------------------------------------------------


def test_keys(start: Start) -> None:
    url = start(ScriptedEngine("a"), keyring=Keyring.single("sésame"))
    with pytest.raises(openai.AuthenticationError, match="valid API key"):
        client(url, "wrong").chat.completions.create(model="small", messages=HI)
    with pytest.raises(openai.AuthenticationError):
        client(url, "wrong").models.list()
    assert httpx.get(url.removesuffix("/v1") + "/health").json() == {"status": "ok"}
    headers = {"Authorization": "Bearer sésame".encode()}
    assert httpx.get(f"{url}/models", headers=headers).status_code == 200


def test_caches_are_not_shared_between_keys(start: Start) -> None:
    engine = ScriptedEngine("a")
    url = start(engine)

    def cached(key: str, **extra: str) -> int:
        answer = client(url, key).chat.completions.create(
            model="small", messages=HI, extra_body=extra
        )
        assert answer.usage and answer.usage.prompt_tokens_details
        return answer.usage.prompt_tokens_details.cached_tokens or 0

    assert cached("ann") == 0 and cached("ann") > 0
    assert cached("bob") == 0
    ann = engine.groups[0][0].salt
    # A body cannot reach into another key's scope; it can only make its own narrower.
    assert cached("bob", cache_salt=ann) == 0 and cached("eve", cache_salt="") == 0
    assert cached("ann", cache_salt="x") == 0 and cached("ann", cache_salt="x") > 0
    assert all("ann" not in group[0].salt for group in engine.groups)


# -- errors -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "param", "words"),
    [
        ({"temperature": 3}, "temperature", "less than or equal to 2 (got 3"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role", "'system'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None, "text"),
        ({"tools": [{"type": "function"}]}, "tools.0.function", "Field required"),
        ({"extra_body": {"temprature": 1}}, "temprature", "Did you mean 'temperature'?"),
        ({"extra_body": {"min_p": "much"}}, "min_p", "valid number"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "needs a json_schema"),
        (
            {"extra_body": {"guided_choice": ["a"], "guided_regex": "b"}},
            "guided_regex",
            "exclude each other",
        ),
    ],
)
def test_a_wrong_field_is_named(url: str, options: dict, param: str, words: str) -> None:
    api = client(url)
    with pytest.raises(openai.BadRequestError) as caught:
        api.chat.completions.create(**{"model": "small", "messages": HI, **options})
    body = caught.value.body
    assert isinstance(body, dict) and body["type"] == "invalid_request_error"
    assert words in body["message"] and "\n" not in body["message"]
    assert param is None or body["param"] == param


@pytest.mark.parametrize("prompt", ["", [], [[]], [["a"]], [1, "a"], [True], ["a"] * 300])
def test_prompts_that_are_none(url: str, prompt: object) -> None:
    api = client(url)
    with pytest.raises(openai.BadRequestError, match="prompt: "):
        api.completions.create(model="small", prompt=prompt)  # type: ignore[arg-type]


def test_unknown_models_and_paths(url: str) -> None:
    with pytest.raises(openai.NotFoundError, match="Did you mean 'small'") as caught:
        client(url).chat.completions.create(model="smal", messages=HI)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="It serves 'small'"):
        client(url).models.retrieve("gpt-4")
    answer = httpx.post(f"{url}/pictures", json={})
    assert answer.status_code == 404
    assert answer.json()["error"]["message"] == "This server has no POST /v1/pictures."


def test_bodies_that_are_none(start: Start) -> None:
    url = start(ScriptedEngine("a"), max_body_bytes=1000) + "/chat/completions"
    broken = httpx.post(url, content=b"{oops", headers={"content-type": "application/json"})
    assert broken.status_code == 400 and "not valid JSON" in broken.json()["error"]["message"]
    large = httpx.post(url, json={"model": "x" * 2000})
    assert large.status_code == 413 and "1,000 bytes" in large.json()["error"]["message"]
    chunked = httpx.post(url, content=(b"x" * 500 for _ in range(5)))
    assert chunked.status_code == 413
    surrogate = b'{"model": "small", "messages": [{"role": "user", "content": "\\ud800"}]}'
    half = httpx.post(url, content=surrogate, headers={"content-type": "application/json"})
    assert half.status_code == 400 and half.json()["error"]["param"] == "messages.0.content"


@pytest.mark.parametrize("stream", [False, True])
def test_prompts_beyond_the_context(url: str, stream: bool) -> None:
    api = client(url)
    with pytest.raises(openai.BadRequestError, match="exceed the context") as caught:
        api.chat.completions.create(
            model="small", messages=[{"role": "user", "content": "w " * 70}], stream=stream
        )
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("failure", "status"),
    [("The grammar is odd.", 400), (EngineError("down"), 503), (RemoteError("away"), 502)],
)
def test_engines_that_fail(
    start: Start, failure: str | EngineError, status: int, stream: bool
) -> None:
    api = client(start(ScriptedEngine("a", failures={0: failure})))
    with pytest.raises(openai.APIStatusError) as caught:
        api.chat.completions.create(model="small", messages=HI, stream=stream)
    assert caught.value.status_code == status
    assert str(failure) in str(caught.value)
    assert api.chat.completions.create(model="small", messages=HI).choices


def test_a_failure_after_the_first_text_ends_the_stream_with_an_error(start: Start) -> None:
    api = client(start(ScriptedEngine("a", failures={1: "Broken."})))
    with pytest.raises(openai.APIError, match="Broken"):
        list(api.chat.completions.create(model="small", messages=HI, n=2, stream=True))


# -- clients that go away -----------------------------------------------------------------


@dataclass(slots=True)
class Watched(ScriptedEngine):
    """Says when its work begins, ends, or is cancelled."""

    began: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)

    async def generate(
        self, requests: Sequence[Request], on_delta: OnDelta | None = None
    ) -> list[Completion]:
        self.began.set()
        try:
            answers = await ScriptedEngine.generate(self, requests, on_delta)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        self.ended.set()
        return answers


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("delay", [0.02, 20.0])
def test_work_nobody_waits_for_is_cancelled(start: Start, stream: bool, delay: float) -> None:
    engine = Watched("word " * 500, delay=delay)
    body = {"model": "small", "messages": HI, "stream": stream}
    url = start(engine) + "/chat/completions"
    with asked(url, body) as client_that_leaves:
        assert engine.began.wait(LONG)
        if stream and delay < 1:
            assert client_that_leaves.getresponse().readline()  # in the midst of the answer
    assert engine.cancelled.wait(LONG)
