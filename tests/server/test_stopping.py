"""SIGTERM: what runs may end, what is new is refused, what does not end is handed back."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

SERVE = """
import sys
from shoal.engine.scripted import ScriptedEngine
from shoal.server.serve import address_of, listen, serve
from shoal.server.service import ServerLimits

class Told(ScriptedEngine):
    async def close(self):
        print("closed", flush=True)

sock = listen("127.0.0.1", 0)
print(address_of(sock), flush=True)
engine = Told("word " * 20, delay=0.05)
serve(engine, sock, model_name="small", limits=ServerLimits(stop_seconds=float(sys.argv[1])))
print("stopped", flush=True)
"""
BODY = {"model": "small", "prompt": "x", "max_tokens": 20}


@contextmanager
def serving(stop_seconds: float) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(stop_seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_what_runs_may_end_and_what_is_new_is_refused() -> None:
    with serving(10) as (process, url), httpx.Client(timeout=10) as other:
        root = url.removesuffix("/v1")
        assert other.get(f"{root}/health").status_code == 200
        with httpx.stream(
            "POST", f"{url}/completions", json=BODY | {"stream": True}, timeout=10
        ) as got:
            lines = got.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            new = httpx.post(f"{url}/completions", json=BODY)
            assert new.status_code == 503 and new.headers["retry-after"] == "1"
            assert new.json()["error"]["code"] == "stopping"
            assert other.get(f"{root}/health").status_code == 503
            rest = [line for line in lines if line.startswith("data:")]
        assert rest[-1] == "data: [DONE]" and len(rest) >= 19
        assert process.stdout and process.stdout.read() == "closed\nstopped\n"
        assert process.wait(5) == 0


@pytest.mark.parametrize("twice", [False, True])
def test_what_does_not_end_is_handed_back(twice: bool) -> None:
    """At the deadline, or at once when asked a second time."""
    with serving(30 if twice else 0.3) as (process, url):
        answers: list[httpx.Response] = []
        thread = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{url}/completions", json=BODY, timeout=10))
        )
        thread.start()
        time.sleep(0.3)
        with httpx.stream(
            "POST", f"{url}/completions", json=BODY | {"stream": True}, timeout=10
        ) as got:
            lines = got.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            if twice:
                time.sleep(0.2)
                process.send_signal(signal.SIGTERM)
            rest = [] if twice else [line for line in lines if line]
        thread.join(5)
        if not twice:
            assert answers[0].status_code == 503 and answers[0].headers["retry-after"] == "1"
            assert '"code": "stopping"' in rest[-2] and rest[-1] == "data: [DONE]"
        assert process.wait(5) == 0
