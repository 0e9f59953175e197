"""The peer's one thread for input and output: control packets, links, operations, heartbeats.

Callers hand it requests and wait on futures; it never waits for them. Everything it holds is
touched on its thread only, so nothing here needs a lock. Where the ring breaks it tells the
master and waits: what happens to an operation is the master's word alone.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from shoal.collectives.control import Control
from shoal.collectives.errors import (
    FAILURES,
    Aborted,
    CollectiveError,
    Kicked,
    MasterLost,
    OutOfStep,
    WireError,
)
from shoal.collectives.loop import Loop
from shoal.collectives.packets import (
    Aborting,
    AskPending,
    Commence,
    Committed,
    Connect,
    Elected,
    Failed,
    Frames,
    Heartbeat,
    Initiate,
    Leave,
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
)
from shoal.collectives.packets import Kicked as KickedPacket
from shoal.collectives.traffic import Flight, Traffic
from shoal.collectives.wiring import Wiring


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
        early: Sequence[Any],
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
        self._admitted: Future[Any] | None = admitted
        self._call: Call | None = None
        self._calls: deque[Call] = deque()
        self._asking: Future[bool] | None = None
        self._flights: dict[int, Flight] = {}  # by tag
        self._launches: deque[Flight] = deque()
        self._closing = False
        self._looked = time.monotonic()
        self._loop = Loop()
        self._control = Control(self._loop, control, frames, registered, self.take)
        self._wiring = Wiring(
            self._loop, listener, self._control.say,
            me=self.peer, token=token, run=self.run, pacing=pacing,
        )  # fmt: skip
        self._traffic = Traffic(self._loop, self._control.say, pool)
        self._early = early  # came with the first packet, before there was a loop
        self._thread = threading.Thread(target=self._run, name="shoal-peer", daemon=True)
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
            self._control.say(AskPending())

        self._request(ask, future)
        return future

    def launch(self, flight: Flight) -> None:
        """Begin an operation; its future has the outcome."""
        self._request(lambda: self._launches.append(flight), flight.future)

    def close(self) -> None:
        """Say goodbye and end the thread."""

        def goodbye() -> None:
            self._closing = True
            self._control.say(Leave())

        self._request(goodbye, Future())
        self._thread.join(timeout=10)

    def _request(self, action: Callable[[], None], future: Future[Any]) -> None:
        if not self._loop.request(action):
            assert self.error is not None, "a loop ends with an error"
            future.set_exception(self.error)

    # --- the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        end = CollectiveError("The peer's thread broke.")
        try:
            for packet in self._early:
                self.take(packet)
            while not (self._closing and self._control.drained):
                self._loop.turn(self._control.heartbeat / 2)
                self._check_time()
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

    def _check_time(self) -> None:
        now, heartbeat = time.monotonic(), self._control.heartbeat
        away = now - self._looked
        if away < heartbeat / 4:  # the ring's links wake this thread far more often
            return
        stopped = away if away > 2 * heartbeat else 0.0  # it was us: that is nobody's silence
        self._looked = now
        self._control.keep_alive(now, stopped)
        self._wiring.check_time(now)
        self._traffic.check_time(now, stopped, 2 * self._control.timeout)

    def _start_next(self) -> None:
        """Begin an exclusive call when nothing is in flight, operations when no call is."""
        if self._calls and self._call is None and not self._flights:
            self._call = self._calls.popleft()
            self._control.say(self._call.asked())
        while self._launches and self._call is None and not self._calls:
            flight = self._launches.popleft()
            self._flights[flight.tag] = flight
            self._control.say(Initiate(flight.tag, flight.signature))

    def _shut(self, error: CollectiveError) -> None:
        self._traffic.close()
        self._wiring.close()
        self._control.close()

        def note() -> None:
            self.error = error

        self._loop.end(note)  # what was still asked for enters the lists below
        futures: list[Future[Any] | None] = [self._admitted, self._asking]
        futures += [call.future for call in (*self._calls, *([self._call] if self._call else []))]
        futures += [flight.future for flight in (*self._launches, *self._flights.values())]
        for future in futures:
            if future is not None and not future.done():
                future.set_exception(error)

    # --- what the master says -------------------------------------------------------------------

    def take(self, packet: Any) -> None:
        """Act on one packet of the master."""
        match packet:
            case Heartbeat():
                pass
            case KickedPacket():
                raise Kicked(packet.reason)
            case Connect():
                self._on_connect(packet)
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

    def _on_connect(self, packet: Connect) -> None:
        self.linked = False
        self._traffic.close()
        self._wiring.start(packet)

    def _on_ready(self, packet: TopologyReady) -> None:
        linking = self._wiring.hand_over(packet.epoch)
        if linking is not None:
            self._traffic.adopt(linking)
        elif packet.epoch != self.epoch and len(packet.ring) == 1:
            self._traffic.close()
        self.epoch, self.ring, self.sizes = packet.epoch, packet.ring, packet.sizes
        self.linked = True
        if self._admitted is not None:
            self._admitted.set_result(packet)
            self._admitted = None
        elif self._call is not None and self._call.relinking:
            self._call.relinking = False
            self._control.say(self._call.asked())
        else:
            self._end_call(packet)

    def _on_topology_failed(self) -> None:
        self._wiring.drop()
        if self._call is not None:  # a newcomer only waits for the others' next round
            admit = isinstance(self._call.packet, Vote) and self._call.packet.admit
            self._control.say(Vote(admit))

    def _on_commence(self, packet: Commence) -> None:
        flight = self._flights[packet.tag]
        flight.seq, flight.epoch = packet.seq, packet.epoch
        self._traffic.begin(flight, self.ring.index(self.peer), len(self.ring))

    def _on_outcome(self, packet: Committed | Aborting | Failed) -> None:
        flight = self._flights.pop(packet.tag)
        self._traffic.forget(flight)
        if isinstance(packet, Committed):
            flight.future.set_result(flight)
            return
        kind = packet.kind if isinstance(packet, Failed) else "relink"
        if kind == "relink":
            self.linked = False
            self._traffic.close()
        flight.epoch = self.epoch
        flight.future.set_exception(FAILURES.get(kind, Aborted)(packet.reason))

    def _on_retry(self, packet: Retry) -> None:
        self.linked = self.linked and packet.kind != "relink"
        if packet.kind == "relink" and self._call is not None:
            self._call.relinking = True
            self._control.say(Vote(False))
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
            self._control.say(report)
