"""A peer: joins a group, reduces arrays with whoever is there, keeps a shared state.

    peer = Communicator("10.0.0.1:48148", token="…", pool=8)
    peer.connect()
    while training:
        peer.update_topology()
        peer.sync_state(state)
        peer.all_reduce(gradient, op="avg")

PCCL (arXiv 2505.14065). Every operation either commits for all peers or raises and leaves its
input as it was; :meth:`Communicator.all_reduce_many` calls again by itself.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.collectives import services
from shoal.collectives.engine import Engine, Flight
from shoal.collectives.errors import (
    Aborted,
    CollectiveError,
    MasterLost,
    Refused,
    StateError,
    TagInUse,
    TooFewPeers,
)
from shoal.collectives.hello import greet
from shoal.collectives.kernels import FLOATS, Op, division, reduction
from shoal.collectives.links import SO_MAX_PACING_RATE
from shoal.collectives.observe import parse_address
from shoal.collectives.packets import (
    Elected,
    Frames,
    Link,
    Measure,
    Measured,
    Optimize,
    Register,
    Registered,
    Strategy,
    SyncDone,
    SyncState,
    Vote,
    pack,
)
from shoal.collectives.packets import Kicked as KickedPacket
from shoal.collectives.quantize import QUANTIZATIONS, Quantization
from shoal.collectives.ring import Lane, Plan, cut, lanes_for
from shoal.collectives.state import SharedState, buffer_of, content_hash

FIRST_PORT = 48149
CONNECT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class ReduceInfo:
    """A committed operation: peers in it, bytes this peer sent and received."""

    world: int
    tx: int
    rx: int


@dataclass(frozen=True, slots=True)
class SyncInfo:
    """A shared state in which all agree: its revision, bytes served and fetched by this peer."""

    revision: int
    tx: int
    rx: int
    votes: int


class Handle:
    """An operation in flight. Abandoning it is no error; its tag stays taken until it ends."""

    def __init__(
        self, peer: Communicator, tag: int, work: Flight | ReduceInfo, finish: _Finish | None
    ) -> None:
        self._peer, self.tag, self._work, self._finish = peer, tag, work, finish

    def done(self) -> bool:
        """Whether :meth:`wait` would return at once."""
        return isinstance(self._work, ReduceInfo) or self._work.future.done()

    def wait(self, timeout: float | None = None) -> ReduceInfo:
        """The committed result, which is then in the output.

        Raises :class:`Aborted` once a new ring stands, :class:`TooFewPeers` where nobody else is
        left, ``TimeoutError`` while it is still in flight.
        """
        if isinstance(self._work, ReduceInfo):
            return self._work
        flight = self._work
        try:
            flight.future.result(timeout)
        except TimeoutError:
            raise
        except Aborted:
            self._release()
            self._peer._relink(flight.epoch)
            raise
        except BaseException:
            self._release()
            raise
        assert self._finish is not None
        if self._finish.scratch is not None:
            np.copyto(self._finish.target, self._finish.scratch)
        self._release()
        tx = sum(lane.tx_bytes for lane in flight.lanes)
        self._work = ReduceInfo(flight.world, tx, sum(lane.rx_bytes for lane in flight.lanes))
        return self._work

    def _release(self) -> None:
        if self._finish is not None:
            self._peer._released(self.tag, self._finish)


@dataclass(slots=True)
class _Finish:
    """Where a result goes once it is committed; scratch memory is used again."""

    target: NDArray[Any]
    scratch: NDArray[Any] | None
    key: tuple[str, int]
    released: bool = False


class Communicator:
    """One peer of one group. Methods block; several threads may reduce under different tags.

    master   ``host:port``
    pool     connections to each neighbour; equal for all peers of a group
    host     where this peer listens and is reached, if not where the master sees it
    pacing   bytes a second that each connection is capped to; 0 is no cap

    Raises :class:`InputError` for a master's address that is none.
    """

    def __init__(
        self,
        master: str,
        *,
        token: str,
        group: int = 0,
        pool: int = 1,
        host: str = "",
        first_port: int = FIRST_PORT,
        pacing: int = 0,
    ) -> None:
        if pool < 1:
            raise ValueError(f"A pool has at least one connection, not {pool}.")
        self._master = parse_address(master)
        self._token, self._group, self._pool = token, group, pool
        self._host, self._first_port, self._pacing = host, first_port, pacing
        self._engine: Engine | None = None
        self._identity = ("", "")
        self._tags: set[int] = set()
        self._spare: dict[tuple[str, int], list[NDArray[Any]]] = {}
        self._lock = threading.Lock()
        self._relinking = threading.Lock()
        self._state: SharedState | None = None
        self._served = 0
        self._services: list[services.Service] = []

    # --- joining and leaving --------------------------------------------------------------------

    def connect(self, timeout: float | None = None) -> None:
        """Join the group: returns once admitted. Call it again after :class:`MasterLost`.

        Raises :class:`Refused` (token, run), :class:`Kicked`, :class:`MasterLost`, and
        ``TimeoutError`` where the others admit nobody within ``timeout`` seconds.
        """
        if self._engine is not None and self._engine.error is None:
            raise CollectiveError("This peer is connected already.")
        listener = services.listen(self._host, self._first_port)
        state = services.Service("state", self._host, self._first_port, self._serve_state)
        bandwidth = services.Service("bandwidth", self._host, self._first_port, services.Sink())
        self._services = [state, bandwidth]
        try:
            self._engine, admitted = self._join(listener, state, bandwidth)
        except BaseException:
            listener.close()
            self._close_services()
            raise
        engine = self._engine
        self._identity = (engine.peer, engine.run)
        for service in self._services:
            service.genuine = lambda link: link.genuine(self._token, engine.run, engine.peer)
        admitted.result(timeout)

    def _join(
        self, listener: socket.socket, state: services.Service, bandwidth: services.Service
    ) -> tuple[Engine, Future[Any]]:
        try:
            control = socket.create_connection(self._master, timeout=CONNECT_SECONDS)
        except OSError as error:
            where = f"{self._master[0]}:{self._master[1]}"
            raise MasterLost(f"No master answers at {where}: {error}.") from error
        try:
            control.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            greet(control, self._token)
            peer, run = self._identity
            register = Register(
                self._group,
                listener.getsockname()[1],
                state.port,
                bandwidth.port,
                self._pool,
                self._host,
                peer,
                run,
            )
            control.sendall(pack(register))
            frames, found = Frames(), list[Any]()
            while not found:
                data = control.recv(1 << 16)
                if not data:
                    raise MasterLost("The master has closed the connection.")
                found = frames.feed(data)
        except OSError as error:
            control.close()
            raise MasterLost(f"The master does not answer: {error}.") from error
        except BaseException:
            control.close()
            raise
        first, *rest = found
        if isinstance(first, KickedPacket):
            control.close()
            raise Refused(first.reason)
        assert isinstance(first, Registered)
        admitted: Future[Any] = Future()
        engine = Engine(
            control,
            listener,
            token=self._token,
            registered=first,
            frames=frames,
            early=rest,
            admitted=admitted,
            pool=self._pool,
            pacing=self._pacing,
        )
        return engine, admitted

    def close(self) -> None:
        """Leave the group; the others go on."""
        if self._engine is not None and self._engine.error is None:
            self._engine.close()
        self._close_services()

    def _close_services(self) -> None:
        for service in self._services:
            service.close()
        self._services = []

    def __enter__(self) -> Communicator:
        self.connect()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _running(self) -> Engine:
        if self._engine is None:
            raise CollectiveError("This peer has not joined: call connect first.")
        if self._engine.error is not None:
            raise self._engine.error
        return self._engine

    # --- who is there ---------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """This peer's id, which it keeps over a restart of the master."""
        return self._identity[0]

    @property
    def world_size(self) -> int:
        """Accepted peers of this group, as of the last ring."""
        return len(self._running().ring)

    @property
    def ring(self) -> tuple[str, ...]:
        """Their ids in the order of the ring."""
        return self._running().ring

    @property
    def group_sizes(self) -> dict[int, int]:
        """Accepted peers of every group, as of this group's last ring."""
        return dict(self._running().sizes)

    def update_topology(self) -> None:
        """Admit newcomers and connect the ring; all peers of the group call it together.

        A newcomer may begin with it: where all others wait in another call, it changes nothing.
        """
        engine = self._running()
        self._wait(engine.call(Vote(True)))

    def gather(self, world: int) -> None:
        """Admit newcomers until the ring has at least that many; all peers ask for as many."""
        while self.world_size < world:
            self.update_topology()

    def peers_pending(self) -> bool:
        """Whether newcomers wait; all peers of the group ask together and get one answer."""
        return bool(self._wait(self._running().ask_pending()))

    def optimize_topology(self, seconds: float = 1.0) -> None:
        """Measure the links not yet known, ``seconds`` each, and take the ring whose slowest
        link is fastest; all peers of the group call it together."""
        self._wait(self._running().call(Optimize(seconds), self._measure))

    def _measure(self, asked: Measure | Elected) -> Measured:
        assert isinstance(asked, Measure)
        engine = self._running()

        def tune(connection: socket.socket) -> None:
            if self._pacing:
                connection.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, self._pacing)

        rates = {}
        for peer, address in asked.targets.items():
            hello = Link("bandwidth", engine.peer, peer).signed(self._token, engine.run)
            patience = 2 * asked.seconds * (len(asked.targets) + 1) + services.SECONDS
            rates[peer] = services.measure(
                address, hello, seconds=asked.seconds, tune=tune, patience=patience
            )
        return Measured(asked.turn, rates)

    def _relink(self, epoch: int) -> None:
        """Make a new ring after a failure, once for all operations that failed with the epoch."""
        with self._relinking:
            engine = self._running()
            if engine.epoch == epoch and not engine.linked:
                self._wait(engine.call(Vote(False)))

    def _wait(self, future: Future[Any]) -> Any:
        return future.result()

    # --- reducing -------------------------------------------------------------------------------

    def all_reduce(
        self,
        x: Any,
        out: Any = None,
        *,
        op: Op | str = Op.SUM,
        tag: int = 0,
        quantization: Quantization = "none",
    ) -> ReduceInfo:
        """Reduce ``x`` over all peers into ``out`` (into ``x`` itself where it is None).

        Raises ``ValueError`` for arrays that cannot be used, before any vote;
        :class:`TooFewPeers`, :class:`SignatureMismatch`, :class:`TagInUse`, :class:`OutOfStep`,
        and :class:`Aborted` where a peer left: a new ring stands then, call again. In all these
        cases the arrays are as they were.
        """
        return self.all_reduce_async(x, out, op=op, tag=tag, quantization=quantization).wait()

    def all_reduce_async(
        self,
        x: Any,
        out: Any = None,
        *,
        op: Op | str = Op.SUM,
        tag: int = 0,
        quantization: Quantization = "none",
    ) -> Handle:
        """Begin an operation. ``x`` must not change before its :meth:`Handle.wait` returns."""
        engine = self._running()
        kind = Op(op)
        source = buffer_of(x, writable=out is None)
        target = source if out is None else buffer_of(out, writable=True)
        if (target.dtype, target.flat.size) != (source.dtype, source.flat.size):
            raise ValueError(
                f"The output has {target.flat.size} elements of {target.dtype}, "
                f"the input {source.flat.size} of {source.dtype}."
            )
        if quantization not in QUANTIZATIONS:
            raise ValueError(f"{quantization!r} is none of {', '.join(QUANTIZATIONS)}.")
        if quantization != "none" and source.dtype not in FLOATS:
            raise ValueError(f"{source.dtype} cannot be quantised, only {', '.join(FLOATS)}.")
        if out is not None and source.flat.size and np.shares_memory(source.flat, target.flat):
            raise ValueError("Input and output overlap: leave the output out to work in place.")
        if engine.linked and len(engine.ring) < 2:
            raise TooFewPeers(f"Tag {tag} needs a second peer, and this one is alone.")
        if not source.flat.size:
            return Handle(self, tag, ReduceInfo(len(engine.ring), 0, 0), None)
        self._take_tag(tag)
        finish = self._finish(source.flat, target.flat, in_place=out is None)
        result = target.flat if finish.scratch is None else finish.scratch

        def lanes_of(seq: int, rank: int, world: int) -> list[Lane]:
            divide = division(source.dtype, world) if kind is Op.AVG else None
            plan = Plan(rank, world, reduction(kind, source.dtype), divide, quantization)
            stripes = cut(source.flat.size, lanes_for(source.flat.nbytes, self._pool))
            return [Lane(plan, source.flat[a:b], result[a:b], seq=seq) for a, b in stripes]

        count = source.flat.size
        signature = f"{kind} of {count} {source.dtype}, quantization {quantization}"
        flight = Flight(tag, signature, lanes_of, Future())
        engine.launch(flight)
        return Handle(self, tag, flight, finish)

    def _take_tag(self, tag: int) -> None:
        with self._lock:
            if tag in self._tags:
                raise TagInUse(f"Tag {tag} names an operation in flight: wait for it first.")
            self._tags.add(tag)

    def _finish(self, source: NDArray[Any], target: NDArray[Any], *, in_place: bool) -> _Finish:
        """Scratch memory where the input must stay until the commit."""
        key = (str(source.dtype), source.size)
        if not in_place:
            return _Finish(target, None, key)
        with self._lock:
            spare = self._spare.get(key)
            scratch = spare.pop() if spare else np.empty_like(source)
        return _Finish(target, scratch, key)

    def _released(self, tag: int, finish: _Finish) -> None:
        """A tag and its scratch memory are free again."""
        with self._lock:
            if finish.released:
                return
            finish.released = True
            self._tags.discard(tag)
            if finish.scratch is not None:
                self._spare.setdefault(finish.key, []).append(finish.scratch)

    def all_reduce_many(
        self,
        arrays: Sequence[Any],
        *,
        op: Op | str = Op.SUM,
        quantization: Quantization = "none",
        max_in_flight: int = 8,
        first_tag: int = 0,
    ) -> list[ReduceInfo]:
        """Reduce arrays in place, several at once, and call again what a leaver broke.

        What has committed stays, so arrays of one call may have been reduced over different
        worlds: each :class:`ReduceInfo` says over which. Raises :class:`TooFewPeers` where only
        this peer is left; the arrays it names are as they were.
        """
        done: dict[int, ReduceInfo] = {}
        left = list(range(len(arrays)))
        flying: dict[int, Handle] = {}
        broken = False
        while left or flying:
            while left and len(flying) < max_in_flight and not broken:
                i = left.pop(0)
                try:
                    flying[i] = self.all_reduce_async(
                        arrays[i], op=op, tag=first_tag + i, quantization=quantization
                    )
                except TooFewPeers:
                    self._await(flying, done)
                    names = ", ".join(map(str, sorted({i, *left})))
                    raise TooFewPeers(
                        f"Only one peer is left: arrays {names} are not reduced."
                    ) from None
            i, handle = next(iter(flying.items()))
            try:
                done[i] = handle.wait()
            except (Aborted, TooFewPeers):
                left.append(i)
                broken = True
            del flying[i]
            if broken and not flying:
                left.sort()
                broken = False
        return [done[i] for i in range(len(arrays))]

    def _await(self, flying: dict[int, Handle], done: dict[int, ReduceInfo]) -> None:
        for i, handle in flying.items():
            with contextlib.suppress(Aborted, TooFewPeers):
                done[i] = handle.wait()

    # --- shared state ---------------------------------------------------------------------------

    def sync_state(
        self, state: SharedState, strategy: Strategy | str = Strategy.ENFORCE_POPULAR
    ) -> SyncInfo:
        """Make all peers hold the elected state, in place; all of the group call it together.

        ``state.revision`` becomes the elected one. Raises :class:`Kicked` where this peer's keys,
        shapes or revision do not fit.
        """
        self._state, self._served = state, 0
        fetched = votes = 0

        def work(elected: Measure | Elected) -> SyncDone:
            nonlocal fetched, votes
            assert isinstance(elected, Elected)
            try:
                fetched += self._fetch(state, elected)
            except (StateError, CollectiveError) as error:
                return SyncDone(elected.turn, False, str(error).rstrip("."))
            state.revision, votes = elected.revision, elected.votes
            return SyncDone(elected.turn, True)

        def packet() -> SyncState:
            return SyncState(state.revision, state.entries(), Strategy(strategy))

        try:
            done = self._wait(self._running().call(packet, work))
        finally:
            self._state = None
        return SyncInfo(done.revision, self._served, fetched, votes)

    def _fetch(self, state: SharedState, elected: Elected) -> int:
        """Fetch what differs, check it, and only then put it in place; how many bytes came."""
        engine, total = self._running(), 0
        fetched = {}
        for wanted in elected.fetch:
            target = state.bytes_of(wanted.key)
            data = np.empty(len(target), np.uint8)
            hello = Link("state", engine.peer, wanted.peer, key=wanted.key)
            services.fetch(wanted.source, hello.signed(self._token, engine.run), data.data)
            if content_hash(data) != wanted.hash:
                raise StateError(f"{wanted.key!r} from {wanted.peer} is not what was elected.")
            fetched[wanted.key] = data
            total += len(data)
        for key, data in fetched.items():
            state.bytes_of(key)[:] = data.data
        return total

    def _serve_state(self, link: Link, connection: socket.socket) -> None:
        state = self._state
        if state is not None:
            data = state.bytes_of(link.key)
            services.serve_bytes(connection, data)
            self._served += len(data)
