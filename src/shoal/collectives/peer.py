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

import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from shoal.collectives import services
from shoal.collectives.engine import Engine
from shoal.collectives.errors import CollectiveError
from shoal.collectives.exchange import Exchange, SyncInfo
from shoal.collectives.joining import register
from shoal.collectives.kernels import Op
from shoal.collectives.links import SO_MAX_PACING_RATE
from shoal.collectives.observe import parse_address
from shoal.collectives.packets import (
    Elected,
    Link,
    Measure,
    Measured,
    Optimize,
    Register,
    Strategy,
    Vote,
)
from shoal.collectives.quantize import Quantization
from shoal.collectives.reducing import Handle, ReduceInfo, Reducer, reduce_many
from shoal.collectives.state import SharedState

FIRST_PORT = 48149
GATHER_SECONDS = 0.02
"""Between two looks for newcomers."""


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
        self._relinking = threading.Lock()
        self._reducer = Reducer(pool, self._relink)
        self._exchange = Exchange(token)
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
        self._services = [
            services.Service(purpose, self._host, self._first_port, serve)
            for purpose, serve in (
                ("state", self._exchange.serve),
                ("bandwidth", services.Sink()),
            )
        ]
        admitted: Future[Any] = Future()
        try:
            self._engine = self._join(listener, admitted)
        except BaseException:
            listener.close()
            self._close_services()
            raise
        engine = self._engine
        self._identity = (engine.peer, engine.run)
        for service in self._services:
            service.genuine = lambda link: link.genuine(self._token, engine.run, engine.peer)
        admitted.result(timeout)

    def _join(self, listener: socket.socket, admitted: Future[Any]) -> Engine:
        peer, run = self._identity
        state, bandwidth = self._services
        port = listener.getsockname()[1]
        found = register(
            self._master,
            self._token,
            Register(
                self._group, port, state.port, bandwidth.port, self._pool, self._host, peer, run
            ),
        )
        return Engine(
            found.control,
            listener,
            token=self._token,
            registered=found.registered,
            frames=found.frames,
            early=found.early,
            admitted=admitted,
            pool=self._pool,
            pacing=self._pacing,
        )

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
        engine.call(Vote(True)).result()

    def gather(self, world: int) -> None:
        """Admit newcomers until the ring has at least that many; all peers ask for as many."""
        while self.world_size < world:
            self.update_topology()
            if self.world_size < world:  # a newcomer may be starting up on this very processor
                time.sleep(GATHER_SECONDS)

    def peers_pending(self) -> bool:
        """Whether newcomers wait; all peers of the group ask together and get one answer."""
        return self._running().ask_pending().result()

    def optimize_topology(self, seconds: float = 1.0) -> None:
        """Measure the links not yet known, ``seconds`` each, and take the ring whose slowest
        link is fastest; all peers of the group call it together."""
        self._running().call(Optimize(seconds), self._measure).result()

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
                engine.call(Vote(False)).result()

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
        return self._reducer.begin(self._running(), x, out, Op(op), tag, quantization)

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
        return reduce_many(
            lambda i, x: self.all_reduce_async(
                x, op=op, tag=first_tag + i, quantization=quantization
            ),
            arrays,
            max_in_flight,
        )

    # --- shared state ---------------------------------------------------------------------------

    def sync_state(
        self, state: SharedState, strategy: Strategy | str = Strategy.ENFORCE_POPULAR
    ) -> SyncInfo:
        """Make all peers hold the elected state, in place; all of the group call it together.

        ``state.revision`` becomes the elected one. Raises :class:`Kicked` where this peer's keys,
        shapes or revision do not fit.
        """
        return self._exchange.sync(self._running(), state, Strategy(strategy))
