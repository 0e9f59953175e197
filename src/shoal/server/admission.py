"""Places to be answered in: how many requests run, how many wait, who is next, who is sent away.

A free place goes to the waiting tenant with the fewest requests running, the longest waiting
first among equals, so that one tenant's queue does not hold up the others.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from shoal.server.errors import ApiError
from shoal.server.tenants import Tenant

MAX_RETRY_SECONDS = 60
_WEIGHT = 0.1  # of the newest request in the mean time a request takes


@dataclass(slots=True, eq=False)
class _Waiter:
    tenant: Tenant
    turn: asyncio.Future[None]


class Gate:
    """Admits requests of one event loop.

    max_running, max_waiting  over all tenants; a tenant's own limits are its own
    seconds                   a request may take once it is admitted
    """

    def __init__(self, *, max_running: int, max_waiting: int, seconds: float) -> None:
        self.max_running = max_running
        self.max_waiting = max_waiting
        self.seconds = seconds
        self.draining = False
        self._running: Counter[str] = Counter()
        self._waiting: list[_Waiter] = []
        self._timeouts: set[asyncio.Timeout] = set()
        self._handed_back = False
        self._mean_seconds = 1.0

    @property
    def running(self) -> int:
        return self._running.total()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def count(self, tenant: str) -> tuple[int, int]:
        """Requests of a tenant that run and that wait."""
        return self._running[tenant], sum(one.tenant.name == tenant for one in self._waiting)

    @asynccontextmanager
    async def place(self, tenant: Tenant) -> AsyncIterator[None]:
        """Wait for a place and hold it.

        Raises :class:`ApiError`: 429 where too many wait already, 503 while the server stops,
        408 where the work inside takes too long.
        """
        await self._enter(tenant)
        began = time.monotonic()
        try:
            async with asyncio.timeout(self.seconds) as timeout:
                self._timeouts.add(timeout)
                if self._handed_back:
                    timeout.reschedule(0)
                yield
        except TimeoutError:
            if self._handed_back:
                raise _stopping() from None
            message = f"The request took longer than {self.seconds:g} s: ask for less at once."
            raise ApiError(408, message, code="timeout") from None
        finally:
            self._timeouts.discard(timeout)
            taken = time.monotonic() - began
            self._mean_seconds += _WEIGHT * (taken - self._mean_seconds)
            self._leave(tenant)

    def drain(self) -> None:
        """Admit nobody any more; who waits already still gets a turn."""
        self.draining = True

    def hand_back(self) -> None:
        """End what runs or waits: each caller gets a 503 and may ask another server."""
        self.draining = self._handed_back = True
        for timeout in self._timeouts:
            if not timeout.expired():
                timeout.reschedule(0)
        for waiter in self._waiting:
            if not waiter.turn.done():
                waiter.turn.set_exception(_stopping())

    async def _enter(self, tenant: Tenant) -> None:
        if self.draining:
            raise _stopping()
        if self._fits(tenant):
            self._running[tenant.name] += 1
            return
        mine = sum(one.tenant.name == tenant.name for one in self._waiting)
        if len(self._waiting) >= self.max_waiting or (
            tenant.max_waiting is not None and mine >= tenant.max_waiting
        ):
            whose = "The server" if len(self._waiting) >= self.max_waiting else "This key"
            raise ApiError(
                429,
                f"{whose} has too many requests waiting already: try again later.",
                code="rate_limit_exceeded",
                retry_after=self._retry_after(),
            )
        waiter = _Waiter(tenant, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        try:
            await waiter.turn
        except BaseException:
            turn = waiter.turn
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._leave(tenant)  # the turn came at the moment of giving up
            raise
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)

    def _fits(self, tenant: Tenant) -> bool:
        mine = tenant.max_running
        return self.running < self.max_running and (
            mine is None or self._running[tenant.name] < mine
        )

    def _leave(self, tenant: Tenant) -> None:
        self._running[tenant.name] -= 1
        if not self._running[tenant.name]:
            del self._running[tenant.name]
        ready = [one for one in self._waiting if not one.turn.done() and self._fits(one.tenant)]
        if ready:
            chosen = min(ready, key=lambda one: self._running[one.tenant.name])
            self._waiting.remove(chosen)
            self._running[chosen.tenant.name] += 1
            chosen.turn.set_result(None)

    def _retry_after(self) -> int:
        """Whole seconds until the queue has moved on, going by the requests so far."""
        rounds = (self.waiting + 1) / self.max_running
        return max(1, min(MAX_RETRY_SECONDS, math.ceil(self._mean_seconds * rounds)))


def _stopping() -> ApiError:
    return ApiError(
        503, "The server is stopping: ask again or ask another.", code="stopping", retry_after=1
    )
