import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from shoal.cli import app
from shoal.core.errors import ConfigError, EngineError, InputError, RemoteError
from shoal.engine import open as opening
from shoal.engine.scripted import ScriptedEngine


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    """What the command line opens instead of a model."""
    scripted = ScriptedEngine("Fish swim.")

    def open_engine(*_: object, **options: object) -> ScriptedEngine:
        scripted._closed = False
        return scripted

    monkeypatch.setattr(opening, "open_engine", open_engine)
    return scripted


def invoke(*arguments: str, stdin: str = "") -> tuple[str, str]:
    result = CliRunner().invoke(app, list(arguments), input=stdin, catch_exceptions=True)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout, result.stderr


def test_one_question_is_answered(engine: ScriptedEngine) -> None:
    out, err = invoke("chat", "What do fish do?", "--system", "Be brief.", "--seed", "3")
    assert out == "Fish swim.\n"
    assert "2 tokens, 50.0 tok/s" in err and "0 of 8 prompt tokens shared" in err
    ((request,),) = engine.groups
    assert [one.content for one in request.prompt] == ["Be brief.", "What do fish do?"]
    assert request.sampling.seed == 3


def test_text_on_stdin_is_added_to_the_question(engine: ScriptedEngine) -> None:
    invoke("chat", "Summarise:", stdin="A long text.\n")
    invoke("chat", stdin="Only this.")
    assert engine.groups[0][0].prompt[0].content == "Summarise:\n\nA long text."
    assert engine.groups[1][0].prompt[0].content == "Only this."


def test_one_answer_as_json(engine: ScriptedEngine) -> None:
    import json

    out, _ = invoke("chat", "Hi", "--json")
    answer = json.loads(out)
    assert answer["answer"] == "Fish swim." and answer["usage"]["decoded_tokens"] == 2


def test_nothing_to_answer_and_failing_engines(engine: ScriptedEngine) -> None:
    with pytest.raises(InputError, match="nothing to answer"):
        invoke("chat")
    engine.failures = {0: "Too long."}
    with pytest.raises(EngineError, match=r"Too long\."):
        invoke("chat", "Hi")


def test_answers_cannot_steer_the_terminal(engine: ScriptedEngine) -> None:
    engine.answers = "red \x1b[31mtext\x07"
    out, _ = invoke("chat", "Hi")
    assert out == "red [31mtext\n"


CHAT = """
import sys
from shoal.cli import main
from shoal.engine import open as opening
from shoal.engine.scripted import ScriptedEngine
engine = ScriptedEngine(lambda messages, seed: f"{len(messages)} heard", failures={1: "Too long."})
opening.open_engine = lambda *args, **options: engine
sys.argv = ["shoal", "chat"]
main()
"""


@pytest.fixture
def terminal() -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """``shoal chat`` in a terminal of its own."""
    controller, worker = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", CHAT], stdin=worker, stdout=worker, stderr=worker, close_fds=True
    )
    os.close(worker)
    yield controller, process
    process.kill()
    process.wait()
    os.close(controller)


def wait_for(terminal: int, words: str) -> str:
    """What the terminal shows up to and with these words."""
    seen = ""
    deadline = time.monotonic() + 60
    while words not in seen:
        assert time.monotonic() < deadline, seen
        if select.select([terminal], [], [], 0.2)[0]:
            seen += os.read(terminal, 4096).decode()
    return seen


def test_a_conversation_in_a_terminal(terminal: tuple[int, subprocess.Popen[bytes]]) -> None:
    screen, process = terminal

    def say(line: str) -> None:
        os.write(screen, line.encode() + b"\n")

    wait_for(screen, "/exit leaves")
    say("Hello")
    assert "prompt tokens shared" in wait_for(screen, "shared")
    say("This one fails")
    wait_for(screen, "Too long.")
    say("Go on")
    wait_for(screen, "3 heard")  # the failed turn is not part of the conversation
    say("/what")
    wait_for(screen, "There is no /what")
    say("/reset")
    wait_for(screen, "Forgotten.")
    say("Hello")
    wait_for(screen, "1 heard")
    say("/exit")
    assert process.wait(60) == 0


def test_serve_says_what_is_wrong_before_it_loads_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(ConfigError, match=f"port {port} .*in use"):
            invoke("serve", "--port", port)
    with pytest.raises(ConfigError, match="set an API key"):
        invoke("serve", "--host", "0.0.0.0", "--port", "0")
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigError, match="NO_SUCH_KEY is empty"):
        invoke("serve", "--api-key-env", "NO_SUCH_KEY")
    with pytest.raises(ConfigError, match="not both"):
        invoke("serve", "--api-key-env", "NO_SUCH_KEY", "--keys", "keys.toml")
    with pytest.raises(InputError, match=r"key file no\.toml cannot be read"):
        invoke("serve", "--keys", "no.toml")
    with pytest.raises(RemoteError, match="cannot be reached"):
        invoke("serve", "--port", "0", "--upstream", "http://127.0.0.1:9/v1")


def test_an_endpoint_that_is_down_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(RemoteError, match="cannot be reached"):
        invoke("chat", "Hi", "--model", url)


def test_a_served_model_answers_by_address(tiny_model: Path) -> None:
    command = [sys.executable, "-m", "shoal", "serve", "--model", str(tiny_model), "--port", "0"]
    server = subprocess.Popen([*command, "--dtype", "fp32"], stderr=subprocess.PIPE, text=True)
    assert server.stderr
    try:
        found = None
        while not found:
            line = server.stderr.readline()
            assert line, "the server ended"
            found = re.search(r"http://127\.0\.0\.1:\d+/v1", line)
        out, err = invoke("chat", "Hello", "--model", found[0], "--max-tokens", "5")
        local, _ = invoke(
            *("chat", "Hello", "--model", str(tiny_model), "--max-tokens", "5"),
            *("--dtype", "fp32"),
        )
        assert out == local and "prompt tokens shared" in err
        headers = {"Authorization": "Bearer x"}
        assert httpx.get(f"{found[0]}/models", headers=headers).json()["data"]
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.wait()
        server.stderr.close()


def served(*arguments: str) -> tuple[subprocess.Popen[str], str]:
    """``shoal serve`` in a process of its own, and its address."""
    command = [sys.executable, "-m", "shoal", "serve", "--port", "0", *arguments]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr
    while line := server.stderr.readline():
        if found := re.search(r"http://127\.0\.0\.1:\d+/v1", line):
            return server, found[0]
    raise AssertionError("the server ended")


def stopped(server: subprocess.Popen[str]) -> int:
    server.send_signal(signal.SIGTERM)
    try:
        return server.wait(60)
    finally:
        server.kill()
        server.wait()
        assert server.stderr
        server.stderr.close()


def test_one_server_stands_before_another(tiny_model: Path, tmp_path: Path) -> None:
    """The one in front has the keys; what it sends on shares a cache in the one behind."""
    (keys := tmp_path / "keys.toml").write_text('[tenants.ann]\nkeys = ["k"]\nmetrics = true\n')
    behind, url = served("--model", str(tiny_model), "--dtype", "fp32", "--kv-memory", "8")
    try:
        front, address = served("--upstream", url, "--keys", str(keys))
        try:
            assert httpx.get(f"{address}/models").status_code == 401
            with httpx.Client(headers={"Authorization": "Bearer k"}, timeout=30) as client:
                (card,) = client.get(f"{address}/models").json()["data"]
                body = {"model": card["id"], "prompt": "word " * 80, "max_tokens": 2}
                first, second = (
                    client.post(f"{address}/completions", json=body | {"temperature": heat}).json()
                    for heat in (0, 1)
                )
                details = [one["usage"]["prompt_tokens_details"] for one in (first, second)]
                assert details[0]["cached_tokens"] == 0 and details[1]["cached_tokens"] > 300
                text = client.get(address.removesuffix("/v1") + "/metrics").text
            assert 'shoal_upstream_requests_total{kind="sent"} 2.0' in text
        finally:
            assert stopped(front) == 0
    finally:
        assert stopped(behind) == 0


def test_adapters_need_a_model_in_this_process(engine: ScriptedEngine, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--adapters needs a model in this process"):
        invoke("serve", "--adapters", str(tmp_path), "--port", "0")
