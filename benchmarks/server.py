"""What the server adds to the engine, and what ten minutes of rough clients leave behind.

    python benchmarks/server.py [--seconds 600] [--clients 24] [--smoke] [--json]

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
import contextlib
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shoal.core.protocols import Engine, Request, Sampling
from shoal.core.records import Message
from shoal.engine.local import LocalEngine
from shoal.engine.scripted import ScriptedEngine

STREAMS = 64
KEYS = {"ann": "sk-ann", "bob": "sk-bob", "eve": "sk-eve"}
KEY_FILE = """
[tenants.ann]
keys = ["sk-ann"]
metrics = true

[tenants.bob]
keys = ["sk-bob"]
max_running = 4

[tenants.eve]
keys = ["sk-eve"]
max_running = 2
max_waiting = 2
"""
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SCRIPTED = """
from shoal.engine.scripted import ScriptedEngine
from shoal.server.serve import address_of, listen, serve
import sys
with listen("127.0.0.1", 0) as sock:
    print("at", address_of(sock), file=sys.stderr, flush=True)
    serve(ScriptedEngine("one two three"), sock, model_name="small")
"""
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


# -- servers ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Running:
    """A server in a process of its own."""

    host: str
    port: int
    pid: int

    @property
    def resident_mib(self) -> float:
        """Memory of the process that is really there."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", text)
        return int(found[1]) / 1024 if found else 0.0


@contextmanager
def server(command: Sequence[str]) -> Iterator[Running]:
    """Start a server that prints its address, and stop it as an operator would."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        found = None
        while not found:
            line = process.stderr.readline()
            if not line:
                raise SystemExit(f"The server ended: {' '.join(command)}")
            found = re.search(r"http://([\d.]+):(\d+)/v1", line)
        yield Running(found[1], int(found[2]), process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        finally:
            process.kill()
            process.stderr.close()


def tiny_model(folder: Path) -> Path:
    """A random Llama of two layers with bytes as tokens."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(word, special=True) for word in ("<|im_start|>", "<|im_end|>")]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|im_end|>", "chat_template": CHATML})
    )
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id("<|im_end|>"),
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


# -- a plain client -----------------------------------------------------------------------


class Connection:
    """HTTP/1.1 on one socket, as little of it as the server needs."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, at: Running) -> Connection:
        return cls(*await asyncio.open_connection(at.host, at.port))

    def send(self, path: str, body: Any = None, *, key: str = "sk-ann") -> None:
        data = body if isinstance(body, bytes) else b"" if body is None else _json(body)
        head = (
            f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n"
        )
        self.writer.write(head.encode() + data)

    async def head(self) -> tuple[int, dict[str, str]]:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        pairs = (line.partition(": ") for line in lines[1:] if line)
        return int(lines[0].split()[1]), {name.lower(): value for name, _, value in pairs}

    async def pieces(self, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
        """The body as it comes."""
        if "content-length" in headers:
            yield await self.reader.readexactly(int(headers["content-length"]))
            return
        while size := int(await self.reader.readline(), 16):
            yield (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readline()

    async def answer(self) -> tuple[int, bytes]:
        status, headers = await self.head()
        return status, b"".join([piece async for piece in self.pieces(headers)])

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


@asynccontextmanager
async def connection(at: Running) -> AsyncIterator[Connection]:
    """A connection that is closed at the end, whatever happened."""
    opened = await Connection.to(at)
    try:
        yield opened
    finally:
        await opened.close()


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def chat(text: str, **fields: Any) -> dict[str, Any]:
    """A chat body for the served model, whatever it is called."""
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}


MODEL = "tiny"


# -- overhead -----------------------------------------------------------------------------


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


# -- many streams at once -----------------------------------------------------------------


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


# -- load ---------------------------------------------------------------------------------


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


# -- all of it ----------------------------------------------------------------------------


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--smoke", action="store_true", help="a short look at everything")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.seconds = min(options.seconds, 8.0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (model := folder / MODEL).mkdir()
        tiny_model(model)
        (keys := folder / "keys.toml").write_text(KEY_FILE)
        command = [sys.executable, "-m", "shoal", "serve", "--model", str(model), "--port", "0"]
        command += [
            "--dtype",
            "fp32",
            "--kv-memory",
            "8",
            "--store-memory",
            "1",
            "--keys",
            str(keys),
        ]
        with server([sys.executable, "-c", SCRIPTED]) as bare, server(command) as at:
            result = asyncio.run(measure(model, at, bare, options))
    if options.json:
        print(json.dumps(result, default=asdict, indent=1))
    else:
        show(result)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
