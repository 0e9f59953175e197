"""A peer's first words: it reaches the master, shows the token, and registers."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any

from shoal.collectives.errors import MasterLost, Refused
from shoal.collectives.hello import greet
from shoal.collectives.packets import Frames, Kicked, Register, Registered, pack

SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Registration:
    """A connection whose peer is known; ``early`` are packets that came with the answer."""

    control: socket.socket
    registered: Registered
    frames: Frames
    early: tuple[Any, ...]


def register(master: tuple[str, int], token: str, asked: Register) -> Registration:
    """Register with a master; admission comes later.

    Raises :class:`MasterLost` where nobody answers and :class:`Refused` where it says no.
    """
    try:
        control = socket.create_connection(master, timeout=SECONDS)
    except OSError as error:
        raise MasterLost(f"No master answers at {master[0]}:{master[1]}: {error}.") from error
    try:
        control.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        greet(control, token)
        control.sendall(pack(asked))
        frames, found = Frames(), list[Any]()
        while not found:
            data = control.recv(1 << 16)
            if not data:
                raise MasterLost("The master has closed the connection.")
            found = frames.feed(data)
        first, *early = found
        if isinstance(first, Kicked):
            raise Refused(first.reason)
        assert isinstance(first, Registered), "a master answers Register with nothing else"
    except OSError as error:
        control.close()
        raise MasterLost(f"The master does not answer: {error}.") from error
    except BaseException:
        control.close()
        raise
    return Registration(control, first, frames, tuple(early))
