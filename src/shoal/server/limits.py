"""A bound on the size of bodies and on the time they take to arrive."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shoal.server.errors import ApiError, error_response

BODY_SECONDS = 60.0


class BodyLimit:
    """Reads each body whole before the app sees it; answers 413 or 408 in the app's stead."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(BODY_SECONDS):
                whole = await self._read(receive)
        except TimeoutError:
            error = ApiError(408, f"The body did not arrive within {BODY_SECONDS:g} s.")
            await error_response(error)(scope, receive, send)
            return
        if whole is None:
            error = ApiError(
                413, f"The body is larger than {self._max:,} bytes: send less at once."
            )
            await error_response(error)(scope, receive, send)
            return
        pending: list[Message] = [whole]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self._app(scope, replay, send)

    async def _read(self, receive: Receive) -> Message | None:
        """The body as one message; None where it is too large.

        A body that is a little too large is read to its end, so that its sender hears why.
        """
        body = bytearray()
        size = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return message
            piece = message.get("body", b"")
            size += len(piece)
            if size <= self._max:
                body += piece
            if not message.get("more_body") or size > 4 * self._max:
                break
        if size > self._max:
            return None
        return {"type": "http.request", "body": bytes(body), "more_body": False}
