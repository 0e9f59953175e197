"""What a peer offers others beside its ring: its shared state while syncing, and a bandwidth sink.

Blocking sockets on short-lived threads: each connection serves one request. Both sides show the
token (:class:`shoal.collectives.packets.Link`) before a byte is served.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable

from shoal.collectives.errors import StateError, WireError
from shoal.collectives.packets import LENGTH, Address, Link, check_length, pack, unpack
from shoal.core.errors import InputError

SIZE = struct.Struct("!Q")
OK, BUSY = b"\x01", b"\x02"
BLAST = 1 << 20
SECONDS = 20.0
"""After which a silent other side is given up."""


def listen(host: str, first: int, tries: int = 1024) -> socket.socket:
    """Listen on the first free port from ``first`` on; 0 takes any."""
    for port in range(first, first + tries) if first else (0,):
        listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        if not first:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError:
            listener.close()
            continue
        listener.listen(256)
        return listener
    raise InputError(f"No port from {first} to {first + tries - 1} is free on {host!r}.")


class Service:
    """Accepts connections for one purpose; ``serve(link, connection)`` answers each."""

    def __init__(
        self, purpose: str, host: str, first: int, serve: Callable[[Link, socket.socket], None]
    ) -> None:
        self._purpose, self._serve = purpose, serve
        self._listener = listen(host, first)
        self.port: int = self._listener.getsockname()[1]
        self.genuine: Callable[[Link], bool] = lambda link: False  # until it has joined a run
        threading.Thread(target=self._accept, name=f"shoal-{purpose}", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, WireError, StateError):
            connection.settimeout(SECONDS)
            length = check_length(LENGTH.unpack(_exactly(connection, LENGTH.size))[0])
            link = unpack(_exactly(connection, min(length, 4096)))
            if isinstance(link, Link) and link.purpose == self._purpose and self.genuine(link):
                self._serve(link, connection)

    def close(self) -> None:
        """Stop accepting."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    receive_into(connection, memoryview(data))
    return bytes(data)


def receive_into(connection: socket.socket, target: memoryview) -> None:
    """Fill ``target``; raises ``OSError`` where the other side ends before."""
    while target:
        got = connection.recv_into(target)
        if got == 0:
            raise ConnectionResetError("the other side hung up too early")
        target = target[got:]


def fetch(address: Address, hello: Link, target: memoryview) -> None:
    """Fetch one array of another peer's shared state; raises :class:`StateError`."""
    try:
        with socket.create_connection((address.host, address.state), timeout=SECONDS) as connection:
            connection.sendall(pack(hello))
            (size,) = SIZE.unpack(_exactly(connection, SIZE.size))
            if size != len(target):
                raise StateError(f"{hello.key!r} has {size} bytes there and {len(target)} here.")
            receive_into(connection, target)
    except OSError as error:
        raise StateError(
            f"{hello.key!r} cannot be fetched from {hello.receiver}: {error}"
        ) from error


def serve_bytes(connection: socket.socket, data: memoryview) -> None:
    """The answering side of :func:`fetch`."""
    connection.sendall(SIZE.pack(len(data)))
    connection.sendall(data)


class Sink:
    """The answering side of :func:`measure`: one sender at a time, others are told to wait."""

    def __init__(self) -> None:
        self._one = threading.Lock()

    def __call__(self, link: Link, connection: socket.socket) -> None:
        """Swallow bytes until the sender ends, then say how many came."""
        if not self._one.acquire(blocking=False):
            connection.sendall(BUSY)
            return
        with contextlib.ExitStack() as stack:
            stack.callback(self._one.release)
            connection.sendall(OK)
            data, total = bytearray(BLAST), 0
            while got := connection.recv_into(data):
                total += got
            connection.sendall(SIZE.pack(total))


def measure(
    address: Address,
    hello: Link,
    *,
    seconds: float,
    tune: Callable[[socket.socket], None],
    patience: float,
) -> float:
    """Mbit/s that one connection carries there; 0 where it cannot be reached.

    ``tune`` caps the socket as the ring's are. A busy target is asked again for ``patience``
    seconds.
    """
    until = time.monotonic() + patience
    try:
        while True:
            family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
            with socket.socket(family) as connection:
                connection.settimeout(SECONDS)
                tune(connection)
                connection.connect((address.host, address.bandwidth))
                connection.sendall(pack(hello))
                if _exactly(connection, 1) == OK:
                    return _blast(connection, seconds)
            if time.monotonic() > until:
                return 0.0
            time.sleep(min(0.05, seconds / 4))
    except OSError:
        return 0.0


def _blast(connection: socket.socket, seconds: float) -> float:
    data = bytes(BLAST)
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        connection.send(data)
    connection.shutdown(socket.SHUT_WR)
    (total,) = SIZE.unpack(_exactly(connection, SIZE.size))
    return 8e-6 * float(total) / (time.monotonic() - start)
