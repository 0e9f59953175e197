"""Operations on the links that stand: which lane runs where, and what happens when a link breaks.

The first break ends everything on the ring: each operation is reported as given up, and what
becomes of it is the master's word alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

from shoal.collectives.errors import WireError
from shoal.collectives.linking import Linking
from shoal.collectives.links import Receiver, Sender
from shoal.collectives.loop import BROKEN, READABLE, WRITABLE, Loop
from shoal.collectives.packets import Complete
from shoal.collectives.ring import Lane


@dataclass(slots=True)
class Flight:
    """An operation in flight. ``lanes_of(seq, rank, world)`` makes its lanes once it commences."""

    tag: int
    signature: str
    lanes_of: Callable[[int, int, int], list[Lane]]
    future: Future[Flight]
    seq: int = 0
    epoch: int = 0
    world: int = 0
    lanes: list[Lane] = field(default_factory=list)
    open: int = 0
    reported: bool = False


class Traffic:
    """``say`` reports to the master. Runs on the loop's thread."""

    def __init__(self, loop: Loop, say: Callable[[object], None], pool: int) -> None:
        self._loop, self._say, self._pool = loop, say, pool
        self._senders: list[Sender] = []
        self._receivers: list[Receiver] = []
        self._lanes: list[dict[int, Lane]] = []  # by connection: what receives there, by seq
        self._received: list[Callable[[Lane], None]] = []
        self._flights: dict[int, Flight] = {}  # by seq
        self._previous = self._next = self._broken = ""
        self._progress = time.monotonic()

    def adopt(self, linking: Linking) -> None:
        """The links of the new epoch stand at all peers."""
        self._broken = ""
        self._previous, self._next = linking.connect.previous, linking.connect.next
        places = range(self._pool)
        self._senders = [Sender(linking.tx[place]) for place in places]
        self._receivers = [Receiver(linking.rx[place]) for place in places]
        self._lanes = [{} for _ in places]
        self._received = [partial(self._block_received, place) for place in places]
        for place in places:
            sender, receiver = self._senders[place].socket, self._receivers[place].socket
            self._loop.watch(sender.fileno(), partial(self._on_sendable, place), 0)
            self._loop.watch(receiver.fileno(), partial(self._on_receivable, place))

    def close(self) -> None:
        """Hang up; operations under way stay until the master has said how they end."""
        ends: list[Sender | Receiver] = [*self._senders, *self._receivers]
        for end in ends:
            self._loop.unwatch(end.socket.fileno())
            end.close()
        self._senders, self._receivers, self._lanes = [], [], []

    def begin(self, flight: Flight, rank: int, world: int) -> None:
        """Let an operation run that all peers have asked for."""
        flight.world = world
        self._flights[flight.seq] = flight
        self._progress = time.monotonic()
        if not self._senders:
            self._report(flight, ok=False)
            return
        flight.lanes = flight.lanes_of(flight.seq, rank, world)
        flight.open = len(flight.lanes)
        places = [(flight.seq + i) % self._pool for i in range(len(flight.lanes))]
        for place, lane in zip(places, flight.lanes, strict=True):
            self._lanes[place][flight.seq] = lane
            self._senders[place].add(lane)
        for place in places:
            if self._receivers and self._receivers[place].parked:
                self._resume(place)
            if self._senders:  # nothing broke on the way
                self._on_sendable(place, 0)

    def forget(self, flight: Flight) -> None:
        """The master has said how it ended."""
        self._flights.pop(flight.seq, None)

    def check_time(self, now: float, stopped: float, patience: float) -> None:
        """Break the links on which nothing has arrived for too long."""
        self._progress += stopped
        if self._flights and now - self._progress > patience:
            self._break(f"nothing arrived for {patience:g} s")

    def _break(self, detail: str) -> None:
        """The ring cannot go on: give up what runs on it; later operations find it broken."""
        self._broken = detail
        self.close()
        for flight in list(self._flights.values()):
            self._report(flight, ok=False)

    def _report(self, flight: Flight, *, ok: bool) -> None:
        if not flight.reported:
            flight.reported = True
            self._say(Complete(flight.tag, flight.seq, ok, "" if ok else self._broken))

    # --- receiving ------------------------------------------------------------------------------

    def _resume(self, place: int) -> None:
        receiver = self._receivers[place]
        try:
            found = receiver.resume(self._lanes[place])
        except WireError as error:
            self._break(str(error))
            return
        if found:
            self._loop.change(receiver.socket.fileno(), READABLE)
            self._on_receivable(place, 0)

    def _on_receivable(self, place: int, events: int) -> None:
        receiver = self._receivers[place]
        self._progress = time.monotonic()
        try:
            receiver.pump(self._lanes[place], self._received[place])
        except (OSError, WireError) as error:
            self._break(f"the link from {self._previous} broke: {error}")
            return
        if receiver.parked and self._receivers:
            self._loop.change(receiver.socket.fileno(), 0)

    def _block_received(self, place: int, lane: Lane) -> None:
        """A block is in place: what it was waited for can go on to the next peer."""
        if lane.received_all:
            del self._lanes[place][lane.seq]
            if lane.done:
                self._lane_done(lane)
        if self._senders and not self._senders[place].armed:
            self._on_sendable(place, 0)

    # --- sending --------------------------------------------------------------------------------

    def _on_sendable(self, place: int, events: int) -> None:
        sender = self._senders[place]
        try:
            if events & BROKEN:
                raise ConnectionResetError("the next peer hung up")
            more = sender.pump(self._lane_sent)
        except OSError as error:
            self._break(f"the link to {self._next} broke: {error}")
            return
        if more != sender.armed:
            sender.armed = more
            self._loop.change(sender.socket.fileno(), WRITABLE if more else 0)

    def _lane_sent(self, lane: Lane) -> None:
        if lane.done:
            self._lane_done(lane)

    def _lane_done(self, lane: Lane) -> None:
        flight = self._flights.get(lane.seq)
        if flight is not None:
            flight.open -= 1
            if not flight.open:
                self._report(flight, ok=True)
