"""Talking with an MCP server over its stdin and stdout, with a limit on what one message may hold.

The SDK's own transport keeps whatever a server writes until a line ends, so a server that writes
without end fills the memory of its client.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

MOST = 32 << 20
"""Bytes of one message."""

PASSED = ("PATH", "HOME", "LANG", "TMPDIR")
"""What of the environment a server is given."""


@asynccontextmanager
async def bounded_stdio(
    command: Sequence[str], *, most: int = MOST, errlog: int = subprocess.DEVNULL
) -> AsyncIterator[tuple[Any, Any]]:
    """Streams to and from a server that is started here; a transport for the SDK's client.

    A message beyond ``most`` bytes ends the server, and all that waits for it fails.
    """
    import anyio
    from mcp.shared.message import SessionMessage
    from mcp_types import jsonrpc_message_adapter

    process = await anyio.open_process(
        list(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errlog,
        env={name: os.environ[name] for name in PASSED if name in os.environ},
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    said, heard = anyio.create_memory_object_stream[Any](0)
    told, to_tell = anyio.create_memory_object_stream[Any](0)

    async def listen() -> None:
        line = bytearray()
        async with said:
            with contextlib.suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):
                async for chunk in process.stdout:  # type: ignore[union-attr]
                    *whole, rest = chunk.split(b"\n")
                    for piece in whole:
                        line += piece
                        if len(line) <= most:
                            await said.send(_message(bytes(line)))
                        line.clear()
                    line += rest
                    if len(line) > most:
                        process.kill()
                        return

    async def tell() -> None:
        with contextlib.suppress(anyio.ClosedResourceError, anyio.BrokenResourceError, OSError):
            async with to_tell:
                async for message in to_tell:
                    text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
                    await process.stdin.send(text.encode() + b"\n")  # type: ignore[union-attr]

    def _message(line: bytes) -> Any:
        try:
            return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
        except ValueError as error:
            return error

    async with anyio.create_task_group() as group:
        group.start_soon(listen)
        group.start_soon(tell)
        try:
            yield heard, told
        finally:
            with anyio.CancelScope(shield=True):
                heard.close()
                told.close()
                with contextlib.suppress(ProcessLookupError, OSError):
                    await process.stdin.aclose()
                with anyio.move_on_after(1.0):
                    await process.wait()
                if process.returncode is None:
                    process.kill()
                    await process.wait()
                await process.aclose()
            group.cancel_scope.cancel()
