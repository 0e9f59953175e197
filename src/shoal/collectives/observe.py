"""Asks a master what it knows, without taking part."""

from __future__ import annotations

import socket
from typing import Any

from shoal.collectives.errors import MasterLost, Refused
from shoal.collectives.hello import greet
from shoal.collectives.packets import Frames, Kicked, Observe, Status, pack
from shoal.core.errors import InputError

SECONDS = 5.0


def parse_address(master: str) -> tuple[str, int]:
    """Host and port of ``host:port``; raises :class:`InputError` for what is none."""
    name, colon, port = master.rpartition(":")
    if not (name and colon and port.isdigit() and int(port) < 1 << 16):
        raise InputError(f"{master!r} is no master's address: give host:port.")
    return name.strip("[]"), int(port)


def observe(master: str, token: str) -> dict[str, Any]:
    """The report of :func:`shoal.collectives.status.describe`.

    Raises :class:`MasterLost` where nobody answers, :class:`Refused` without the right token.
    """
    try:
        with socket.create_connection(parse_address(master), timeout=SECONDS) as connection:
            greet(connection, token)
            connection.sendall(pack(Observe()))
            frames = Frames()
            while data := connection.recv(1 << 16):
                for packet in frames.feed(data):
                    if isinstance(packet, Kicked):
                        raise Refused(packet.reason)
                    if isinstance(packet, Status):
                        return packet.report
    except OSError as error:
        raise MasterLost(f"No master answers at {master}: {error}.") from error
    raise MasterLost(f"The master at {master} has closed the connection without an answer.")
