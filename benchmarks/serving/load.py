"""Rough clients, and what they leave behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from serving.client import chat, connection
from serving.servers import KEYS, MODEL, Running

VICTIM = """
import json, socket, sys
host, port, body = sys.argv[1], int(sys.argv[2]), sys.argv[3].encode()
head = f"POST /v1/chat/completions HTTP/1.1\\r\\nHost: x\\r\\nAuthorization: Bearer sk-ann\\r\\n"
head += f"Content-Type: application/json\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n"
socks = [socket.create_connection((host, port)) for _ in range(4)]
for sock in socks: sock.sendall(head.encode() + body)
print("sent", flush=True)
while True: socks[0].recv(4096) or sys.exit()
"""


@dataclass(slots=True)
class Load:
    """What a while of rough clients did, and what it left."""

    seconds: float
    sent: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    broken_off: int = 0
    killed: int = 0
    failed_streams: int = 0
    pinned_bytes: float = -1.0
    engine_requests: float = -1.0
    admitted: float = -1.0
    server_5xx: float = -1.0
    server_499: float = 0.0
    resident_mib: list[float] = field(default_factory=list)

    @property
    def growth_mib(self) -> float:
        """Median memory of the last quarter over that of the second quarter."""
        quarter = max(1, len(self.resident_mib) // 4)
        settled = self.resident_mib[quarter : 2 * quarter] or self.resident_mib
        return statistics.median(self.resident_mib[-quarter:]) - statistics.median(settled)


TOOL = {
    "type": "function",
    "function": {
        "name": "pick",
        "parameters": {
            "type": "object",
            "properties": {"one": {"enum": ["a", "b"]}},
            "required": ["one"],
            "additionalProperties": False,
        },
    },
}


def job(draw: random.Random) -> tuple[str, Any]:
    """A path and a body, some of them nonsense."""
    text = "context " * draw.choice([0, 5, 40]) + f"question {draw.randrange(50)}"
    size = draw.choice([1, 8, 40, 120])
    kind = draw.choices(
        ["chat", "stream", "many", "tools", "text", "responses", "tokens", "guided", "bad", "long"],
        [4, 6, 2, 2, 3, 3, 1, 1, 2, 1],
    )[0]
    match kind:
        case "chat":
            return "/v1/chat/completions", chat(text, max_tokens=size)
        case "stream":
            return "/v1/chat/completions", chat(text, max_tokens=size, stream=True)
        case "many":
            return "/v1/chat/completions", chat(text, max_tokens=size, n=draw.randint(2, 6))
        case "tools":
            fields = {"tools": [TOOL], "tool_choice": "required", "max_tokens": 150}
            return "/v1/chat/completions", chat(text, stream=draw.random() < 0.5, **fields)
        case "text":
            prompts = [f"{text} {index}" for index in range(draw.randint(1, 4))]
            return "/v1/completions", {"model": MODEL, "prompt": prompts, "max_tokens": size}
        case "responses":
            body = {"model": MODEL, "input": text, "max_output_tokens": size}
            return "/v1/responses", body | {"stream": draw.random() < 0.5}
        case "tokens":
            return "/tokenize", {"prompt": text}
        case "guided":
            return "/v1/completions", {
                "model": MODEL, "prompt": text, "guided_regex": "[a-f]{3,20}", "max_tokens": 30,
            }  # fmt: skip
        case "long":
            return "/v1/completions", {"model": MODEL, "prompt": "x" * 5000}
        case _:
            return draw.choice(
                [
                    ("/v1/chat/completions", b"{"),
                    ("/v1/chat/completions", chat(text, temperature=9)),
                    ("/v1/chat/completions", {"model": "none", "messages": []}),
                    ("/v1/completions", {"model": MODEL, "prompt": [10**9]}),
                    ("/v1/responses", {"model": MODEL, "previous_response_id": "x", "input": "y"}),
                    ("/v1/completions", {"model": MODEL, "prompt": "a", "guided_regex": "("}),
                    ("/nowhere", {}),
                ]
            )


async def client(at: Running, load: Load, number: int, until: float) -> None:
    """Sends one request after the other; every fourth connection is closed somewhere."""
    draw = random.Random(number)
    while time.monotonic() < until:
        key = draw.choice([*KEYS.values(), "sk-nobody"]) if draw.random() < 0.5 else "sk-ann"
        path, body = job(draw)
        try:
            async with connection(at) as line:
                line.send(path, body, key=key)
                load.sent += 1
                if draw.random() < 0.25:
                    async with asyncio.timeout(draw.expovariate(1 / 0.15)):
                        await line.answer()
                else:
                    status, answer = await line.answer()
                    load.statuses[str(status)] += 1
                    broken = status == 200 and b'"server_error"' in answer
                    load.failed_streams += broken
        except TimeoutError:
            load.broken_off += 1


async def killer(at: Running, load: Load, until: float) -> None:
    """Processes that hold four streams each and are killed in the middle."""
    draw = random.Random(0)
    while time.monotonic() < until:
        for stream in (True, False):
            body = json.dumps(chat("kill me", stream=stream, max_tokens=1500, ignore_eos=True))
            victim = await asyncio.create_subprocess_exec(
                sys.executable, "-S", "-E", "-c", VICTIM, at.host, str(at.port), body,
                stdout=subprocess.PIPE,
            )  # fmt: skip
            assert victim.stdout is not None
            await victim.stdout.readline()
            await asyncio.sleep(draw.uniform(0, 0.6))
            with contextlib.suppress(ProcessLookupError):
                victim.kill()
            await victim.wait()
            load.killed += 4
        await asyncio.sleep(1)


async def watch(at: Running, load: Load, until: float) -> None:
    """The server's memory, once a second."""
    while time.monotonic() < until:
        load.resident_mib.append(at.resident_mib)
        await asyncio.sleep(1)


async def under_load(at: Running, *, clients: int, seconds: float) -> Load:
    """Run all clients for so long, let the server come to rest, and look at what is left."""
    load = Load(seconds)
    until = time.monotonic() + seconds
    await asyncio.gather(
        *(client(at, load, number, until) for number in range(clients)),
        killer(at, load, until),
        watch(at, load, until),
    )
    for _ in range(200):  # disconnects are noticed at the next step
        figures = await metrics(at)
        if not figures.get("running") and not figures.get("engine"):
            break
        await asyncio.sleep(0.1)
    load.pinned_bytes = figures["pinned"]
    load.engine_requests = figures["engine"]
    load.admitted = figures["running"]
    load.server_5xx = figures["5xx"]
    load.server_499 = figures["499"]
    return load


async def metrics(at: Running) -> dict[str, float]:
    """The figures of /metrics that matter here."""
    async with connection(at) as line:
        line.send("/metrics")
        _, body = await line.answer()
    text = body.decode()

    def total(pattern: str) -> float:
        return sum(float(value) for value in re.findall(pattern + r" ([\d.e+]+)", text))

    return {
        "pinned": total(r'shoal_cache_bytes\{state="pinned"\}'),
        "engine": total(r'shoal_engine_requests\{state="\w+"\}'),
        "running": total(r'shoal_admitted_requests\{state="\w+"\}'),
        "5xx": total(r'shoal_requests_total\{[^}]*status="5\d\d"[^}]*\}'),
        "499": total(r'shoal_requests_total\{[^}]*status="499"[^}]*\}'),
    }
