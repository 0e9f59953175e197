"""The peer's one thread for input and output: control packets, links, operations, heartbeats.

Callers hand it requests and wait on futures; it never waits for them. Everything it holds is
touched on its thread only, so nothing here needs a lock. Where the ring breaks it tells the
master and waits: what happens to an operation is the master's word alone.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from shoal.collectives.errors import (
    FAILURES,
    Aborted,
    CollectiveError,
    Kicked,
    MasterLost,
    OutOfStep,
    WireError,
)
from shoal.collectives.linking import MOST_STRANGERS, Greeting, Linking
from shoal.collectives.links import Receiver, Sender, tune
from shoal.collectives.packets import (
    Aborting,
    AskPending,
    Commence,
    Committed,
    Complete,
    Connect,
    Elected,
    Failed,
    Frames,
    Heartbeat,
    Initiate,
    Leave,
    Link,
    LinksEstablished,
    Measure,
    Measured,
    Pending,
    Registered,
    Retry,
    SyncComplete,
    SyncDone,
    TopologyFailed,
    TopologyReady,
    Vote,
    pack,
)
from shoal.collectives.packets import Kicked as KickedPacket
from shoal.collectives.ring import Lane

DIAL_SECONDS = 5.0
READ = 64 << 10


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


@dataclass(slots=True)
class Call:
    """An exclusive call: what was asked, what it waits for, and whether the ring is in between.

    ``work`` does what the master asks for in its course (fetching, measuring) on a thread of its
    own and returns the packet that reports it.
    """

    packet: Any
    future: Future[Any]
    work: Callable[[Any], Any] | None = None
    relinking: bool = False

    def asked(self) -> Any:
        """The packet; one that depends on what has happened since is a function."""
        return self.packet() if callable(self.packet) else self.packet


class Engine:
    """One connection to a master, and what goes on over it, until ``close`` or an error."""

    def __init__(
        self,
        control: socket.socket,
        listener: socket.socket,
        *,
        token: str,
        registered: Registered,
        frames: Frames,
        early: list[Any],
        admitted: Future[Any],
        pool: int,
        pacing: int,
    ) -> None:
        self.peer, self.run = registered.peer, registered.run
        self.ring: tuple[str, ...] = ()
        self.sizes: dict[int, int] = {}
        self.epoch = 0
        self.linked = False
        self.error: CollectiveError | None = None
        self._token, self._pool, self._pacing = token, pool, pacing
        self._heartbeat, self._timeout = registered.heartbeat, registered.timeout
        self._control, self._listener, self._frames = control, listener, frames
        control.setblocking(False)
        listener.setblocking(False)
        self._admitted: Future[Any] | None = admitted
        self._call: Call | None = None
        self._calls: deque[Call] = deque()
        self._asking: Future[bool] | None = None
        self._flights: dict[int, Flight] = {}
        self._launches: deque[Flight] = deque()
        self._by_seq: dict[int, Flight] = {}
        self._rx_lanes: list[dict[int, Lane]] = []
        self._on_block: list[Callable[[Lane], None]] = []
        self._senders: list[Sender] = []
        self._receivers: list[Receiver] = []
        self._linking: Linking | None = None
        self._early: list[tuple[Link, socket.socket]] = []
        self._strangers: dict[int, Greeting] = {}
        self._broken = ""
        self._outgoing = bytearray()
        self._heard = self._beaten = self._progress = self._looked = time.monotonic()
        self._requests: deque[Callable[[], None]] = deque()
        self._closing = False
        self._armed = False
        self._lock = threading.Lock()  # of the end: no request may come after it
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._poll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._watch(self._wake, select.EPOLLIN, self._on_wake)
        self._watch(control.fileno(), select.EPOLLIN, self._on_control)
        self._watch(listener.fileno(), select.EPOLLIN, self._on_listener)
        self._arrived = early  # with the first packet, before there was a loop
        self._thread = threading.Thread(target=self._loop, name="shoal-peer", daemon=True)
        self._thread.start()

    # --- what callers use, on their threads -----------------------------------------------------

    def call(self, packet: Any, work: Callable[[Any], Any] | None = None) -> Future[Any]:
        """An exclusive call: begins when all operations in flight have ended."""
        call = Call(packet, Future(), work)
        self._request(lambda: self._calls.append(call), call.future)
        return call.future

    def ask_pending(self) -> Future[bool]:
        """Whether newcomers wait: answered when all peers of the group have asked."""
        future: Future[bool] = Future()

        def ask() -> None:
            assert self._asking is None, "one question at a time"
            self._asking = future
            self._say(AskPending())

        self._request(ask, future)
        return future

    def launch(self, flight: Flight) -> None:
        """Begin an operation; its future has the outcome."""
        self._request(lambda: self._launches.append(flight), flight.future)

    def close(self) -> None:
        """Say goodbye and end the thread."""

        def goodbye() -> None:
            self._closing = True
            self._say(Leave())

        self._request(goodbye, Future())
        self._thread.join(timeout=10)

    def _request(self, action: Callable[[], None], future: Future[Any]) -> None:
        with self._lock:
            if self.error is None:
                self._requests.append(action)
                os.eventfd_write(self._wake, 1)
            else:
                future.set_exception(self.error)

    # --- the loop -------------------------------------------------------------------------------

    def _watch(self, number: int, events: int, handler: Callable[[int], None]) -> None:
        self._handlers[number] = handler
        self._poll.register(number, events)

    def _unwatch(self, number: int) -> None:
        if self._handlers.pop(number, None) is not None:
            with contextlib.suppress(OSError, ValueError):
                self._poll.unregister(number)

    def _loop(self) -> None:
        end = CollectiveError("The peer's thread broke.")
        try:
            for packet in self._arrived:
                self.take(packet)
            while not (self._closing and not self._outgoing):
                for number, events in self._poll.poll(self._heartbeat / 2):
                    handler = self._handlers.get(number)
                    if handler is not None:
                        handler(events)
                self._timers()
                self._start_next()
            end = MasterLost("This peer has left its group.")
        except CollectiveError as error:
            end = error
        except OSError as error:
            end = MasterLost(
                f"The connection to the master broke ({error}); what this peer holds is intact: "
                "connect again once the master is back."
            )
        finally:  # also after a mistake of ours: nobody may wait for ever on a dead thread
            self._shut(end)

    def _shut(self, error: CollectiveError) -> None:
        self._close_links()
        self._drop_linking()
        for greeting in self._strangers.values():
            greeting.socket.close()
        for _, connection in self._early:
            connection.close()
        self._control.close()
        self._poll.close()
        with self._lock:
            self.error = error
            os.close(self._wake)
        for action in self._requests:  # they enter their futures in the lists below
            with contextlib.suppress(OSError, ValueError):
                action()
        self._fail_all(error)

    def _fail_all(self, error: CollectiveError) -> None:
        futures: list[Future[Any] | None] = [self._admitted, self._asking]
        futures += [call.future for call in (*self._calls, *([self._call] if self._call else []))]
        futures += [flight.future for flight in (*self._launches, *self._flights.values())]
        for future in futures:
            if future is not None and not future.done():
                future.set_exception(error)

    def _timers(self) -> None:
        now = time.monotonic()
        if now - self._looked > 2 * self._heartbeat:  # we were stopped: that is not its silence
            self._heard += now - self._looked
            self._progress += now - self._looked
        self._looked = now
        if now - self._beaten >= self._heartbeat:
            self._beaten = now
            self._say(Heartbeat())
        if now - self._heard > self._timeout:
            raise MasterLost(
                f"The master was silent for {self._timeout:g} s; what this peer holds is intact."
            )
        if self._linking is not None and now > self._linking.until:
            connect = self._linking.connect
            complete = len(self._linking.tx) == connect.pool
            self._give_up_linking(
                f"no connection from {connect.previous}" if complete else "it took too long",
                () if complete else (connect.next,),
            )
        for number, greeting in list(self._strangers.items()):
            if now > greeting.until:
                self._forget(number)
        if self._by_seq and now - self._progress > 2 * self._timeout:
            self._break_links(f"nothing arrived for {2 * self._timeout:g} s")

    def _on_wake(self, events: int) -> None:
        os.eventfd_read(self._wake)
        while self._requests:
            self._requests.popleft()()

    def _start_next(self) -> None:
        """Begin an exclusive call when nothing is in flight, operations when no call is."""
        if self._calls and self._call is None and not self._flights:
            self._call = self._calls.popleft()
            self._say(self._call.asked())
        while self._launches and self._call is None and not self._calls:
            flight = self._launches.popleft()
            self._flights[flight.tag] = flight
            self._say(Initiate(flight.tag, flight.signature))

    # --- control --------------------------------------------------------------------------------

    def _say(self, packet: object) -> None:
        self._outgoing += pack(packet)
        self._flush()

    def _flush(self) -> None:
        if self._outgoing:
            with contextlib.suppress(BlockingIOError):
                sent = self._control.send(self._outgoing)
                del self._outgoing[:sent]
        if bool(self._outgoing) != self._armed:
            self._armed = bool(self._outgoing)
            wanted = select.EPOLLIN | (select.EPOLLOUT if self._armed else 0)
            self._poll.modify(self._control.fileno(), wanted)

    def _on_control(self, events: int) -> None:
        if events & select.EPOLLOUT:
            self._flush()
        if not events & ~select.EPOLLOUT:
            return
        try:
            data = self._control.recv(READ)
        except BlockingIOError:
            return
        if not data:
            raise MasterLost(
                "The master has closed the connection; what this peer holds is intact: "
                "connect again once it is back."
            )
        self._heard = time.monotonic()
        for packet in self._frames.feed(data):
            self.take(packet)

    def take(self, packet: Any) -> None:
        """Act on one packet of the master."""
        match packet:
            case Heartbeat():
                pass
            case KickedPacket():
                raise Kicked(packet.reason)
            case Connect():
                self._start_linking(packet)
            case TopologyReady():
                self._on_ready(packet)
            case TopologyFailed():
                self._on_topology_failed()
            case Pending():
                asked, self._asking = self._asking, None
                assert asked is not None, "the master answers a question that nobody asked"
                asked.set_result(packet.waiting)
            case Measure() | Elected():
                self._start_work(packet)
            case SyncComplete():
                self._end_call(packet)
            case Retry():
                self._on_retry(packet)
            case Commence():
                self._on_commence(packet)
            case Committed() | Aborting() | Failed():
                self._on_outcome(packet)
            case _:
                raise WireError(f"The master says {type(packet).__name__}, which is not for peers.")

    def _on_ready(self, packet: TopologyReady) -> None:
        if self._linking is not None and self._linking.connect.epoch == packet.epoch:
            self._adopt(self._linking)
            self._linking = None
        if packet.epoch != self.epoch and len(packet.ring) == 1:
            self._close_links()
        self.epoch, self.ring, self.sizes = packet.epoch, packet.ring, packet.sizes
        self.linked = True
        if self._admitted is not None:
            self._admitted.set_result(packet)
            self._admitted = None
        elif self._call is not None and self._call.relinking:
            self._call.relinking = False
            self._say(self._call.asked())
        else:
            self._end_call(packet)

    def _on_topology_failed(self) -> None:
        if self._linking is not None:
            self._drop_linking()
        if self._call is not None:  # a newcomer only waits for the others' next round
            admit = isinstance(self._call.packet, Vote) and self._call.packet.admit
            self._say(Vote(admit))

    def _on_retry(self, packet: Retry) -> None:
        self.linked = self.linked and packet.kind != "relink"
        if packet.kind == "relink" and self._call is not None:
            self._call.relinking = True
            self._say(Vote(False))
            return
        error = OutOfStep(packet.reason)
        if self._asking is not None:
            self._asking.set_exception(error)
            self._asking = None
        if self._call is not None:
            self._end_call(error)

    def _end_call(self, result: Any) -> None:
        call, self._call = self._call, None
        assert call is not None, "the master answers a call that nobody made"
        if isinstance(result, BaseException):
            call.future.set_exception(result)
        else:
            call.future.set_result(result)

    def _start_work(self, packet: Measure | Elected) -> None:
        """Fetch or measure on another thread: both wait for peers, which this one must not."""
        call = self._call
        assert call is not None and call.work is not None

        def work() -> None:
            report: Measured | SyncDone = (
                Measured(packet.turn)
                if isinstance(packet, Measure)
                else SyncDone(packet.turn, False, "its thread broke")
            )
            try:
                report = call.work(packet) if call.work else report
            finally:
                self._request(lambda: self._report_work(call, report), Future())

        threading.Thread(target=work, name="shoal-work", daemon=True).start()

    def _report_work(self, call: Call, report: Measured | SyncDone) -> None:
        if self._call is call:  # late reports carry their turn, which the master knows is over
            self._say(report)

    # --- links ----------------------------------------------------------------------------------

    def _start_linking(self, packet: Connect) -> None:
        self._drop_linking()
        self.linked = False
        self._close_links()
        self._linking = Linking(
            packet, me=self.peer, token=self._token, run=self.run, pacing=self._pacing,
            timeout=DIAL_SECONDS,
        )  # fmt: skip
        try:
            self._linking.dial()
        except OSError as error:
            self._give_up_linking(f"{packet.next} does not answer: {error}", (packet.next,))
            return
        for number in self._linking.dialing:
            self._watch(number, select.EPOLLOUT, lambda events, n=number: self._on_dialed(n))  # type: ignore[misc]
        early, self._early = self._early, []
        for link, connection in early:
            self._assign(link, connection)

    def _on_dialed(self, number: int) -> None:
        linking = self._linking
        self._unwatch(number)
        if linking is None:
            return
        try:
            linking.dialed(number)
        except OSError as error:
            peer = linking.connect.next
            self._give_up_linking(f"{peer} does not answer: {error}", (peer,))
            return
        self._check_linked()

    def _on_listener(self, events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            connection, _ = self._listener.accept()
            if len(self._strangers) >= MOST_STRANGERS:
                connection.close()
                return
            tune(connection, pacing=self._pacing)
            greeting = Greeting(connection)
            number = connection.fileno()
            self._strangers[number] = greeting
            self._watch(number, select.EPOLLIN, lambda events: self._on_stranger(number))

    def _on_stranger(self, number: int) -> None:
        greeting = self._strangers[number]
        try:
            link = greeting.read()
        except (OSError, WireError):
            self._forget(number)
            return
        if link is None:
            return
        if link.purpose != "ring" or not link.genuine(self._token, self.run, self.peer):
            self._forget(number)
            return
        self._unwatch(number)
        del self._strangers[number]
        self._assign(link, greeting.socket)

    def _forget(self, number: int) -> None:
        self._unwatch(number)
        self._strangers.pop(number).socket.close()

    def _assign(self, link: Link, connection: socket.socket) -> None:
        """Give an inbound connection to its epoch, keep it for a later one, or close it."""
        linking = self._linking
        newest = linking.connect.epoch if linking is not None else self.epoch
        if linking is not None and linking.accepts(link):
            linking.rx[link.lane] = connection
            self._check_linked()
        elif link.epoch > newest and len(self._early) < MOST_STRANGERS:
            self._early.append((link, connection))
        else:
            connection.close()

    def _check_linked(self) -> None:
        if self._linking is not None and self._linking.complete:
            self._say(LinksEstablished(self._linking.connect.epoch, True))

    def _give_up_linking(self, detail: str, failed: tuple[str, ...]) -> None:
        assert self._linking is not None
        epoch = self._linking.connect.epoch
        self._drop_linking()
        self._say(LinksEstablished(epoch, False, failed, detail))

    def _drop_linking(self) -> None:
        if self._linking is not None:
            for number in self._linking.dialing:
                self._unwatch(number)
            self._linking.close()
            self._linking = None

    def _adopt(self, linking: Linking) -> None:
        """The links of the new epoch stand at all peers."""
        self._broken = ""
        self._senders = [Sender(linking.tx[lane]) for lane in range(self._pool)]
        self._receivers = [Receiver(linking.rx[lane]) for lane in range(self._pool)]
        self._rx_lanes = [{} for _ in range(self._pool)]
        self._on_block = [partial(self._block_received, place) for place in range(self._pool)]
        for place, sender in enumerate(self._senders):
            number = sender.socket.fileno()
            self._watch(number, 0, lambda events, i=place: self._on_sendable(i, events))  # type: ignore[misc]
        for place, receiver in enumerate(self._receivers):
            number = receiver.socket.fileno()
            self._watch(number, select.EPOLLIN, lambda events, i=place: self._on_receivable(i))  # type: ignore[misc]

    def _close_links(self) -> None:
        ends: list[Sender | Receiver] = [*self._senders, *self._receivers]
        for end in ends:
            self._unwatch(end.socket.fileno())
            end.close()
        self._senders, self._receivers, self._rx_lanes = [], [], []

    def _break_links(self, detail: str) -> None:
        """The ring cannot go on: give up what runs on it; later operations find it broken."""
        self._broken = detail
        self._close_links()
        for flight in list(self._by_seq.values()):
            self._report(flight, ok=False)

    # --- operations -----------------------------------------------------------------------------

    def _on_commence(self, packet: Commence) -> None:
        flight = self._flights[packet.tag]
        flight.seq, flight.epoch, flight.world = packet.seq, packet.epoch, len(self.ring)
        self._by_seq[flight.seq] = flight
        self._progress = time.monotonic()
        if not self._senders:
            self._report(flight, ok=False)
            return
        flight.lanes = flight.lanes_of(flight.seq, self.ring.index(self.peer), flight.world)
        flight.open = len(flight.lanes)
        places = [(flight.seq + i) % self._pool for i in range(len(flight.lanes))]
        for place, lane in zip(places, flight.lanes, strict=True):
            self._rx_lanes[place][flight.seq] = lane
            self._senders[place].add(lane)
        for place in places:
            if not self._senders:  # broke on the way
                return
            if self._receivers[place].parked:
                self._resume(place)
            if self._senders:
                self._on_sendable(place, 0)

    def _resume(self, place: int) -> None:
        receiver = self._receivers[place]
        try:
            found = receiver.resume(self._rx_lanes[place])
        except WireError as error:
            self._break_links(str(error))
            return
        if found:
            self._poll.modify(receiver.socket.fileno(), select.EPOLLIN)
            self._on_receivable(place)

    def _on_receivable(self, place: int) -> None:
        receiver = self._receivers[place]
        self._progress = time.monotonic()
        try:
            receiver.pump(self._rx_lanes[place], self._on_block[place])
        except (OSError, WireError) as error:
            before = self.ring[self.ring.index(self.peer) - 1]
            self._break_links(f"the link from {before} broke: {error}")
            return
        if receiver.parked and self._receivers:
            self._poll.modify(receiver.socket.fileno(), 0)

    def _block_received(self, place: int, lane: Lane) -> None:
        """A block is in place: what it was waited for can go on to the next peer."""
        if lane.received_all:
            del self._rx_lanes[place][lane.seq]
            if lane.done:
                self._lane_done(lane)
        if self._senders and not self._senders[place].armed:
            self._on_sendable(place, 0)

    def _on_sendable(self, place: int, events: int) -> None:
        sender = self._senders[place]
        try:
            if events & (select.EPOLLERR | select.EPOLLHUP):
                raise ConnectionResetError("the next peer hung up")
            self._pump(sender)
        except OSError as error:
            after = self.ring[(self.ring.index(self.peer) + 1) % len(self.ring)]
            self._break_links(f"the link to {after} broke: {error}")

    def _pump(self, sender: Sender) -> None:
        more = sender.pump(self._lane_sent)
        if more != sender.armed:
            sender.armed = more
            self._poll.modify(sender.socket.fileno(), select.EPOLLOUT if more else 0)

    def _lane_sent(self, lane: Lane) -> None:
        if lane.done:
            self._lane_done(lane)

    def _lane_done(self, lane: Lane) -> None:
        flight = self._by_seq.get(lane.seq)
        if flight is not None:
            flight.open -= 1
            if not flight.open:
                self._report(flight, ok=True)

    def _report(self, flight: Flight, *, ok: bool) -> None:
        if not flight.reported:
            flight.reported = True
            self._say(Complete(flight.tag, flight.seq, ok, "" if ok else self._broken))

    def _on_outcome(self, packet: Committed | Aborting | Failed) -> None:
        flight = self._flights.pop(packet.tag)
        self._by_seq.pop(flight.seq, None)
        if isinstance(packet, Committed):
            flight.future.set_result(flight)
            return
        kind = packet.kind if isinstance(packet, Failed) else "relink"
        if kind == "relink":
            self.linked = False
            self._close_links()
        flight.epoch = self.epoch
        flight.future.set_exception(FAILURES.get(kind, Aborted)(packet.reason))
