"""How a peer comes to its links: it dials the next one, and greets whoever knocks.

A connection that proves to be a link of the epoch under way is used for it, one of a later epoch
waits, and everything else is closed. The links of an epoch are handed over when the master says
that all peers have theirs.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

from shoal.collectives.errors import WireError
from shoal.collectives.linking import MOST_STRANGERS, Greeting, Linking
from shoal.collectives.links import tune
from shoal.collectives.loop import WRITABLE, Loop
from shoal.collectives.packets import Connect, Link, LinksEstablished

DIAL_SECONDS = 5.0


class Wiring:
    """``say`` reports to the master. Runs on the loop's thread."""

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        say: Callable[[object], None],
        *,
        me: str,
        token: str,
        run: str,
        pacing: int,
    ) -> None:
        self._loop, self._listener, self._say = loop, listener, say
        self._me, self._token, self._run, self._pacing = me, token, run, pacing
        self._linking: Linking | None = None
        self._newest = 0
        self._early: list[tuple[Link, socket.socket]] = []
        self._strangers: dict[int, Greeting] = {}
        listener.setblocking(False)
        loop.watch(listener.fileno(), self._on_listener)

    def start(self, connect: Connect) -> None:
        """Make the links of a new epoch."""
        self.drop()
        self._newest = connect.epoch
        self._linking = linking = Linking(
            connect, me=self._me, token=self._token, run=self._run, pacing=self._pacing,
            timeout=DIAL_SECONDS,
        )  # fmt: skip
        try:
            linking.dial()
        except OSError as error:
            self._give_up(f"{connect.next} does not answer: {error}", (connect.next,))
            return
        for number in linking.dialing:
            self._loop.watch(number, lambda events, n=number: self._on_dialed(n), WRITABLE)  # type: ignore[misc]
        early, self._early = self._early, []
        for link, connection in early:
            self._assign(link, connection)

    def hand_over(self, epoch: int) -> Linking | None:
        """The links of this epoch, where they were made for it."""
        self._newest = max(self._newest, epoch)
        linking = self._linking
        if linking is None or linking.connect.epoch != epoch:
            return None
        self._linking = None
        return linking

    def drop(self) -> None:
        """Give up the links that are being made."""
        if self._linking is not None:
            for number in self._linking.dialing:
                self._loop.unwatch(number)
            self._linking.close()
            self._linking = None

    def check_time(self, now: float) -> None:
        """Give up what has taken too long."""
        if self._linking is not None and now > self._linking.until:
            connect = self._linking.connect
            complete = len(self._linking.tx) == connect.pool
            self._give_up(
                f"no connection from {connect.previous}" if complete else "it took too long",
                () if complete else (connect.next,),
            )
        for number, greeting in list(self._strangers.items()):
            if now > greeting.until:
                self._forget(number)

    def close(self) -> None:
        """Hang up on everybody; the listener is closed, too."""
        self.drop()
        for greeting in self._strangers.values():
            greeting.socket.close()
        for _, connection in self._early:
            connection.close()
        self._listener.close()

    def _on_dialed(self, number: int) -> None:
        linking = self._linking
        self._loop.unwatch(number)
        if linking is None:
            return
        try:
            linking.dialed(number)
        except OSError as error:
            peer = linking.connect.next
            self._give_up(f"{peer} does not answer: {error}", (peer,))
            return
        self._report_complete()

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
            self._loop.watch(number, lambda events: self._on_stranger(number))

    def _on_stranger(self, number: int) -> None:
        greeting = self._strangers[number]
        try:
            link = greeting.read()
        except (OSError, WireError):
            self._forget(number)
            return
        if link is None:
            return
        if link.purpose != "ring" or not link.genuine(self._token, self._run, self._me):
            self._forget(number)
            return
        self._loop.unwatch(number)
        del self._strangers[number]
        self._assign(link, greeting.socket)

    def _forget(self, number: int) -> None:
        self._loop.unwatch(number)
        self._strangers.pop(number).socket.close()

    def _assign(self, link: Link, connection: socket.socket) -> None:
        """Give an inbound connection to its epoch, keep it for a later one, or close it."""
        linking = self._linking
        if linking is not None and linking.accepts(link):
            linking.rx[link.lane] = connection
            self._report_complete()
        elif link.epoch > self._newest and len(self._early) < MOST_STRANGERS:
            self._early.append((link, connection))
        else:
            connection.close()

    def _report_complete(self) -> None:
        if self._linking is not None and self._linking.complete:
            self._say(LinksEstablished(self._linking.connect.epoch, True))

    def _give_up(self, detail: str, failed: tuple[str, ...]) -> None:
        assert self._linking is not None
        epoch = self._linking.connect.epoch
        self.drop()
        self._say(LinksEstablished(epoch, False, failed, detail))
