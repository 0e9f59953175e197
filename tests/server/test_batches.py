"""Files and batches as OpenAI's client sees them, over restarts and between tenants."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from patience import LONG, wait_until
from shoal.core.errors import RemoteError
from shoal.core.protocols import Completion
from shoal.engine.scripted import ScriptedEngine
from shoal.server.app import create_app
from shoal.server.batches import router
from shoal.server.serve import address_of, listen


@contextmanager
def serving(engine: Any, folder: Path) -> Iterator[openai.OpenAI]:
    """A client of a server that keeps its batches in ``folder``."""
    sock = listen("127.0.0.1", 0)
    app = create_app(engine, model_name="small")
    app.include_router(router(app.state.service, folder))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    try:
        assert wait_until(lambda: server.started or not thread.is_alive())
        with httpx.Client(trust_env=False) as http:
            yield openai.OpenAI(
                base_url=address_of(sock), api_key="k", http_client=http, max_retries=0
            )
    finally:
        server.should_exit = True
        thread.join(LONG)
        sock.close()
        assert not thread.is_alive()


def chat(name: str, text: str, **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {
        "custom_id": name,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "small", "messages": messages, **body},
    }


def upload(client: openai.OpenAI, *lines: Any) -> str:
    data = "\n".join(map(json.dumps, lines)).encode()
    return client.files.create(file=("in.jsonl", io.BytesIO(data)), purpose="batch").id


def start(client: openai.OpenAI, file_id: str) -> str:
    return client.batches.create(
        input_file_id=file_id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"for": "a test"},
    ).id


def wait(client: openai.OpenAI, batch_id: str, *until: str) -> Any:
    ends = until or ("completed", "failed", "cancelled", "expired")
    assert wait_until(lambda: client.batches.retrieve(batch_id).status in ends)
    return client.batches.retrieve(batch_id)


def completed(client: openai.OpenAI, batch_id: str) -> int:
    return int(client.batches.retrieve(batch_id).request_counts.completed)


def lines_of(client: openai.OpenAI, file_id: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


def test_a_batch_is_answered_in_the_order_of_its_lines(tmp_path: Path) -> None:
    engine = ScriptedEngine({"one": "first", "two": "second", "three": "third"})
    with serving(engine, tmp_path) as client:
        file_id = upload(client, *(chat(word, word) for word in ("one", "two", "three")))
        assert client.files.retrieve(file_id).filename == "in.jsonl"
        batch = wait(client, start(client, file_id))
        assert batch.status == "completed"
        counts = batch.request_counts
        assert (counts.total, counts.completed, counts.failed) == (3, 3, 0)
        assert batch.metadata == {"for": "a test"}
        assert batch.in_progress_at and batch.finalizing_at and batch.completed_at
        assert batch.error_file_id is None
        lines = lines_of(client, batch.output_file_id)
        assert [line["custom_id"] for line in lines] == ["one", "two", "three"]
        said = [line["response"]["body"]["choices"][0]["message"]["content"] for line in lines]
        assert said == ["first", "second", "third"]
        listed = [file.id for file in client.files.list()]
        assert listed == [batch.output_file_id, file_id]
        assert [one.id for one in client.batches.list()] == [batch.id]
        assert client.files.delete(file_id).deleted
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(file_id)


def test_requests_that_fail_are_in_the_file_of_errors(tmp_path: Path) -> None:
    engine = ScriptedEngine("yes", failures={1: "It cannot be."})
    with serving(engine, tmp_path) as client:
        batch = wait(client, start(client, upload(client, *(chat(n, n) for n in "abc"))))
        assert (batch.status, batch.request_counts.failed) == ("completed", 1)
        (failed,) = lines_of(client, batch.error_file_id)
        assert failed["response"]["status_code"] == 400
        assert failed["response"]["body"]["error"]["message"] == "It cannot be."
        assert len(lines_of(client, batch.output_file_id)) == 2


def test_a_file_with_a_broken_line_fails_and_names_the_line(tmp_path: Path) -> None:
    with serving(ScriptedEngine("yes"), tmp_path) as client:
        other = {"custom_id": "b", "url": "/v1/completions", "body": {"prompt": "b"}}
        for line, sentence in (
            (chat("b", "b", temperature=9), "Line 2: temperature"),
            (chat("a", "again"), "Lines 1 and 2 have the same custom_id"),
            (other, "this batch is for '/v1/chat/completions'"),
        ):
            batch = wait(client, start(client, upload(client, chat("a", "a"), line)))
            assert batch.status == "failed"
            (fault,) = batch.errors.data
            assert (fault.line, fault.code) == (2, "invalid_line")
            assert sentence in fault.message


def slow(tmp_path: Path, answered: list[str], gate: threading.Event) -> ScriptedEngine:
    """An engine that answers two requests, then waits for the gate."""

    def answers(messages: Any, seed: int) -> str:
        answered.append(messages[-1].content)
        return messages[-1].content.upper()

    class Gated(ScriptedEngine):
        async def generate(self, requests: Any, on_delta: Any = None) -> list[Completion]:
            import asyncio

            while len(answered) >= 2 and not gate.is_set():
                await asyncio.sleep(0.01)
            return await super().generate(requests, on_delta)

    return Gated(answers)


def test_a_batch_survives_a_restart_and_computes_nothing_twice(tmp_path: Path) -> None:
    answered: list[str] = []
    gate = threading.Event()
    words = [f"w{n}" for n in range(6)]
    with serving(slow(tmp_path, answered, gate), tmp_path) as client:
        batch_id = start(client, upload(client, *(chat(word, word) for word in words)))
        assert wait_until(lambda: completed(client, batch_id) == 2)
        assert wait(client, batch_id, "in_progress").request_counts.total == 6
    before = list(answered)
    gate.set()
    with serving(slow(tmp_path, answered, gate), tmp_path) as client:
        batch = wait(client, batch_id)
        assert batch.status == "completed"
        lines = lines_of(client, batch.output_file_id)
    assert [line["custom_id"] for line in lines] == words
    assert len(before) == 2
    assert sorted(answered) == words


def test_cancelling_keeps_what_was_answered(tmp_path: Path) -> None:
    answered: list[str] = []
    with serving(slow(tmp_path, answered, threading.Event()), tmp_path) as client:
        batch_id = start(client, upload(client, *(chat(n, n) for n in "abcd")))
        assert wait_until(lambda: completed(client, batch_id) == 2)
        assert client.batches.cancel(batch_id).status == "cancelling"
        batch = wait(client, batch_id)
        assert batch.status == "cancelled"
        assert (batch.request_counts.total, batch.request_counts.completed) == (4, 2)
        assert [line["custom_id"] for line in lines_of(client, batch.output_file_id)] == ["a", "b"]
        assert client.batches.cancel(batch_id).status == "cancelled"


def test_an_endpoint_that_is_down_for_a_while_delays_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.server.batch_worker.AGAIN_SECONDS", 0.01)
    engine = ScriptedEngine("yes", failures={0: RemoteError("Down."), 2: RemoteError("Down.")})
    with serving(engine, tmp_path) as client:
        batch = wait(client, start(client, upload(client, *(chat(n, n) for n in "abc"))))
        assert (batch.status, batch.request_counts.completed) == ("completed", 3)


def test_tenants_see_nothing_of_each_other(tmp_path: Path) -> None:
    with serving(ScriptedEngine("yes"), tmp_path) as client:
        other = client.with_options(api_key="somebody else")
        file_id = upload(client, chat("a", "a"))
        batch_id = start(client, file_id)
        for look in (
            lambda: other.files.retrieve(file_id),
            lambda: other.files.content(file_id),
            lambda: other.files.delete(file_id),
            lambda: other.batches.retrieve(batch_id),
            lambda: other.batches.cancel(batch_id),
            lambda: start(other, file_id),
        ):
            with pytest.raises(openai.NotFoundError):
                look()
        assert list(other.files.list()) == list(other.batches.list()) == []
        wait(client, batch_id)


def test_mistakes_are_named(tmp_path: Path) -> None:
    with serving(ScriptedEngine("yes"), tmp_path) as client:
        file_id = upload(client, chat("a", "a"))
        with pytest.raises(openai.BadRequestError, match="for 'batch' only"):
            client.files.create(file=("x", b"{}"), purpose="fine-tune")
        with pytest.raises(openai.BadRequestError, match="cannot be batched"):
            client.batches.create(
                input_file_id=file_id, endpoint="/v1/embeddings", completion_window="24h"
            )
        with pytest.raises(openai.NotFoundError, match="no file 'file-x'"):
            start(client, "file-x")
        for name in ("../../etc/passwd", "file-0000000000000000", "%2e%2e", "a" * 400):
            with pytest.raises(openai.NotFoundError):
                client.files.content(name)
            with pytest.raises(openai.NotFoundError):
                client.batches.retrieve(name)


def test_batches_are_listed_in_pages(tmp_path: Path) -> None:
    with serving(ScriptedEngine("yes"), tmp_path) as client:
        file_id = upload(client, chat("a", "a"))
        made = [start(client, file_id) for _ in range(5)]
        page = client.batches.list(limit=2)
        assert [one.id for one in page.data] == made[:2:-1]
        assert [one.id for one in client.batches.list(limit=2)] == made[::-1]
        for batch_id in made:
            wait(client, batch_id)
