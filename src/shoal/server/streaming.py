"""Answers on their way to a client, and the end of work nobody waits for any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request as HTTPRequest
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from shoal.core.errors import ShoalError
from shoal.core.protocols import Completion, Delta, OnDelta
from shoal.server.errors import ApiError, from_completion, from_engine
from shoal.server.shapes import Shape

T = TypeVar("T")

Work = Callable[[OnDelta], Coroutine[Any, Any, list[Completion]]]
"""What makes completions and tells of text on the way."""


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

    def __init__(self, work: Work) -> None:
        self._deltas: asyncio.Queue[Delta | None] = asyncio.Queue()
        self._first: list[Delta | None] = []
        self.task = asyncio.create_task(work(self._deltas.put_nowait))
        self.task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[list[Completion]]) -> None:
        self._deltas.put_nowait(None)
        if not task.cancelled():
            task.exception()  # seen, also where nobody listens any more

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

    def __init__(self, live: Live, shape: Shape) -> None:
        super().__init__(
            _events(live, shape),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )
        self._live = live

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._live.task.cancel()


async def _events(live: Live, shape: Shape) -> AsyncIterator[bytes]:
    for answer in shape.opening():
        yield shape.event(answer)
    async for delta in live.deltas():
        if delta.text:
            for answer in shape.piece(delta.index, delta.text):
                yield shape.event(answer)
    try:
        completions = await live.task
        for completion in completions:
            if completion.error is not None:
                raise from_completion(completion)
        for index, completion in enumerate(completions):
            for answer in shape.ending(index, completion):
                yield shape.event(answer)
        for answer in shape.closing(completions):
            yield shape.event(answer)
    except (ApiError, ShoalError) as error:  # too late for a status: the body has begun
        yield shape.failure(error if isinstance(error, ApiError) else from_engine(error))
    if end := shape.end():
        yield end
