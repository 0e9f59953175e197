"""The one thread that computes with tensors, shared by all engines of a process.

OpenMP keeps a team of workers per calling thread. Two teams on the same cores make each other
sleep at every barrier, and each step then takes up to twice as long; so loading, stepping and
scoring all happen here, and the other threads serve, print and wait. The team of a thread that has
computed, such as one on which a model was loaded, is sent home (:func:`dismiss`).
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")


class ComputeThread:
    """Runs functions one after the other, in order of submission, on ``thread``."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def submit(self, function: Callable[[], None]) -> None:
        """Queue a function that handles its own errors; returns at once."""
        with self._lock:
            if self.thread is None:
                self.thread = threading.Thread(target=self._work, name="compute", daemon=True)
                self.thread.start()
                atexit.register(self._stop)  # a thread inside torch must not outlive Python
        self._queue.put(function)

    def call(self, function: Callable[[], T]) -> T:
        """Run a function there and wait for what it returns or raises."""
        if threading.current_thread() is self.thread:
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
        if self.thread is not None:
            self.thread.join()


compute = ComputeThread()


def dismiss() -> None:
    """End the OpenMP workers of the calling thread, which come again when it computes again.

    Does nothing on the compute thread, and where torch brings no OpenMP 5 library of its own.
    """
    library = _openmp()
    if library is not None and threading.current_thread() is not compute.thread:
        library.omp_pause_resource_all(1)  # softly: settings stay


@functools.cache
def _openmp() -> ctypes.CDLL | None:
    """The library that torch's loops run on, GNU's, Intel's or LLVM's."""
    folder = Path(torch.__file__).parent / "lib"
    for path in (path for name in ("gomp", "iomp", "omp") for path in folder.glob(f"lib{name}*")):
        library = ctypes.CDLL(str(path))
        if hasattr(library, "omp_pause_resource_all"):
            return library
    return None
