"""One thread's waiting: files that it watches, and what other threads ask it to do."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections import deque
from collections.abc import Callable

Handler = Callable[[int], None]
READABLE, WRITABLE = select.EPOLLIN, select.EPOLLOUT
BROKEN = select.EPOLLERR | select.EPOLLHUP


class Loop:
    """All but :meth:`request` belongs to the thread that calls :meth:`turn`."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._requests: deque[Callable[[], None]] = deque()
        self._ended = False
        self._lock = threading.Lock()  # of the end: no request may come after it
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self.watch(self._wake, self._on_wake)

    def watch(self, number: int, handler: Handler, events: int = READABLE) -> None:
        """Call ``handler(events)`` whenever this file has one of these events."""
        self._handlers[number] = handler
        self._poll.register(number, events)

    def change(self, number: int, events: int) -> None:
        """Watch for other events from now on."""
        self._poll.modify(number, events)

    def unwatch(self, number: int) -> None:
        """No more; nothing where it is not watched."""
        if self._handlers.pop(number, None) is not None:
            with contextlib.suppress(OSError, ValueError):
                self._poll.unregister(number)

    def request(self, action: Callable[[], None]) -> bool:
        """Have the loop's thread do this soon, from any thread; False where it has ended."""
        with self._lock:
            if self._ended:
                return False
            self._requests.append(action)
            os.eventfd_write(self._wake, 1)
            return True

    def turn(self, seconds: float) -> None:
        """Wait that long at most, and handle what has come."""
        for number, events in self._poll.poll(seconds):
            handler = self._handlers.get(number)
            if handler is not None:
                handler(events)

    def end(self, before: Callable[[], None]) -> None:
        """Take no more requests; ``before`` runs ere :meth:`request` says so. Do those left."""
        self._poll.close()
        with self._lock:
            before()
            self._ended = True
            os.close(self._wake)
        for action in self._requests:
            with contextlib.suppress(OSError, ValueError):
                action()

    def _on_wake(self, events: int) -> None:
        os.eventfd_read(self._wake)
        while self._requests:
            self._requests.popleft()()
