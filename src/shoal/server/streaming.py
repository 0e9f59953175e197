"""Answers on their way to a client, and the end of work nobody waits for any more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, TypeVar

from fastapi import Request as HTTPRequest
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from shoal.core.errors import ShoalError
from shoal.core.protocols import Completion, Delta, Engine, Request
from shoal.server.errors import ApiError, error_body, from_engine
from shoal.server.translate import Shape

T = TypeVar("T")


class ClientGone(Exception):
    """The client closed the connection before its answer was ready."""


async def unless_gone(http: HTTPRequest, work: Coroutine[Any, Any, T]) -> T:
    """Await ``work``; cancel it and raise :class:`ClientGone` when the client disconnects."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(http))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(http: HTTPRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


class Live:
    """A group of requests being answered."""

    def __init__(self, engine: Engine, requests: Sequence[Request]) -> None:
        self._deltas: asyncio.Queue[Delta | None] = asyncio.Queue()
        self._first: list[Delta | None] = []
        self.task = asyncio.create_task(engine.generate(requests, self._deltas.put_nowait))
        self.task.add_done_callback(lambda _: self._deltas.put_nowait(None))

    async def begin(self) -> list[Completion] | None:
        """Wait for the first text; where the group ended without any, its completions."""
        self._first.append(await self._deltas.get())
        return None if self._first[0] is not None else await self.task

    async def deltas(self) -> AsyncIterator[Delta]:
        """All text, in the order of its making."""
        while (delta := self._first.pop() if self._first else await self._deltas.get()) is not None:
            yield delta


class EventStream(StreamingResponse):
    """Server-sent events; whatever ends the response, cancels what is still being generated."""

    def __init__(self, live: Live, shape: Shape, *, count: int, include_usage: bool) -> None:
        super().__init__(
            _events(live, shape, count=count, include_usage=include_usage),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
        self._live = live

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._live.task.cancel()


async def _events(
    live: Live, shape: Shape, *, count: int, include_usage: bool
) -> AsyncIterator[bytes]:
    for index in range(count):
        if (opening := shape.opening(index)) is not None:
            yield _event(opening.model_dump_json())
    async for delta in live.deltas():
        if delta.text:
            yield _event(shape.piece(delta.index, delta.text).model_dump_json())
    try:
        completions = await live.task
        for index, completion in enumerate(completions):
            if completion.error is not None:
                raise ApiError(400, completion.error)
            yield _event(shape.ending(index, completion).model_dump_json())
        if include_usage:
            yield _event(shape.counts(completions).model_dump_json())
    except (ApiError, ShoalError) as error:  # too late for a status: the body has begun
        api = error if isinstance(error, ApiError) else from_engine(error)
        yield _event(json.dumps(error_body(api)))
    yield _event("[DONE]")


def _event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()
