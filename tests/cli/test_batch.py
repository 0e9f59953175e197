"""shoal batch: files in, files out, plans, and what a user may do wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner

from shoal.cli import app
from shoal.core.errors import ShoalError

DOCUMENTS = [f"Document {d}. " + "word " * (10 + d) for d in range(3)]


def shoal(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["batch", *arguments])


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    """Twelve requests about three documents, in turn; answers of 3 to 14 tokens."""
    path = tmp_path / "in.jsonl"
    lines = [
        {
            "custom_id": f"{d}-{q}",
            "method": "POST",
            "url": "/v1/completions",
            "body": {
                "prompt": f"{text}Question {q}?",
                "max_tokens": 3 + 3 * q + d,
                "temperature": 0.7,
                "ignore_eos": True,
            },
        }
        for q in range(4)
        for d, text in enumerate(DOCUMENTS)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def ids(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_text().splitlines()]


def test_answers_come_in_the_order_of_the_requests(
    requests: Path, tmp_path: Path, tiny_model: Path
) -> None:
    out = tmp_path / "out.jsonl"
    done = shoal(str(requests), "-o", str(out), "-m", str(tiny_model), "--dtype", "fp32", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert ids(out) == ids(requests)
    prompts = [json.loads(line)["body"]["prompt"] for line in requests.read_text().splitlines()]
    tree = len({prompt[:end] for prompt in prompts for end in range(1, len(prompt) + 1)})
    assert report["prefill_tokens"] == tree
    assert report["prompt_tokens"] == sum(map(len, prompts))
    body = json.loads(out.read_text().splitlines()[0])["response"]["body"]
    assert body["usage"]["completion_tokens"] == 3
    assert body["model"] == "tiny"


def test_a_plan_runs_nothing(requests: Path, tmp_path: Path, tiny_model: Path) -> None:
    done = shoal(str(requests), "--plan", "-m", str(tiny_model), "--json")
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)
    assert [len(group["prompts"]) for group in plan["groups"] if group["outer"] == 0] == [4, 4, 4]
    assert plan["saving"] > 60
    assert plan["peak_kv_bytes"] > 0
    shown = shoal(str(requests), "--plan", "-m", str(tiny_model))
    assert "would be computed" in shown.stdout and "KV cache at most" in shown.stdout
    assert list(tmp_path.iterdir()) == [requests]


def test_an_interrupted_job_goes_on_and_computes_nothing_twice(
    requests: Path, tmp_path: Path, tiny_model: Path
) -> None:
    out, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    whole = tmp_path / "whole.jsonl"
    lines = [
        {"custom_id": str(n), "prompt": f"{DOCUMENTS[n % 3]}{n}", "ignore_eos": True}
        | {"max_tokens": 1200 if n else 2}
        for n in range(8)
    ]
    many = "".join(json.dumps(line) + "\n" for line in lines)
    requests.write_text(many)
    arguments = [str(requests), "-o", str(out), "-m", str(tiny_model), "--dtype", "fp32"]
    process = subprocess.Popen(
        [sys.executable, "-m", "shoal", "batch", *arguments],
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if part.exists() and part.read_bytes().count(b"\n") >= 2:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert b"lines answered, which are kept" in said
    assert not out.exists()
    kept = part.read_bytes().split(b"\n")[1:-1]
    done = shoal(*arguments, "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["lines"] == 8 - len(kept)
    assert ids(out) == [str(n) for n in range(8)]
    for line in kept:
        assert line.partition(b"\t")[2] in out.read_bytes()
    assert not part.exists()
    again = shoal(str(requests), "-o", str(whole), *arguments[3:])
    assert again.exit_code == 0
    texts = [
        [json.loads(line)["response"]["body"]["choices"] for line in path.read_text().splitlines()]
        for path in (out, whole)
    ]
    assert texts[0] == texts[1]


def test_requests_that_fail_alone_show_in_the_exit_code(tmp_path: Path, tiny_model: Path) -> None:
    requests, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [{"prompt": "fine", "max_tokens": 2}, {"prompt": "x" * 3000}]
    requests.write_text("\n".join(map(json.dumps, lines)))
    done = shoal(str(requests), "-o", str(out), "-m", str(tiny_model))
    assert done.exit_code == 1
    assert "1 of them failed" in done.stdout
    second = json.loads(out.read_text().splitlines()[1])
    assert second["response"]["status_code"] == 400
    assert second["response"]["body"]["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{in}"], "Say where the answers go"),
        (["{in}", "--plan", "--level", "mutli"], "no level 'mutli'. Did you mean 'multi'"),
        (["{in}", "--plan", "--order", "x"], "no order 'x'. Known are ratio"),
        (["missing.jsonl", "--plan"], "Cannot read missing.jsonl"),
        (["{in}", "--plan", "-m", "http://127.0.0.1:1/v1"], "address with --upstream"),
        (["{in}", "-o", "{in}"], "exists already"),
    ],
)
def test_mistakes_are_named(
    arguments: list[str], sentence: str, requests: Path, tiny_model: Path
) -> None:
    given = [argument.replace("{in}", str(requests)) for argument in arguments]
    if "-m" not in given:
        given += ["-m", str(tiny_model)]
    done = shoal(*given)
    assert isinstance(done.exception, ShoalError)
    assert sentence in str(done.exception)


def test_a_broken_line_is_named_before_anything_runs(tmp_path: Path, tiny_model: Path) -> None:
    requests, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    requests.write_text('{"prompt": "fine"}\n{"prompt": ""}\n')
    done = shoal(str(requests), "-o", str(out), "-m", str(tiny_model))
    assert "Line 2: prompt" in str(done.exception)
    assert list(tmp_path.iterdir()) == [requests]


class _Endpoint(BaseHTTPRequestHandler):
    """Answers completions with their last word; ``prompts`` are those it got."""

    prompts: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        known = self.path == "/v1/models"
        self._send(200 if known else 404, {"data": [{"id": "m"}]} if known else {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.prompts.append(body["prompt"])
        text = body["prompt"].split()[-1]
        counts = {"prompt_tokens": 9, "completion_tokens": 1}
        choice = {"index": 0, "text": text, "finish_reason": "stop"}
        self._send(200, {"choices": [choice], "usage": counts})

    def _send(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Quietly."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    """The base URL of an endpoint on the loopback interface."""
    _Endpoint.prompts.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Endpoint) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()
        thread.join()


def test_an_endpoint_gets_duplicates_once(endpoint: str, tmp_path: Path) -> None:
    requests, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    words = ["one", "two", "one", "three", "one"]
    lines = [{"prompt": f"say {word}", "temperature": 0} for word in words]
    requests.write_text("\n".join(map(json.dumps, lines)))
    done = shoal(str(requests), "-o", str(out), "--upstream", endpoint, "--json")
    assert done.exit_code == 0, done.output
    answers = [json.loads(line)["response"]["body"] for line in out.read_text().splitlines()]
    assert [answer["choices"][0]["text"] for answer in answers] == words
    assert sorted(_Endpoint.prompts) == ["say one", "say three", "say two"]
    report = json.loads(done.stdout)
    assert report["details"]["deduplicated"] == 2
    assert (report["prompt_tokens"], report["prefill_tokens"]) == (45, 27)


def test_a_plan_for_an_endpoint_goes_by_text(endpoint: str, requests: Path) -> None:
    done = shoal(str(requests), "--plan", "--upstream", endpoint, "--json")
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)
    assert plan["exact"] is False
    assert plan["seconds"] is None
    assert len([group for group in plan["groups"] if len(group["prompts"]) == 4]) == 3
    assert _Endpoint.prompts == []
