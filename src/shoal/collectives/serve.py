"""The master's shell: sockets, heartbeats and a journal around the pure ``step``.

One asyncio task a peer; all decisions are in :mod:`shoal.collectives.master`. A peer that was
silent for ``peer_timeout`` is dropped like one that hung up. The journal (run id, peers and
revisions) is rewritten whole when they change, so a master that is started again with it takes up
the same run: its peers come back, and the shared state is elected anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from shoal.collectives.errors import Refused, WireError
from shoal.collectives.events import (
    Event,
    Joined,
    Kick,
    Left,
    MasterState,
    Note,
    Said,
    Send,
    Waited,
)
from shoal.collectives.group import Group
from shoal.collectives.hello import NONCE, PROOF, check_answer, greeting
from shoal.collectives.master import step
from shoal.collectives.packets import (
    LENGTH,
    Address,
    Heartbeat,
    Kicked,
    Leave,
    Observe,
    Register,
    Registered,
    Status,
    check_length,
    pack,
    unpack,
)
from shoal.collectives.status import describe
from shoal.core.errors import InputError
from shoal.core.files import write_text
from shoal.core.ids import new_id
from shoal.core.log import EventLog
from shoal.core.records import from_json, to_json

PORT = 48148
HELLO_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Journal:
    """What a master needs to take up a run: peers and next revision by group."""

    run: str
    peers: dict[int, tuple[str, ...]] = field(default_factory=dict)
    revisions: dict[int, int] = field(default_factory=dict)


class Master:
    """A master that listens. ``port`` 0 takes a free one; ``address`` is known once it serves.

    Raises :class:`InputError` where it cannot listen or the journal cannot be read.
    """

    def __init__(
        self,
        token: str,
        *,
        host: str = "127.0.0.1",
        port: int = PORT,
        heartbeat: float = 1.0,
        peer_timeout: float = 10.0,
        journal: Path | None = None,
        log: EventLog | None = None,
    ) -> None:
        if not token:
            raise InputError("A master needs a shared token: give one that is not empty.")
        self._token, self._host, self._port = token, host, port
        self._heartbeat, self._timeout = heartbeat, peer_timeout
        self._path, self._log = journal, log
        self._journal = _read_journal(journal)
        self.run = self._journal.run
        self._state = MasterState(
            {
                group: Group(next_revision=revision, expected=frozenset(self._peers(group)))
                for group, revision in self._journal.revisions.items()
            }
        )
        self._writers: dict[str, asyncio.StreamWriter] = {}
        self._heard: dict[str, float] = {}
        self._server: asyncio.Server | None = None
        self._timer: asyncio.Task[None] | None = None

    def _peers(self, group: int) -> tuple[str, ...]:
        return self._journal.peers.get(group, ())

    @property
    def address(self) -> str:
        """``host:port`` for peers."""
        assert self._server is not None, "the master is not started"
        return f"{self._host}:{self._server.sockets[0].getsockname()[1]}"

    @property
    def state(self) -> MasterState:
        """What the master knows, at this instant."""
        return self._state

    async def start(self) -> None:
        """Begin to listen."""
        try:
            self._server = await asyncio.start_server(self._serve, self._host, self._port)
        except OSError as error:
            raise InputError(
                f"The master cannot listen on {self._host}:{self._port}: {error.strerror}; "
                "give another port."
            ) from error
        self._timer = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Stop listening and hang up; peers raise :class:`MasterLost`, the journal stays."""
        if self._timer is not None:
            self._timer.cancel()
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers.values()):
            writer.close()
        self._writers.clear()

    async def _watch(self) -> None:
        """Heartbeats to all, and an end to whoever was silent for too long."""
        looked = time.monotonic()
        until = looked + self._timeout
        while True:
            await asyncio.sleep(self._heartbeat / 2)
            now = time.monotonic()
            if now - looked > 2 * self._heartbeat:  # we were stopped: that is not their silence
                self._heard = {peer: at + now - looked for peer, at in self._heard.items()}
            looked = now
            if until and now > until:
                until = 0.0
                self._feed(Waited())
            for peer, writer in list(self._writers.items()):
                if now - self._heard[peer] > self._timeout:
                    self._drop(peer, f"it was silent for {self._timeout:g} s")
                else:
                    _write(writer, Heartbeat())

    def _drop(self, peer: str, reason: str) -> None:
        writer = self._writers.pop(peer, None)
        self._heard.pop(peer, None)
        if writer is not None:
            _write(writer, Kicked(f"The master gave this peer up: {reason}."))
            writer.close()
        self._feed(Left(peer, reason))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection from hello to hang-up."""
        peer, reason = "", "its connection broke"
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                await self._greet(reader, writer)
                first = await _packet(reader)
            if isinstance(first, Observe):
                writer.write(pack(Status(describe(self.run, self._state))))
                await writer.drain()
                return
            peer = self._register(first, writer)
            while peer in self._writers:
                packet = await _packet(reader)
                if peer in self._heard:
                    self._heard[peer] = time.monotonic()
                if isinstance(packet, Leave):
                    reason = "it left"
                    break
                if not isinstance(packet, Heartbeat):
                    self._feed(Said(peer, packet))
        except WireError as error:
            reason = f"it sent no packet of this protocol: {error}"
        except (Refused, TimeoutError, OSError, asyncio.IncompleteReadError) as error:
            if isinstance(error, Refused):
                writer.write(pack(Kicked(str(error))))
        finally:
            if self._writers.get(peer) is writer:
                del self._writers[peer], self._heard[peer]
                self._feed(Left(peer, reason))
            writer.close()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = greeting()
        writer.write(hello)
        answer = await reader.readexactly(NONCE + PROOF)
        try:
            writer.write(check_answer(answer, hello, self._token))
        except Refused:  # told nothing: it may be anybody
            writer.transport.abort()
            raise

    def _register(self, first: object, writer: asyncio.StreamWriter) -> str:
        if not isinstance(first, Register):
            raise Refused(f"A peer registers first, not {type(first).__name__}.")
        if first.run and first.run != self.run:
            raise Refused(
                f"This master serves run {self.run}, but the peer belongs to run {first.run}: "
                "start the master with the journal of that run."
            )
        peer = first.peer or new_id()
        if peer in self._writers:  # its old connection is dead and nobody has noticed yet
            self._drop(peer, "it came back on another connection")
        host = first.host or writer.get_extra_info("peername")[0]
        self._writers[peer], self._heard[peer] = writer, time.monotonic()
        writer.write(pack(Registered(peer, self.run, self._heartbeat, self._timeout)))
        address = Address(host, first.ring, first.state, first.bandwidth)
        self._feed(Joined(peer, first.group, address, first.pool))
        return peer

    def _feed(self, event: Event) -> None:
        self._state, out = step(self._state, event)
        for item in out:
            if isinstance(item, Note):
                if self._log is not None:
                    self._log.append(item.kind, item.body)
            elif isinstance(item, Send):
                if item.peer in self._writers:
                    _write(self._writers[item.peer], item.packet)
            elif isinstance(item, Kick) and item.peer in self._writers:
                writer = self._writers.pop(item.peer)
                del self._heard[item.peer]
                _write(writer, Kicked(item.reason))
                writer.close()
        self._keep_journal()

    def _keep_journal(self) -> None:
        if self._path is None:
            return
        groups = self._state.groups
        found = Journal(
            self.run,
            {n: (*sorted(g.members), *sorted(g.expected)) for n, g in groups.items()},
            {number: group.next_revision for number, group in groups.items()},
        )
        if found != self._journal and groups:  # when all have left, a restart may still find them
            self._journal = found
            write_text(self._path, to_json(found))


def _read_journal(path: Path | None) -> Journal:
    if path is None or not path.exists():
        return Journal(new_id())
    try:
        return from_json(Journal, path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable journal of a master.") from error


def _write(writer: asyncio.StreamWriter, packet: object) -> None:
    """Send, unless the connection is going down: its reader will see that and say so."""
    if not writer.is_closing():
        writer.write(pack(packet))


async def _packet(reader: asyncio.StreamReader) -> Any:
    length = check_length(LENGTH.unpack(await reader.readexactly(LENGTH.size))[0])
    return unpack(await reader.readexactly(length))


class MasterThread:
    """A master on a thread of its own, for programs that are master and peer at once."""

    def __init__(self, token: str, **options: Any) -> None:
        options.setdefault("port", 0)
        self._make: Callable[[], Master] = lambda: Master(token, **options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.master: Master

    def __enter__(self) -> Master:
        self.master = self._make()
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self.master.start(), self._loop).result()
        except BaseException:
            self._stop()
            raise
        return self.master

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._stop()

    async def _end(self) -> None:
        await self.master.close()
        mine = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not mine]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
