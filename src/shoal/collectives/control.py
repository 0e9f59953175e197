"""A peer's connection to its master: packets in both directions, heartbeats, silence."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from typing import Any

from shoal.collectives.errors import MasterLost
from shoal.collectives.loop import READABLE, WRITABLE, Loop
from shoal.collectives.packets import Frames, Heartbeat, Registered, pack

READ = 64 << 10


class Control:
    """``act(packet)`` takes what the master says. Runs on the loop's thread."""

    def __init__(
        self,
        loop: Loop,
        connection: socket.socket,
        frames: Frames,
        registered: Registered,
        act: Callable[[Any], None],
    ) -> None:
        self._loop, self._socket, self._frames, self._act = loop, connection, frames, act
        self.heartbeat, self.timeout = registered.heartbeat, registered.timeout
        self._outgoing = bytearray()
        self._armed = False
        self._heard = self._beaten = time.monotonic()
        connection.setblocking(False)
        loop.watch(connection.fileno(), self._on_events)

    @property
    def drained(self) -> bool:
        """Whether everything said has gone out."""
        return not self._outgoing

    def say(self, packet: object) -> None:
        """Send a packet, now or as soon as there is room."""
        self._outgoing += pack(packet)
        self._flush()

    def keep_alive(self, now: float, stopped: float) -> None:
        """Say that this peer is alive; raises :class:`MasterLost` where the master is not.

        ``stopped`` seconds of the silence are this peer's own.
        """
        self._heard += stopped
        if now - self._beaten >= self.heartbeat:
            self._beaten = now
            self.say(Heartbeat())
        if now - self._heard > self.timeout:
            raise MasterLost(
                f"The master was silent for {self.timeout:g} s; what this peer holds is intact."
            )

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _flush(self) -> None:
        if self._outgoing:
            with contextlib.suppress(BlockingIOError):
                sent = self._socket.send(self._outgoing)
                del self._outgoing[:sent]
        if bool(self._outgoing) != self._armed:
            self._armed = bool(self._outgoing)
            self._loop.change(self._socket.fileno(), READABLE | (WRITABLE if self._armed else 0))

    def _on_events(self, events: int) -> None:
        if events & WRITABLE:
            self._flush()
        if not events & ~WRITABLE:
            return
        try:
            data = self._socket.recv(READ)
        except BlockingIOError:
            return
        if not data:
            raise MasterLost(
                "The master has closed the connection; what this peer holds is intact: "
                "connect again once it is back."
            )
        self._heard = time.monotonic()
        for packet in self._frames.feed(data):
            self._act(packet)
