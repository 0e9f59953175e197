"""What the master's ``step`` is told and what it answers: events, its state, orders to a shell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shoal.collectives.group import Group
from shoal.collectives.packets import Address


@dataclass(frozen=True, slots=True)
class Joined:
    """A peer has shown the token and registered."""

    peer: str
    group: int
    address: Address
    pool: int = 1


@dataclass(frozen=True, slots=True)
class Left:
    """A peer's connection is gone, or it was silent for too long."""

    peer: str
    reason: str = "it left"


@dataclass(frozen=True, slots=True)
class Said:
    """A peer's packet."""

    peer: str
    packet: Any


@dataclass(frozen=True, slots=True)
class Waited:
    """The time that peers of an earlier master had to come back is over."""


Event = Joined | Left | Said | Waited


@dataclass(frozen=True, slots=True)
class Send:
    """A packet for a peer."""

    peer: str
    packet: Any


@dataclass(frozen=True, slots=True)
class Kick:
    """A peer to be told why, and disconnected."""

    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Note:
    """Something to be logged."""

    kind: str
    body: Mapping[str, Any]


Outgoing = Send | Kick | Note


@dataclass(frozen=True, slots=True)
class MasterState:
    """All the master knows. ``seq`` numbers operations over all groups."""

    groups: Mapping[int, Group] = field(default_factory=dict)
    home: Mapping[str, int] = field(default_factory=dict)
    seq: int = 0
