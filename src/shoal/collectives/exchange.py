"""What peers do in a sync of their shared state: vote with hashes, fetch, check, serve."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any

import numpy as np

from shoal.collectives import services
from shoal.collectives.engine import Engine
from shoal.collectives.errors import CollectiveError, StateError
from shoal.collectives.packets import Elected, Link, Strategy, SyncDone, SyncState
from shoal.collectives.state import SharedState, content_hash


@dataclass(frozen=True, slots=True)
class SyncInfo:
    """A shared state in which all agree: its revision, bytes served and fetched by this peer."""

    revision: int
    tx: int
    rx: int
    votes: int


class Exchange:
    """One peer's part. What it holds is served to others while a sync is under way."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._state: SharedState | None = None
        self._served = 0

    def sync(self, engine: Engine, state: SharedState, strategy: Strategy) -> SyncInfo:
        """Vote, and wait until all hold the elected state."""
        self._state, self._served = state, 0
        fetched = votes = 0

        def work(elected: Any) -> SyncDone:
            nonlocal fetched, votes
            assert isinstance(elected, Elected)
            try:
                fetched += self._fetch(engine, state, elected)
            except CollectiveError as error:
                return SyncDone(elected.turn, False, str(error).rstrip("."))
            state.revision, votes = elected.revision, elected.votes
            return SyncDone(elected.turn, True)

        def packet() -> SyncState:
            return SyncState(state.revision, state.entries(), strategy)

        try:
            done = engine.call(packet, work).result()
        finally:
            self._state = None
        return SyncInfo(done.revision, self._served, fetched, votes)

    def _fetch(self, engine: Engine, state: SharedState, elected: Elected) -> int:
        """Fetch what differs, check it, and only then put it in place; how many bytes came."""
        fetched = {}
        for wanted in elected.fetch:
            data = np.empty(len(state.bytes_of(wanted.key)), np.uint8)
            hello = Link("state", engine.peer, wanted.peer, key=wanted.key)
            services.fetch(wanted.source, hello.signed(self._token, engine.run), data.data)
            if content_hash(data) != wanted.hash:
                raise StateError(f"{wanted.key!r} from {wanted.peer} is not what was elected.")
            fetched[wanted.key] = data
        for key, data in fetched.items():
            state.bytes_of(key)[:] = data.data
        return sum(len(data) for data in fetched.values())

    def serve(self, link: Link, connection: socket.socket) -> None:
        """Send one array to a peer that asks for it."""
        state = self._state
        if state is not None:
            data = state.bytes_of(link.key)
            services.serve_bytes(connection, data)
            self._served += len(data)
