"""Adapters over HTTP: listed as models, chosen by name, with a cache each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from live_server import running

from shoal.engine.local import LocalEngine
from shoal.models.adapters.registry import new
from shoal.server.adapters import adapter_of
from shoal.server.batch_lines import LineError, Reading, read_lines
from shoal.server.errors import ApiError


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> Iterator[str]:
    engine = LocalEngine.open(str(tiny_model), dtype="fp32", kv_bytes=1 << 20)
    for name in ("ada", "bob"):
        adapter = new("mos", engine.model.decoder, e=2, r=3, p=1, l=4)
        random = torch.Generator().manual_seed(len(engine.adapters.names) + 1)
        with torch.no_grad():
            for tensor in adapter.tensors.values():
                tensor.add_(torch.randn(tensor.shape, generator=random) * 0.3)
        engine.adapters.add(name, adapter)
    with running(engine) as url:
        yield url


def chat(base: str, **changes: Any) -> httpx.Response:
    body = {
        "model": "small",
        "messages": [{"role": "user", "content": "Tell me about fish, please."}],
        "max_tokens": 8,
        "temperature": 0,
    }
    return httpx.post(f"{base}/chat/completions", json=body | changes)


def text(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def test_adapters_are_listed_as_models_with_their_parent(base: str) -> None:
    found = httpx.get(f"{base}/models").json()["data"]
    assert [one["id"] for one in found] == ["small", "small:ada", "small:bob"]
    assert [one["parent"] for one in found] == [None, "small", "small"]
    assert httpx.get(f"{base}/models/small:bob").json()["parent"] == "small"
    assert httpx.get(f"{base}/models/small:eve").status_code == 404


def test_three_spellings_mean_the_same_adapter(base: str) -> None:
    bare, ada = text(chat(base)), chat(base, model="small:ada")
    assert ada.json()["model"] == "small:ada"
    assert text(ada) != bare
    assert text(chat(base, model="ada")) == text(chat(base, adapter="ada")) == text(ada)
    assert text(chat(base, model="small:bob")) not in (bare, text(ada))
    assert text(chat(base)) == bare


def test_completions_and_responses_take_adapters_too(base: str) -> None:
    body = {"model": "small:ada", "prompt": "Fish", "max_tokens": 6, "temperature": 0}
    found = httpx.post(f"{base}/completions", json=body).json()
    assert found["model"] == "small:ada"
    body = {"model": "small", "adapter": "ada", "input": "Fish", "max_output_tokens": 4}
    assert httpx.post(f"{base}/responses", json=body).json()["model"] == "small:ada"


def test_streams_go_through_the_adapter(base: str) -> None:
    answer = chat(base, model="small:bob", stream=True)
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
    said = "".join(json.loads(one)["choices"][0]["delta"].get("content") or "" for one in lines)
    assert said == text(chat(base, model="small:bob"))


def test_a_cache_is_one_adapters_alone(base: str) -> None:
    def cached(model: str) -> int:
        message = [{"role": "user", "content": "Something nobody has asked before."}]
        usage = chat(base, model=model, messages=message).json()["usage"]
        return int(usage["prompt_tokens_details"]["cached_tokens"])

    for model in ("small", "small:ada", "small:bob"):
        assert cached(model) < 10  # what the template begins every chat with
    for model in ("small", "small:ada", "small:bob"):
        assert cached(model) > 30


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"model": "small:eve"}, 404, "no model 'small:eve'"),
        ({"model": "large"}, 404, "no model 'large'"),
        ({"adapter": "eve"}, 404, "no adapter 'eve'"),
        ({"model": "small:ada", "adapter": "bob"}, 400, "give one"),
        ({"adapter": 3}, 400, "adapter"),
    ],
)
def test_adapters_there_are_not(
    base: str, changes: dict[str, Any], status: int, words: str
) -> None:
    answer = chat(base, **changes)
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]


def test_a_server_without_adapters_says_so() -> None:
    with pytest.raises(ApiError, match=r"no adapter 'ada'\. It has none"):
        adapter_of("small", "ada", "small", ())


def line(**body: Any) -> bytes:
    fields = {"custom_id": "a", "url": "/v1/completions", "body": {"prompt": "x"} | body}
    return json.dumps(fields).encode()


def test_lines_of_a_batch_name_adapters(base: str) -> None:
    from shoal.core.protocols import EngineInfo

    reading = Reading("small", EngineInfo("small", "local"), adapters=("ada",))
    for body in ({"model": "small:ada"}, {"model": "ada"}, {"adapter": "ada"}):
        (task,) = read_lines(line(**body), reading)
        assert [one.adapter for one in task.work.requests] == ["ada"]  # type: ignore[union-attr]
    with pytest.raises(LineError, match="this engine runs 'small', not 'small:eve'"):
        read_lines(line(model="small:eve"), reading)
    with pytest.raises(LineError, match="no adapter 'eve'"):
        read_lines(line(adapter="eve"), reading)
