"""What a server bears: sizes, places, time, keys; and what /metrics tells of it."""

import asyncio
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from patience import LONG
from shoal.core.protocols import Completion, OnDelta, Request
from shoal.engine.local import LocalEngine
from shoal.engine.scripted import ScriptedEngine
from shoal.server.tenants import Keyring

Start = Callable[..., str]
HI = [{"role": "user", "content": "Hi"}]
KEYS = """
[tenants.ann]
keys = ["k-ann"]
metrics = true

[tenants.bob]
keys = ["k-bob"]
max_running = 1
max_waiting = 0
"""


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    (path := tmp_path / "keys.toml").write_text(KEYS)
    return Keyring.read(path)


@dataclass(slots=True)
class Held(ScriptedEngine):
    """Answers when it is let go."""

    go_on: threading.Event = field(default_factory=threading.Event)
    began: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    async def generate(
        self, requests: Sequence[Request], on_delta: OnDelta | None = None
    ) -> list[Completion]:
        self.began.release()
        while not self.go_on.is_set():
            await asyncio.sleep(0.005)
        return await ScriptedEngine.generate(self, requests, on_delta)


def ask(url: str, key: str = "k-ann", **fields: object) -> httpx.Response:
    body = {"model": "small", "messages": HI, **fields}
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{url}/chat/completions", json=body, headers=headers, timeout=LONG)


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_tenants_have_limits_and_are_told_when_to_try_again(start: Start, keyring: Keyring) -> None:
    engine = Held("a")
    url = start(engine, keyring=keyring)
    answers: list[httpx.Response] = []
    waiting = in_thread(lambda: answers.append(ask(url, "k-bob")))
    assert engine.began.acquire(timeout=LONG)
    refused = ask(url, "k-bob")
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["type"] == "rate_limit_error"
    with pytest.raises(openai.RateLimitError):
        openai.OpenAI(base_url=url, api_key="k-bob", max_retries=0).responses.create(
            model="small", input="Hi"
        )
    ann = in_thread(lambda: answers.append(ask(url)))
    assert engine.began.acquire(timeout=LONG)  # somebody else's limit is not hers
    engine.go_on.set()
    waiting.join(LONG)
    ann.join(LONG)
    assert [one.status_code for one in answers] == [200, 200]


def test_requests_of_all_wait_together(start: Start) -> None:
    engine = Held("a")
    url = start(engine, max_running=1, max_waiting=1)
    answers: list[int] = []
    threads = [in_thread(lambda: answers.append(ask(url).status_code))]
    assert engine.began.acquire(timeout=LONG)
    threads.append(in_thread(lambda: answers.append(ask(url).status_code)))
    figures = ""
    while 'shoal_admitted_requests{state="waiting"} 1.0' not in figures:
        figures = httpx.get(url.removesuffix("/v1") + "/metrics").text
    assert ask(url).status_code == 429
    engine.go_on.set()
    for thread in threads:
        thread.join(LONG)
    assert answers == [200, 200]


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_takes_too_long_is_ended(start: Start, stream: bool) -> None:
    answer = ask(start(Held("a"), request_seconds=0.05), stream=stream)
    assert answer.status_code == 408 and answer.json()["error"]["code"] == "timeout"


def test_too_many_answers_at_once(url: str) -> None:
    body = {"model": "small", "prompt": ["a"] * 100, "n": 3}
    answer = httpx.post(f"{url}/completions", json=body)
    assert answer.status_code == 400 and "300 answers" in answer.json()["error"]["message"]


def test_a_key_is_asked_for_before_the_body_is_read(start: Start, keyring: Keyring) -> None:
    """A stranger's body may be as large as it likes: nobody reads it."""
    url = start(ScriptedEngine("a"), keyring=keyring, max_body_bytes=100)
    answer = httpx.post(
        f"{url}/chat/completions", content=b"x" * 1000, headers={"Authorization": "Bearer no"}
    )
    assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert ask(url, user="x" * 1000).status_code == 413
    root = url.removesuffix("/v1")
    for path in ("/openapi.json", "/tokenize", "/metrics", "/v1/models"):
        assert httpx.get(root + path).status_code == 401
    assert httpx.get(root + "/health").status_code == 200


def test_the_scope_of_a_cache_is_the_tenants(start: Start, keyring: Keyring) -> None:
    engine = ScriptedEngine("a")
    url = start(engine, keyring=keyring)
    ask(url)
    ask(url, "k-bob")
    ann, bob = (group[0].salt for group in engine.groups)
    assert ann != bob
    ask(url, "k-bob", cache_salt=ann)  # names ann's scope, and gets one below bob's own
    assert engine.groups[2][0].salt == f"{bob}/{ann}"


def test_metrics(start: Start, keyring: Keyring) -> None:
    url = start(ScriptedEngine("one two three"), keyring=keyring)
    ask(url)
    ask(url)
    ask(url, "k-bob", max_tokens=2)
    ask(url, "k-bob", temperature=9)
    ask(url, "nobody")
    root = url.removesuffix("/v1")
    assert httpx.get(f"{root}/nothing", headers={"Authorization": "Bearer k-ann"}).is_error
    denied = httpx.get(f"{root}/metrics", headers={"Authorization": "Bearer k-bob"})
    assert denied.status_code == 403 and "name all tenants" in denied.json()["error"]["message"]
    text = httpx.get(f"{root}/metrics", headers={"Authorization": "Bearer k-ann"}).text
    names = ("tenant", "path", "status", "kind")
    found = {
        (sample.name, *(sample.labels[name] for name in names if name in sample.labels)): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    chat = "/v1/chat/completions"
    assert found["shoal_requests_total", "ann", chat, "200"] == 2
    assert found["shoal_requests_total", "bob", chat, "200"] == 1
    assert found["shoal_requests_total", "bob", chat, "400"] == 1
    assert found["shoal_requests_total", "nobody", "other", "401"] == 1
    assert found["shoal_requests_total", "ann", "other", "404"] == 1
    assert found["shoal_tokens_total", "ann", "prompt"] == 4
    assert found["shoal_tokens_total", "ann", "shared"] == 1
    assert found["shoal_tokens_total", "ann", "decoded"] == 6
    assert found["shoal_tokens_total", "bob", "decoded"] == 2
    assert found["shoal_first_token_seconds_count", "ann"] == 2
    assert found["shoal_request_seconds_count", "ann", chat] == 2


def test_a_local_engines_cache_is_told(start: Start, tiny_model: Path) -> None:
    engine = LocalEngine.open(str(tiny_model), dtype="fp32", kv_bytes=1 << 20)
    url = start(engine)
    ask(url, max_tokens=3, ignore_eos=True)
    text = httpx.get(url.removesuffix("/v1") + "/metrics").text
    cache = dict(re.findall(r'shoal_cache_bytes\{state="(\w+)"\} ([\d.e+]+)', text))
    assert float(cache["capacity"]) == 1 << 20 and float(cache["pinned"]) == 0
    assert float(cache["used"]) > 0
    assert "shoal_preemptions_total 0.0" in text
