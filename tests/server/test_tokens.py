import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from live_server import running

from shoal.engine.local import LocalEngine
from shoal.engine.scripted import ScriptedEngine

Start = Callable[..., str]


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> Iterator[str]:
    engine = LocalEngine.open(str(tiny_model), dtype="fp32", kv_bytes=1 << 20)
    with running(engine) as url:
        yield url.removesuffix("/v1")


def test_there_and_back(base: str) -> None:
    got = httpx.post(f"{base}/tokenize", json={"prompt": "Hé<|im_end|>"}).json()
    assert got["count"] == len(got["tokens"]) == 4 and got["max_model_len"] == 2048
    back = httpx.post(f"{base}/detokenize", json={"tokens": got["tokens"], "model": "small"})
    assert back.json() == {"prompt": "Hé<|im_end|>"}


def test_messages_go_through_the_template(base: str) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "return_token_strs": True}
    got = httpx.post(f"{base}/tokenize", json=body).json()
    assert "".join(got["token_strs"]) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    usage = httpx.post(
        f"{base}/v1/chat/completions",
        json={"model": "small", "max_tokens": 1, "messages": body["messages"]},
    ).json()["usage"]
    assert usage["prompt_tokens"] == got["count"]


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("tokenize", {}, "Give a prompt or messages"),
        ("tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "one of"),
        ("tokenize", {"prompt": "\ud800"}, "half a character"),
        ("tokenize", {"prompt": "a", "add_spaces": True}, "does not know"),
        ("detokenize", {"tokens": [99999]}, "outside the vocabulary"),
        ("detokenize", {"tokens": [-1]}, "outside the vocabulary"),
        ("detokenize", {"tokens": "a"}, "valid list"),
    ],
)
def test_what_has_no_tokens(base: str, path: str, body: dict, words: str) -> None:
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{base}/{path}", content=json.dumps(body), headers=headers)
    assert answer.status_code == 400 and words in answer.json()["error"]["message"]


def test_an_engine_that_does_not_tell_its_tokens(start: Start) -> None:
    base = start(ScriptedEngine("a")).removesuffix("/v1")
    answer = httpx.post(f"{base}/tokenize", json={"prompt": "a"})
    assert answer.status_code == 404 and "ask its endpoint" in answer.json()["error"]["message"]
    wrong = httpx.post(f"{base}/detokenize", json={"tokens": [], "model": "smal"})
    assert wrong.status_code == 404 and "Did you mean" in wrong.json()["error"]["message"]
