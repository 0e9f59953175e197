"""The links of one epoch while they are made: dial the next peer, greet the previous one.

Every epoch has connections of its own, so no byte of an operation that was given up can ever be
taken for one of its successor.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import time

from shoal.collectives.errors import WireError
from shoal.collectives.links import tune
from shoal.collectives.packets import LENGTH, Connect, Link, check_length, pack, unpack

GREETING_SECONDS = 5.0
MOST_STRANGERS = 256
"""Connections that may be open without having said who they are."""


class Greeting:
    """An accepted connection that has not said yet what it is for. Reads not a byte too much."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.until = time.monotonic() + GREETING_SECONDS
        self._data = bytearray()
        self._wanted = LENGTH.size

    def read(self) -> Link | None:
        """The greeting once it is complete. Raises ``OSError`` or :class:`WireError`."""
        while True:
            try:
                piece = self.socket.recv(self._wanted - len(self._data))
            except BlockingIOError:
                return None
            if not piece:
                raise ConnectionResetError("hung up while greeting")
            self._data += piece
            if len(self._data) == LENGTH.size:
                self._wanted += min(check_length(LENGTH.unpack(self._data)[0]), 4096)
            if len(self._data) == self._wanted:
                said = unpack(self._data[LENGTH.size :])
                if not isinstance(said, Link):
                    raise WireError(f"A peer greets with a Link, not {type(said).__name__}.")
                return said


class Linking:
    """One epoch's connections: ``tx`` to the next peer, ``rx`` from the previous, by lane."""

    def __init__(
        self, connect: Connect, *, me: str, token: str, run: str, pacing: int, timeout: float
    ) -> None:
        self.connect = connect
        self.until = time.monotonic() + timeout
        self.rx: dict[int, socket.socket] = {}
        self.tx: dict[int, socket.socket] = {}
        self.dialing: dict[int, tuple[int, socket.socket]] = {}  # by file number: lane, socket
        self._hello = [
            pack(Link("ring", me, connect.next, connect.epoch, lane).signed(token, run))
            for lane in range(connect.pool)
        ]
        self._pacing = pacing

    def dial(self) -> None:
        """Begin to connect every lane; raises ``OSError`` where that fails at once."""
        address = self.connect.address
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        for lane in range(self.connect.pool):
            connection = socket.socket(family, socket.SOCK_STREAM)
            tune(connection, pacing=self._pacing)
            self.dialing[connection.fileno()] = (lane, connection)
            found = connection.connect_ex((address.host, address.ring))
            if found not in (0, errno.EINPROGRESS):
                raise OSError(found, errno.errorcode.get(found, "?"))

    def dialed(self, number: int) -> None:
        """A dialled connection has come about, or failed: raises ``OSError`` then."""
        lane, connection = self.dialing.pop(number)
        self.tx[lane] = connection
        found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if found:
            raise OSError(found, errno.errorcode.get(found, "?"))
        sent = connection.send(self._hello[lane])
        if sent < len(self._hello[lane]):
            raise OSError(errno.EPIPE, "no room for a greeting")

    def accepts(self, link: Link) -> bool:
        """Whether a greeting is for this epoch and lane, from the peer it must come from."""
        return (
            link.sender == self.connect.previous
            and link.epoch == self.connect.epoch
            and 0 <= link.lane < self.connect.pool
            and link.lane not in self.rx
        )

    @property
    def complete(self) -> bool:
        """Whether all lanes stand in both directions."""
        return len(self.tx) == len(self.rx) == self.connect.pool

    def close(self) -> None:
        """Hang up everywhere."""
        for connection in (
            *self.rx.values(),
            *self.tx.values(),
            *(connection for _, connection in self.dialing.values()),
        ):
            with contextlib.suppress(OSError):
                connection.close()
