"""The one thread that computes with tensors, shared by all engines of a process.

OpenMP keeps a team of workers per calling thread. Two teams on the same cores make each other
sleep at every barrier, and each step then takes up to twice as long; so loading, stepping and
scoring all happen here, and the other threads serve, print and wait.
"""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


class ComputeThread:
    """Runs functions one after the other, in order of submission."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def submit(self, function: Callable[[], None]) -> None:
        """Queue a function that handles its own errors; returns at once."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="compute", daemon=True)
                self._thread.start()
                atexit.register(self._stop)  # a thread inside torch must not outlive Python
        self._queue.put(function)

    def call(self, function: Callable[[], T]) -> T:
        """Run a function there and wait for what it returns or raises."""
        if threading.current_thread() is self._thread:
            return function()
        return self.future(function).result()

    def future(self, function: Callable[[], T]) -> Future[T]:
        """Queue a function; its result or exception arrives in the future.

        A future that is cancelled while its function waits in the queue takes it back.
        """
        answer: Future[T] = Future()

        def run() -> None:
            if not answer.set_running_or_notify_cancel():
                return
            try:
                answer.set_result(function())
            except BaseException as error:
                answer.set_exception(error)

        self.submit(run)
        return answer

    def _work(self) -> None:
        while (function := self._queue.get()) is not None:
            function()

    def _stop(self) -> None:
        """Finish what is being computed, and nothing else."""
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join()


compute = ComputeThread()
