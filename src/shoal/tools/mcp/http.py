"""An HTTP client for MCP that reads no answer beyond a limit."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from shoal.tools.mcp.stdio import MOST


def bounded_client(most: int = MOST, headers: dict[str, str] | None = None) -> Any:
    """An ``httpx2.AsyncClient`` whose answers have at most ``most`` bytes each.

    A longer one ends as if the connection had broken. Event streams are limited event by event
    by the SDK itself.
    """
    import httpx2

    class Limited(httpx2.AsyncByteStream):
        def __init__(self, stream: Any) -> None:
            self._stream = stream

        async def __aiter__(self) -> AsyncIterator[bytes]:
            read = 0
            async for chunk in self._stream:
                read += len(chunk)
                if read > most:
                    raise httpx2.ReadError(f"the answer has more than {most:,} bytes")
                yield chunk

        async def aclose(self) -> None:
            await self._stream.aclose()

    class Transport(httpx2.AsyncHTTPTransport):
        async def handle_async_request(self, request: Any) -> Any:
            response = await super().handle_async_request(request)
            if "text/event-stream" not in response.headers.get("content-type", ""):
                response.stream = Limited(response.stream)
            return response

    return httpx2.AsyncClient(
        transport=Transport(), timeout=httpx2.Timeout(30.0, read=None), headers=headers
    )
