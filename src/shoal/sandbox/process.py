"""A session whose code runs in a process of its own: one worker, JSON lines, limits from outside.

Nothing the worker says is trusted. A message that cannot be read, or is longer than allowed, ends
the session; so does a limit. Whatever ends it kills the whole tree.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from shoal.core.errors import InputError, ShoalError
from shoal.sandbox.outcome import Outcome, Status
from shoal.sandbox.policy import Callback, Permit, Policy, by_alias, reads_only
from shoal.sandbox.watch import load_of

TICK = 0.05
"""Seconds between two looks at memory and processes."""

START_SECONDS = 10.0
AROUND = 3
"""Processes of the tier itself in a session's tree, beside the worker's own."""


class SessionOver(ShoalError):
    """A session that has ended and cannot run code any more."""


class Worker(Protocol):
    """A started worker: what its tier gives to talk to it and to end it."""

    isolation: str
    pid: int
    stdin: int
    stdout: int
    stderr: int

    def kill(self) -> None:
        """End all its processes, and free what belongs to it."""
        ...

    def died_of(self) -> Status:
        """Why it went away, as far as its tier can tell."""
        ...


class _Ended(Exception):
    """A run that a limit or nonsense has ended."""

    def __init__(self, status: Status, why: str) -> None:
        super().__init__(why)
        self.status: Status = status


class ProcessSession:
    """See :class:`shoal.sandbox.Session`."""

    def __init__(self, worker: Worker, policy: Policy) -> None:
        self.policy = policy
        self.isolation = worker.isolation
        self._worker = worker
        self._over = ""
        self._lines = bytearray()
        self._printed = bytearray()
        self._looked = 0.0
        self._started = False
        self._calls = self._refused = 0
        self._selector = selectors.DefaultSelector()
        for fd, name in ((worker.stdout, "line"), (worker.stderr, "printed")):
            os.set_blocking(fd, False)
            self._selector.register(fd, selectors.EVENT_READ, name)
        os.set_blocking(worker.stdin, False)
        try:
            said = self._receive(time.monotonic() + START_SECONDS)
            if said.get("kind") != "ready":
                raise _Ended("protocol", f"the worker began with {said!r}")
            self._started = True
        except _Ended as ended:
            printed = self._printed.decode(errors="replace").strip()
            self.close()
            raise SessionOver(f"The sandbox did not start: {ended}. {printed}".strip()) from ended

    def run(
        self, code: str, tools: Sequence[Callback] = (), permit: Permit = reads_only
    ) -> Outcome:
        """See :meth:`shoal.sandbox.Session.run`."""
        self._check_open()
        began = time.monotonic()
        aliases = by_alias(tools)
        named = {tool.spec.name: tool for tool in tools}
        message = {
            "kind": "run",
            "code": code,
            "tools": {alias: tool.spec.name for alias, tool in aliases.items()},
            "most": self.policy.message_bytes - 1024,
        }
        self._printed.clear()
        self._calls = self._refused = 0
        status: Status = "ok"
        value, error, line = None, "", None
        try:
            said = self._ask(message, named, permit, began + self.policy.wall_seconds)
            value = said.get("value")
            if said["kind"] == "raised":
                status, error = "error", str(said.get("error", ""))
                line = where if isinstance(where := said.get("line"), int) else None
        except _Ended as ended:
            status, error = ended.status, str(ended)
            self._end(error)
        return Outcome(
            status,
            value,
            self._printed[: self.policy.output_bytes].decode(errors="replace"),
            error,
            line,
            self._calls,
            self._refused,
            time.monotonic() - began,
            self.isolation,
        )

    def put(self, name: str, data: bytes) -> None:
        """Write a file in the session's folder."""
        self._exchange({"kind": "put", "name": _plain(name), "data": data.hex()})

    def get(self, name: str) -> bytes:
        """Read a file of the session's folder; what code wrote there is not to be trusted."""
        most = self.policy.message_bytes // 2 - 1024
        said = self._exchange({"kind": "get", "name": _plain(name), "most": most})
        try:
            return bytes.fromhex(said["value"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"The session gave no file {name!r}.") from error

    def close(self) -> None:
        """End the session and all its processes; may be called again."""
        self._end("it was closed")

    # -- what a run is made of ----------------------------------------------------------------

    def _exchange(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        self._check_open()
        self._printed.clear()
        try:
            said = self._ask(message, {}, reads_only, time.monotonic() + self.policy.wall_seconds)
        except _Ended as ended:
            self._end(str(ended))
            raise SessionOver(f"The session ended: {ended}.") from ended
        if said["kind"] == "raised":
            raise InputError(f"The session refused {message['name']!r}: {said.get('error')}.")
        return said

    def _ask(
        self,
        message: Mapping[str, Any],
        named: Mapping[str, Callback],
        permit: Permit,
        deadline: float,
    ) -> Mapping[str, Any]:
        """Send a message, serve the tool calls it leads to, and return the last answer."""
        self._send(message, deadline)
        while True:
            said = self._receive(deadline)
            match said.get("kind"):
                case "call":
                    self._send(self._called(said, named, permit), deadline)
                case "done" | "raised":
                    self._drain()
                    return said
                case _:
                    raise _Ended("protocol", "the worker sent a message of no known kind")

    def _called(
        self, said: Mapping[str, Any], named: Mapping[str, Callback], permit: Permit
    ) -> dict[str, Any]:
        """Make a tool call outside; permission, count and size are decided here."""
        name, arguments = said.get("name"), said.get("arguments")
        tool = named.get(name) if isinstance(name, str) else None
        if tool is None or not isinstance(arguments, dict):
            self._refused += 1
            return {"error": f"there is no tool {str(name)[:80]!r} here", "refused": True}
        if self._calls >= self.policy.calls:
            self._refused += 1
            return {"error": f"{self.policy.calls} calls are all this run may make",
                    "refused": True}  # fmt: skip
        why = permit(tool.spec, arguments)
        if why is not None:
            self._refused += 1
            return {"error": why, "refused": True}
        self._calls += 1
        try:
            value = tool.fn(**arguments)
            size = len(json.dumps(value))
        except Exception as error:  # the code may do better knowing what went wrong
            return {"error": f"{tool.spec.name} failed: {type(error).__name__}: {error}"[:2000]}
        if size > self.policy.message_bytes:
            return {"error": f"the answer of {tool.spec.name} has {size:,} bytes, too many here"}
        return {"value": value}

    def _send(self, message: Mapping[str, Any], deadline: float) -> None:
        data = memoryview(json.dumps(message).encode() + b"\n")
        while data:
            self._look(deadline)
            try:
                data = data[os.write(self._worker.stdin, data) :]
            except BlockingIOError:
                self._read(TICK)  # it may wait for us to take what it printed
            except OSError:
                raise _Ended(self._worker.died_of(), "the worker is gone") from None

    def _receive(self, deadline: float) -> Mapping[str, Any]:
        while (end := self._lines.find(b"\n")) < 0:
            if len(self._lines) > self.policy.message_bytes:
                raise _Ended("protocol", "the worker sent more than a message may hold")
            self._look(deadline)
            self._read(min(TICK, max(0.0, deadline - time.monotonic())))
        text = bytes(self._lines[:end])
        del self._lines[: end + 1]
        try:
            said = json.loads(text)
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict):
            raise _Ended("protocol", "the worker sent what is no message")
        return said

    def _read(self, seconds: float) -> None:
        for key, _ in self._selector.select(seconds):
            try:
                data = os.read(key.fd, 1 << 16)
            except BlockingIOError:
                continue
            if key.data == "line" and not data:
                self._drain()
                raise _Ended(self._worker.died_of(), "the worker is gone")
            if not data:
                self._selector.unregister(key.fd)
            elif key.data == "line":
                self._lines += data
            else:
                self._printed += data
                if len(self._printed) > self.policy.output_bytes:
                    most = self.policy.output_bytes
                    raise _Ended("output", f"more than {most:,} bytes were printed")

    def _drain(self) -> None:
        """Take what was printed before the worker's last message."""
        most = self.policy.output_bytes
        with contextlib.suppress(OSError):
            while data := os.read(self._worker.stderr, 1 << 16):
                self._printed += data
                if len(self._printed) > most:
                    raise _Ended("output", f"more than {most:,} bytes were printed")

    def _look(self, deadline: float) -> None:
        """End the run where its time is up or its tree holds too much."""
        now = time.monotonic()
        if now >= deadline:
            raise _Ended("timeout", f"{self.policy.wall_seconds:g} seconds were not enough")
        if now - self._looked < TICK or not self._started:
            return  # before it has started, a child may still be a copy of this process
        self._looked = now
        load = load_of(self._worker.pid)
        if load.resident > self.policy.memory_bytes:
            raise _Ended("memory", f"the session holds {load.resident >> 20} MiB of memory")
        if load.tasks > self.policy.processes + 1 + AROUND:
            raise _Ended("processes", f"the session has {load.tasks} processes and threads")

    def _check_open(self) -> None:
        if self._over:
            raise SessionOver(f"The session has ended ({self._over}): open another one.")

    def _end(self, why: str) -> None:
        if not self._over:
            self._over = why
            self._selector.close()
            self._worker.kill()


def _plain(name: str) -> str:
    """A name of a file in the session's own folder; raises :class:`InputError` for others."""
    if not name or name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise InputError(f"{name!r} is no file of the session's folder: give a plain name.")
    return name
