"""The two ends of one connection of the ring: frames of many operations, without blocking.

A frame is one block: sequence number, length, bytes. A frame whose operation has not begun here
parks its connection until it does; one that announces more than fits closes it, before anything
is allocated.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Callable, Mapping

from shoal.collectives.errors import WireError
from shoal.collectives.ring import Lane

HEADER = struct.Struct("!QI")
BURST = 2
"""Blocks sent before others get a turn, so that receiving overlaps with sending."""
BUFFER = 4 << 20
"""Bytes of socket buffers: a round trip of 50 ms at 80 MB/s."""
SO_MAX_PACING_RATE = 47

Done = Callable[[Lane], None]


def tune(connection: socket.socket, *, buffer: int = BUFFER, pacing: int = 0) -> None:
    """Non-blocking, without delay, with large buffers; ``pacing`` caps it to bytes a second."""
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    if pacing:
        connection.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, pacing)


class Sender:
    """The sending end towards the next peer; takes turns between the operations in flight."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.armed = False  # whether it is watched for room
        self._lanes: deque[Lane] = deque()
        self._current: Lane | None = None
        self._views: list[memoryview] = []

    def add(self, lane: Lane) -> None:
        """Let a lane send here."""
        self._lanes.append(lane)

    def pump(self, done: Done) -> bool:
        """Send what can be sent; whether there is more to send now. Raises ``OSError``."""
        for _ in range(BURST):
            if not self._views and not self._next():
                return False
            try:
                sent = self.socket.sendmsg(self._views)
            except BlockingIOError:
                return True
            if not self._advance(sent):
                continue
            lane = self._current
            assert lane is not None
            lane.block_sent()
            self._current = None
            if lane.sent_all:
                self._lanes.remove(lane)
                done(lane)
        return bool(self._views) or any(lane.ready() for lane in self._lanes)

    def _next(self) -> bool:
        for _ in range(len(self._lanes)):
            lane = self._lanes[0]
            self._lanes.rotate(-1)
            if lane.ready():
                block = lane.outgoing()
                self._views = [memoryview(HEADER.pack(lane.seq, len(block))), block]
                self._current = lane
                return True
        return False

    def _advance(self, sent: int) -> bool:
        """Whether the frame is out."""
        while self._views and sent >= len(self._views[0]):
            sent -= len(self._views.pop(0))
        if self._views:
            self._views[0] = self._views[0][sent:]
        return not self._views

    def close(self) -> None:
        """Hang up."""
        self.socket.close()


class Receiver:
    """The receiving end from the previous peer."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.parked = False
        self._head = bytearray(HEADER.size)
        self._head_view = memoryview(self._head)
        self._got = 0
        self._lane: Lane | None = None
        self._body = memoryview(b"")

    def pump(self, lanes: Mapping[int, Lane], received: Done) -> None:
        """Read what is there. ``lanes`` are those that receive here, by sequence number.

        Raises ``OSError`` where the other side hung up and :class:`WireError` for a frame that
        cannot be one.
        """
        while not self.parked:
            try:
                if self._lane is None:
                    got, wanted = self.socket.recv_into(self._head_view[self._got :]), 0
                else:  # the next frame's header comes in the same call
                    wanted = len(self._body)
                    got = self.socket.recvmsg_into([self._body, self._head_view])[0]
            except BlockingIOError:
                return
            if got == 0:
                raise ConnectionResetError("the previous peer hung up")
            if got < wanted:  # nothing more is likely to be there yet
                self._body = self._body[got:]
                return
            if self._lane is not None:
                lane, self._lane, self._got = self._lane, None, 0
                lane.block_received()
                received(lane)
            self._got += got - wanted
            if self._got == HEADER.size:
                self._begin(lanes)

    def resume(self, lanes: Mapping[int, Lane]) -> bool:
        """Try again to find the operation of the frame that is waiting; whether it was found."""
        if self.parked:
            self.parked = False
            self._begin(lanes)
        return not self.parked

    def _begin(self, lanes: Mapping[int, Lane]) -> None:
        seq, length = HEADER.unpack(self._head)
        lane = lanes.get(seq)
        if lane is None:
            self.parked = True
            return
        if not length:
            raise WireError("A block of 0 bytes is announced.")
        self._body, self._lane, self._got = lane.incoming(length), lane, 0

    def close(self) -> None:
        """Hang up."""
        self.parked = True  # ends a pump that is under way
        self.socket.close()
