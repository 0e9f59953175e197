"""What the server adds to the engine, and what ten minutes of rough clients leave behind.

    python benchmarks/server.py [--seconds 600] [--clients 24] [--smoke] [--out FILE]

Overhead: the same requests as direct calls of an engine in this process and over HTTP to a server
in another, in turn; the median of the paired differences counts. Streams: 64 at once. Load:
clients that chat, stream, call tools, embed and send nonsense, that close their connection at any
moment or are killed; afterwards the server must hold no cache for anybody, must not have answered
5xx, and its memory must not have grown once its cache was full. The model is a random one of two
layers, so that a second holds many beginnings and ends; its server is `shoal serve` as installed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from serving.client import chat, connection
from serving.load import Load, under_load
from serving.servers import KEY_FILE, MODEL, SCRIPTED, Running, server, tiny_model
from shoal.core.protocols import Engine, Request, Sampling
from shoal.core.records import Message
from shoal.engine.local import LocalEngine
from shoal.engine.scripted import ScriptedEngine

STREAMS = 64


@dataclass(frozen=True, slots=True)
class Overhead:
    """Milliseconds of one request, medians; ``added`` is the median of paired differences."""

    engine: str
    endpoint: str
    direct: float
    served: float
    added: float
    added_p95: float


async def overhead(
    name: str, engine: Engine, at: Running, model: str, *, rounds: int, stream: bool, tokens: int
) -> Overhead:
    """Direct calls and requests in turn, one at a time, on prompts both have seen before."""
    prompts = [f"What is {number} and {number + 1}?" for number in range(8)]
    direct: list[float] = []
    served: list[float] = []
    async with connection(at) as line:
        for number in range(rounds + 16):
            text = prompts[number % len(prompts)]
            request = Request(
                (Message("user", text),), Sampling(max_tokens=tokens, ignore_eos=True)
            )
            body = chat(
                text, max_tokens=tokens, temperature=0, ignore_eos=True, stream=stream, model=model
            )
            times = []
            for way in ("direct", "served") if number % 2 else ("served", "direct"):
                began = time.perf_counter()
                if way == "direct":
                    await engine.generate([request], (lambda _: None) if stream else None)
                else:
                    line.send("/v1/chat/completions", body)
                    status, _ = await line.answer()
                    assert status == 200, status
                times.append((way, (time.perf_counter() - began) * 1e3))
            if number >= 16:  # the first ones warm both sides up
                took = dict(times)
                direct.append(took["direct"])
                served.append(took["served"])
    added = sorted(b - a for a, b in zip(direct, served, strict=True))
    return Overhead(
        name,
        "stream" if stream else "whole",
        statistics.median(direct),
        statistics.median(served),
        statistics.median(added),
        added[int(0.95 * len(added))],
    )


async def streams(at: Running, count: int) -> Counter[str]:
    """How many of ``count`` simultaneous streams end as they should."""
    ends: Counter[str] = Counter()

    async def one(number: int) -> None:
        async with connection(at) as line:
            line.send(
                "/v1/chat/completions",
                chat(f"Story {number}", stream=True, max_tokens=48, ignore_eos=True, seed=number),
            )
            status, body = await line.answer()
            whole = status == 200 and body.endswith(b"data: [DONE]\n\n") and b'"error"' not in body
            ends["whole" if whole else f"status {status}"] += 1

    await asyncio.gather(*map(one, range(count)))
    return ends


async def measure(model: Path, at: Running, bare: Running, options: Any) -> dict[str, Any]:
    """Overhead, streams, load, in this order."""
    engine = LocalEngine.open(str(model), dtype="fp32", kv_bytes=8 << 20)
    scripted = ScriptedEngine("one two three")
    rounds = 60 if options.smoke else 400
    found = []
    for stream in (False, True):
        found.append(
            await overhead(
                "scripted", scripted, bare, "small", rounds=rounds, stream=stream, tokens=3
            )
        )
        found.append(
            await overhead("tiny", engine, at, MODEL, rounds=rounds, stream=stream, tokens=4)
        )
    await engine.close()
    ends = await streams(at, STREAMS)
    load = await under_load(at, clients=options.clients, seconds=options.seconds)
    return {"overhead": found, "streams": ends, "load": load}


def show(result: dict[str, Any]) -> None:
    """Print the figures beside what was promised."""
    print("overhead, ms           direct   served    added (p95)      promised <= 3")
    for one in result["overhead"]:
        print(
            f"  {one.engine:<9}{one.endpoint:<8} {one.direct:8.2f} {one.served:8.2f} "
            f"{one.added:8.2f} ({one.added_p95:.2f})"
        )
    print(f"{STREAMS} streams at once: {dict(result['streams'])}")
    load: Load = result["load"]
    print(f"load of {load.seconds:g} s: {load.sent} sent, {dict(sorted(load.statuses.items()))}")
    print(f"  broken off {load.broken_off}, killed {load.killed}, seen as 499 {load.server_499:g}")
    print(f"  5xx {load.server_5xx:g}, streams that ended in an error {load.failed_streams}")
    print(
        f"  left: {load.pinned_bytes:g} pinned bytes, {load.engine_requests:g} requests in the "
        f"engine, {load.admitted:g} at the gate"
    )
    print(
        f"  memory {load.resident_mib[0]:.0f} -> {load.resident_mib[-1]:.0f} MiB, growth after "
        f"the first half {load.growth_mib:+.1f} MiB"
    )


def as_json(result: dict[str, Any]) -> dict[str, Any]:
    """The figures as JSON has them; ``asdict`` would count the pairs of a counter."""
    load: Load = result["load"]
    return {
        "overhead": [asdict(one) for one in result["overhead"]],
        "streams": dict(result["streams"]),
        "load": asdict(load) | {"statuses": dict(load.statuses)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--smoke", action="store_true", help="a short look at everything")
    parser.add_argument("--out", type=Path, help="keep the figures as JSON")
    options = parser.parse_args()
    if options.smoke:
        options.seconds = min(options.seconds, 8.0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (model := folder / MODEL).mkdir()
        tiny_model(model)
        (keys := folder / "keys.toml").write_text(KEY_FILE)
        command = [sys.executable, "-m", "shoal", "serve", "--model", str(model), "--port", "0"]
        command += ["--dtype", "fp32", "--keys", str(keys)]
        command += ["--kv-memory", "8", "--store-memory", "1"]
        with server([sys.executable, "-c", SCRIPTED]) as bare, server(command) as at:
            result = asyncio.run(measure(model, at, bare, options))
    show(result)
    if options.out:
        options.out.write_text(json.dumps(as_json(result), indent=1))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
