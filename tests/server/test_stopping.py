"""SIGTERM: what runs may end, what is new is refused, what does not end is handed back."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from patience import LONG, wait_until

SERVE = """
import sys, threading
from shoal.engine.scripted import ScriptedEngine
from shoal.server.serve import address_of, listen, serve
from shoal.server.service import ServerLimits

class Told(ScriptedEngine):
    async def close(self):
        print("closed", flush=True)

sock = listen("127.0.0.1", 0)
print(address_of(sock), flush=True)
engine = Told("word " * 400, delay=0.05)

def hurry():
    sys.stdin.readline()
    engine.delay = 0.0

threading.Thread(target=hurry, daemon=True).start()
serve(engine, sock, model_name="small", limits=ServerLimits(stop_seconds=float(sys.argv[1])))
print("stopped", flush=True)
"""
BODY = {"model": "small", "prompt": "x", "max_tokens": 400}


@contextmanager
def serving(stop_seconds: float) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(stop_seconds)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin and process.stdout
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def told_to_stop(other: httpx.Client, root: str) -> bool:
    """Whether a server soon says that it stops."""
    return wait_until(lambda: other.get(f"{root}/health").status_code == 503)


def test_what_runs_may_end_and_what_is_new_is_refused() -> None:
    with serving(LONG) as (process, url), httpx.Client(timeout=LONG) as other:
        root = url.removesuffix("/v1")
        assert other.get(f"{root}/health").status_code == 200
        with httpx.stream(
            "POST", f"{url}/completions", json=BODY | {"stream": True}, timeout=LONG
        ) as got:
            lines = got.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            assert told_to_stop(other, root)
            new = httpx.post(f"{url}/completions", json=BODY)
            assert new.status_code == 503 and new.headers["retry-after"] == "1"
            assert new.json()["error"]["code"] == "stopping"
            assert process.stdin
            print(file=process.stdin, flush=True)  # it may hurry up now
            rest = [line for line in lines if line.startswith("data:")]
        assert rest[-1] == "data: [DONE]" and len(rest) >= 399
        assert process.stdout and process.stdout.read() == "closed\nstopped\n"
        assert process.wait(LONG) == 0


@pytest.mark.parametrize("twice", [False, True])
def test_what_does_not_end_is_handed_back(twice: bool) -> None:
    """At the deadline, or at once when asked a second time."""
    with serving(LONG if twice else 0.3) as (process, url), httpx.Client(timeout=LONG) as other:
        root = url.removesuffix("/v1")
        answers: list[httpx.Response] = []
        thread = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{url}/completions", json=BODY, timeout=LONG))
        )
        thread.start()
        running = 'shoal_admitted_requests{state="running"} 1.0'
        assert wait_until(lambda: running in other.get(f"{root}/metrics").text)
        with httpx.stream(
            "POST", f"{url}/completions", json=BODY | {"stream": True}, timeout=LONG
        ) as got:
            lines = got.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            if twice:
                assert told_to_stop(other, root)
                process.send_signal(signal.SIGTERM)
            rest = [] if twice else [line for line in lines if line]
        thread.join(LONG)
        if not twice:
            assert answers[0].status_code == 503 and answers[0].headers["retry-after"] == "1"
            assert '"code": "stopping"' in rest[-2] and rest[-1] == "data: [DONE]"
        assert process.wait(LONG) == 0
