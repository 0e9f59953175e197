"""HTTP/1.1 on one socket: a client that adds as little time as can be."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from serving.servers import MODEL, Running


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
