"""What happens before an endpoint sees a request: who asks, how much is sent, how long it took."""

from __future__ import annotations

import asyncio
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shoal.server.errors import ApiError, error_response
from shoal.server.metrics import Meters
from shoal.server.tenants import Keyring, token_of

BODY_SECONDS = 60.0
OPEN_PATHS = frozenset({"/health"})
FILES_PATH = "/v1/files"
NOBODY = "nobody"
"""The label of requests without a valid key."""


class Metered:
    """Counts every answer by tenant, route and status."""

    def __init__(self, app: ASGIApp, meters: Meters) -> None:
        self._app = app
        self._meters = meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 499

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note)
        finally:
            tenant = scope.get("state", {}).get("tenant")
            self._meters.answered(
                tenant.name if tenant else NOBODY,
                getattr(scope.get("route"), "path", "other"),
                status,
                time.perf_counter() - began,
            )


class Authenticated:
    """Finds the tenant before the body is read; without a valid key the answer is 401."""

    def __init__(self, app: ASGIApp, keyring: Keyring) -> None:
        self._app = app
        self._keyring = keyring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            given = next((v for k, v in scope["headers"] if k == b"authorization"), b"")
            tenant = self._keyring.tenant(token_of(given.decode("utf-8", "surrogateescape")))
            if tenant is None:
                error = ApiError(401, "This server wants a valid API key.", code="invalid_api_key")
                await error_response(error)(scope, receive, send)
                return
            scope.setdefault("state", {})["tenant"] = tenant
        await self._app(scope, receive, send)


class BodyLimit:
    """Reads each body whole before the app sees it; answers 413 or 408 in the app's stead."""

    def __init__(self, app: ASGIApp, max_bytes: int, max_file_bytes: int) -> None:
        self._app = app
        self._max = max_bytes
        self._max_file = max_file_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most = self._max_file if scope["path"] == FILES_PATH else self._max
        try:
            async with asyncio.timeout(BODY_SECONDS):
                whole = await _read(receive, most)
        except TimeoutError:
            error = ApiError(408, f"The body did not arrive within {BODY_SECONDS:g} s.")
            await error_response(error)(scope, receive, send)
            return
        if whole is None:
            error = ApiError(413, f"The body is larger than {most:,} bytes: send less at once.")
            await error_response(error)(scope, receive, send)
            return
        pending: list[Message] = [whole]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self._app(scope, replay, send)


async def _read(receive: Receive, most: int) -> Message | None:
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
        if size <= most:
            body += piece
        if not message.get("more_body") or size > 4 * most:
            break
    if size > most:
        return None
    return {"type": "http.request", "body": bytes(body), "more_body": False}
