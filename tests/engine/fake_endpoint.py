"""A scripted OpenAI-compatible endpoint on a real loopback socket, for tests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

Responder = Callable[[dict[str, Any], asyncio.StreamWriter], Awaitable[None]]


@dataclass
class FakeEndpoint:
    """``seen`` holds path and body of every request; ``closed`` counts clients that went away
    while their responder was still busy."""

    url: str = ""
    seen: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    closed: int = 0

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [body for _, body in self.seen]


@asynccontextmanager
async def fake_endpoint(*responders: Responder) -> AsyncIterator[FakeEndpoint]:
    """Serve with one responder per request, in order; the last one again and again."""
    fake = FakeEndpoint()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = next(
                (
                    int(line[15:])
                    for line in head.split("\r\n")
                    if line.startswith("Content-Length")
                ),
                0,
            )
            body = json.loads(await reader.readexactly(length) or b"{}")
            fake.headers.append(head)
            number = len(fake.seen)
            fake.seen.append((head.split()[1], body))
            answer = asyncio.ensure_future(
                responders[min(number, len(responders) - 1)](body, writer)
            )
            gone = asyncio.ensure_future(reader.read(1))
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            fake.closed += not answer.done()
            for task in (answer, gone):
                task.cancel()
            await asyncio.gather(answer, gone, return_exceptions=True)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield fake


def send(
    status: int, body: Any, *, kind: str = "application/json", headers: Sequence[str] = ()
) -> Responder:
    """A whole response; ``body`` is bytes, or something to put into JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def respond(_: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", f"Content-Length: {len(data)}"]
        writer.write("\r\n".join([*lines, "Connection: close", *headers, "", ""]).encode() + data)
        await writer.drain()

    return respond


def stream(*pieces: str | dict[str, Any] | float | None, done: bool = True) -> Responder:
    """Server-sent events: text becomes a chat delta, a dictionary is sent as it is, a number is
    a pause in seconds, None cuts the connection."""

    async def respond(_: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
            b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        )
        for piece in pieces:
            if isinstance(piece, float):
                await asyncio.sleep(piece)
                continue
            if piece is None:
                return
            event = delta(piece) if isinstance(piece, str) else piece
            _chunk(writer, b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n")
            await writer.drain()
        if done:
            _chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    return respond


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


def delta(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}}]}


def finish(reason: str = "stop") -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}


def usage(prompt: int = 10, cached: int = 0, decoded: int = 2) -> dict[str, Any]:
    return {
        "choices": [],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": decoded,
            "prompt_tokens_details": {"cached_tokens": cached},
        },
    }


def answer(text: str) -> Responder:
    """A plain streamed answer."""
    return stream(text, finish(), usage())
