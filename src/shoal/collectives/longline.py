"""A long line between two hosts on one machine: delay, rate and a queue that overflows.

Each host is a network namespace with a TUN device; packets between them pass through a thread of
this process, which holds every one back as a line of that length would. TCP sees a real round
trip: slow start, loss where the queue is full. For tests; a few hundred Mbit/s at most.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import threading
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType

from shoal.collectives.errors import CollectiveError
from shoal.collectives.wan import configure

TUNSETIFF = 0x400454CA
TUN_WITHOUT_HEADER = 0x0001 | 0x1000
MTU = 9_000


def unavailable() -> str | None:
    """Why there can be no long line here, beside what shaped links need; None where there can."""
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as error:
        return f"/dev/net/tun cannot be opened: {error.strerror}"
    return None


class LongLine:
    """Hosts 0 and 1, ``delay`` seconds apart; ``rate`` in Mbit/s and ``queue`` in bytes each way.

    Raises :class:`CollectiveError` where the kernel refuses. Leaves nothing behind.
    """

    def __init__(self, *, delay: float, rate: float, queue: int = 1 << 20) -> None:
        self._delay, self._seconds_a_byte, self._queue = delay, 8e-6 / rate, queue
        self._tag = f"ll{os.getpid() % 100_000}"
        self._net = f"10.{177 + os.getpid() % 70}.{os.getpid() % 250}"
        self._devices: list[int] = []
        self._stop, self._wake = os.pipe()
        self._thread = threading.Thread(target=self._relay, name="shoal-longline", daemon=True)
        self.dropped = 0

    def address(self, host: int) -> str:
        """A host's address."""
        return f"{self._net}.{host + 1}"

    def command(self, host: int) -> Sequence[str]:
        """What to put before a program to run it on a host."""
        return ("ip", "netns", "exec", self._name(host))

    def _name(self, host: int) -> str:
        return f"{self._tag}n{host}"

    def __enter__(self) -> LongLine:
        try:
            for host in range(2):
                self._add(host)
        except BaseException:
            self._remove()
            raise
        self._thread.start()
        return self

    def _add(self, host: int) -> None:
        name, device = self._name(host), f"{self._tag}t{host}"
        configure("ip", "netns", "add", name)
        try:
            number = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            self._devices.append(number)
            fcntl.ioctl(number, TUNSETIFF, struct.pack("16sH", device.encode(), TUN_WITHOUT_HEADER))
        except OSError as error:
            raise CollectiveError(f"No TUN device can be made: {error.strerror}.") from error
        configure("ip", "link", "set", device, "netns", name)
        inside = ("ip", "-n", name)
        configure(*inside, "address", "add", f"{self.address(host)}/24", "dev", device)
        configure(*inside, "link", "set", device, "mtu", str(MTU), "up")
        configure(*inside, "link", "set", "lo", "up")

    def _relay(self) -> None:
        """Until told to stop: read a packet, hold it back, write it to the other side."""
        poll = select.poll()
        for number in (*self._devices, self._stop):
            poll.register(number, select.POLLIN)
        held: list[deque[tuple[float, bytes]]] = [deque(), deque()]
        free = [0.0, 0.0]  # when each side's sender has put on the line what it was given
        while True:
            due = min((line[0][0] for line in held if line), default=None)
            wait = None if due is None else max(0.0, 1e3 * (due - time.monotonic()))
            ready = {number for number, _ in poll.poll(wait)}
            if self._stop in ready:
                return
            now = time.monotonic()
            for side, number in enumerate(self._devices):
                while number in ready:
                    try:
                        packet = os.read(number, MTU)
                    except BlockingIOError:
                        break
                    if max(0.0, free[side] - now) / self._seconds_a_byte > self._queue:
                        self.dropped += 1
                        continue
                    free[side] = max(free[side], now) + len(packet) * self._seconds_a_byte
                    held[side].append((free[side] + self._delay, packet))
                while held[side] and held[side][0][0] <= now:
                    with contextlib.suppress(OSError):  # the other side is going down
                        os.write(self._devices[1 - side], held[side].popleft()[1])

    def _remove(self) -> None:
        if self._thread.is_alive():
            os.write(self._wake, b"x")
            self._thread.join()
        for number in (*self._devices, self._stop, self._wake):
            os.close(number)
        self._devices = []
        for host in range(2):
            with contextlib.suppress(CollectiveError):
                configure("ip", "netns", "delete", self._name(host))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._remove()
