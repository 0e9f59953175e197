import asyncio
import json
import signal
import socket
import subprocess
import sys

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from patience import LONG
from shoal.core.errors import ConfigError, EngineError
from shoal.core.protocols import Delta, Grammar, Request, Sampling, Segment
from shoal.core.records import Message
from shoal.engine.remote import RemoteEngine
from shoal.engine.scripted import ScriptedEngine
from shoal.server.app import create_app
from shoal.server.serve import address_of, listen
from shoal.server.tenants import Keyring
from shoal.server.wire import ChatBody, TextBody


def test_a_port_in_use_is_one_sentence() -> None:
    with (
        listen("127.0.0.1", 0) as taken,
        pytest.raises(ConfigError, match=r"Cannot listen on 127.0.0.1, port \d+ \(.*in use\)"),
    ):
        listen("127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_other_machines_are_let_in_only_with_a_key(host: str) -> None:
    with pytest.raises(ConfigError, match="set an API key"):
        listen(host, 0)


def test_with_a_key_any_address_will_do() -> None:
    with listen("0.0.0.0", 0, keyring=Keyring.single("k")) as sock:
        assert address_of(sock).startswith("http://0.0.0.0:")


def test_small_answers_are_not_held_back() -> None:
    """asyncio sets TCP_NODELAY only where the socket names its protocol; 40 ms otherwise."""
    with listen("127.0.0.1", 0) as sock:
        assert sock.proto == socket.IPPROTO_TCP


@pytest.mark.parametrize("host", ["no such host", "256.1.1.1", "a" * 300])
def test_addresses_that_are_none(host: str) -> None:
    with pytest.raises(ConfigError, match="is not an address"):
        listen(host, 0)


async def test_the_remote_engine_speaks_to_this_server(start) -> None:
    scripted = ScriptedEngine("Hello there world", context_tokens=512)
    url = start(scripted)
    engine = await asyncio.to_thread(RemoteEngine.open, url)
    assert (engine.info.model, engine.info.context_tokens) == ("small", 512)
    deltas: list[Delta] = []
    messages = (Message("system", "Be kind."), Message("user", "Hi", "ann"))
    sampling = Sampling(max_tokens=2, temperature=0.7, top_k=3, stop=("x",), seed=5, logprobs=1)
    (got,) = await engine.generate([Request(messages, sampling, salt="s")], deltas.append)
    assert got.text == "Hello there" and got.finish == "length"
    assert "".join(delta.text for delta in deltas) == got.text
    (again,) = await engine.generate([Request(messages, sampling, salt="s")])
    assert (again.usage.prompt_tokens, again.usage.shared_tokens) == (5, 4)
    assert scripted.groups[0][0].sampling == sampling
    assert scripted.groups[0][0].prompt == messages
    (raw,) = await engine.generate([Request((Segment("a b"),), Sampling(max_tokens=1))])
    assert raw.text == "Hello" and raw.usage.prompt_tokens == 2
    (choice,) = await engine.generate([Request(messages, grammar=Grammar("choice", ("no", "yes")))])
    assert choice.text in ("no", "yes")
    with pytest.raises(EngineError, match=r"cannot score texts: .*'echo'"):
        await engine.score((Segment("a"),), ["b"])
    with pytest.raises(EngineError, match="has no /embeddings"):
        await engine.embed(["a"])
    long = Request((Message("user", "w " * 600),))
    first, second = await engine.generate([long, Request(messages)])
    assert first.finish == "error" and "exceed the context" in first.error
    assert second.text == "Hello there world"
    await engine.close()


TEXT = st.text(max_size=6) | st.just("\ud800")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["user", "system"]), "content": JSON})
FIELDS = sorted({*ChatBody.model_fields, *TextBody.model_fields})


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(["/v1/chat/completions", "/v1/completions"]),
    st.dictionaries(st.sampled_from(FIELDS) | TEXT, JSON, max_size=4),
    st.lists(MESSAGE, max_size=2) | JSON,
)
def test_no_body_breaks_the_server(path: str, fields: dict, messages: object) -> None:
    app = create_app(ScriptedEngine("a"), model_name="small")
    client = TestClient(app, raise_server_exceptions=False)
    body = {"model": "small", "messages": messages, "prompt": "x"} | fields
    if path == "/v1/completions":
        del body["messages"]
    headers = {"content-type": "application/json"}
    answer = client.post(path, content=json.dumps(body), headers=headers)
    assert answer.status_code < 500
    if answer.status_code != 200:
        assert answer.json()["error"]["message"].endswith((".", "?"))


SERVE = """
import sys
from shoal.engine.scripted import ScriptedEngine
from shoal.server.serve import address_of, listen, serve
sock = listen("127.0.0.1", 0)
print(address_of(sock), flush=True)
serve(ScriptedEngine("word " * 10, delay=0.05), sock, model_name="small")
print("stopped", flush=True)
"""


def test_stopping_lets_answers_finish() -> None:
    process = subprocess.Popen([sys.executable, "-c", SERVE], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        url = process.stdout.readline().strip()
        body = {"model": "small", "prompt": "x", "stream": True, "max_tokens": 10}
        with httpx.stream("POST", f"{url}/completions", json=body, timeout=LONG) as got:
            lines = got.iter_lines()
            next(lines)
            process.send_signal(signal.SIGINT)
            rest = [line for line in lines if line.startswith("data:")]
        assert rest[-1] == "data: [DONE]" and len(rest) >= 9
        assert process.stdout.readline() == "stopped\n"
        assert process.wait(LONG) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
