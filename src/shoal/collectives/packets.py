"""Everything that master and peers say to each other, and how it crosses the wire.

A packet is one frame: four bytes of length, then JSON, ``{"kind": …, "body": …}``. Tensor bytes
never pass here; they go from peer to peer (:mod:`shoal.collectives.links`).

Every request of a peer gets exactly one answer: ``Vote``, ``Optimize`` and ``SyncState`` end in
``TopologyReady``, ``SyncComplete`` or ``Retry``; ``Initiate`` in ``Commence`` or ``Failed``, and
after ``Commence`` in exactly one of ``Committed`` and ``Aborting``. Packets that could be late
carry the number of what they speak of (epoch, turn, seq), so that none is taken for the next.
"""

from __future__ import annotations

import hmac
import json
import struct
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pydantic import TypeAdapter, ValidationError

from shoal.collectives.errors import WireError
from shoal.collectives.hello import prove

LENGTH = struct.Struct("!I")
MAX_PACKET = 1 << 20
"""Bytes a control packet may have; a longer one closes the connection before it is read."""


class Strategy(StrEnum):
    """Who may give its shared state away and who may take another's."""

    ENFORCE_POPULAR = "enforce-popular"
    SEND_ONLY = "send-only"
    RECEIVE_ONLY = "receive-only"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a peer listens: for its ring neighbour, for shared state, for measurements."""

    host: str
    ring: int
    state: int
    bandwidth: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a shared state, without its data. ``unequal`` may differ between peers."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    hash: str
    unequal: bool = False


@dataclass(frozen=True, slots=True)
class Fetch:
    """A tensor to be fetched: its key, the hash it must have, and who serves it where."""

    key: str
    hash: str
    peer: str
    source: Address


# --- peer to master -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Register:
    """Asks to be admitted. ``host`` is where this peer listens, if not where it calls from;
    ``peer`` is the id it had before the connection broke."""

    group: int
    ring: int
    state: int
    bandwidth: int
    pool: int = 1
    host: str = ""
    peer: str = ""
    run: str = ""


@dataclass(frozen=True, slots=True)
class Observe:
    """Asks for the master's state without taking part."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Says that this side is alive."""


@dataclass(frozen=True, slots=True)
class Leave:
    """Says goodbye."""


@dataclass(frozen=True, slots=True)
class Vote:
    """Votes for a new ring; newcomers enter it if all votes ``admit`` them."""

    admit: bool


@dataclass(frozen=True, slots=True)
class LinksEstablished:
    """Reports on the links of one epoch; ``failed`` are peers that could not be reached."""

    epoch: int
    ok: bool
    failed: tuple[str, ...] = ()
    detail: str = ""


@dataclass(frozen=True, slots=True)
class AskPending:
    """Asks whether newcomers wait; all accepted peers ask, and get the same answer."""


@dataclass(frozen=True, slots=True)
class Optimize:
    """Votes for measuring the links and for the ring whose slowest edge is fastest."""

    seconds: float = 1.0


@dataclass(frozen=True, slots=True)
class Measured:
    """Mbit/s to each peer measured; 0 where it could not be reached."""

    turn: int
    rates: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SyncState:
    """Says what this peer's shared state is, without its data."""

    revision: int
    entries: tuple[Entry, ...]
    strategy: Strategy = Strategy.ENFORCE_POPULAR


@dataclass(frozen=True, slots=True)
class SyncDone:
    """Says whether this peer's shared state is now the elected one."""

    turn: int
    ok: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Initiate:
    """Asks to begin an operation; ``signature`` names count, element type, operation, format."""

    tag: int
    signature: str


@dataclass(frozen=True, slots=True)
class Complete:
    """Says that this peer has its result (or has given up); nothing is committed yet."""

    tag: int
    seq: int
    ok: bool
    detail: str = ""


# --- master to peer -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Registered:
    """The peer's id, the run's, and how often it must be heard."""

    peer: str
    run: str
    heartbeat: float = 1.0
    timeout: float = 10.0


@dataclass(frozen=True, slots=True)
class Kicked:
    """The last packet a removed peer gets."""

    reason: str


@dataclass(frozen=True, slots=True)
class Connect:
    """Links to make for an epoch: dial ``next``, expect ``previous``."""

    epoch: int
    next: str
    address: Address
    previous: str
    pool: int


@dataclass(frozen=True, slots=True)
class TopologyReady:
    """The ring that is now installed; ``sizes`` are the accepted peers of every group."""

    epoch: int
    ring: tuple[str, ...]
    sizes: dict[int, int]


@dataclass(frozen=True, slots=True)
class TopologyFailed:
    """The links of an epoch did not all come about: vote again."""

    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class Pending:
    """Whether newcomers wait."""

    waiting: bool


@dataclass(frozen=True, slots=True)
class Measure:
    """Peers to whom the rate is to be measured, in this order."""

    turn: int
    targets: dict[str, Address]
    seconds: float


@dataclass(frozen=True, slots=True)
class Elected:
    """The elected state: what this peer must fetch; nothing where it holds it already."""

    turn: int
    revision: int
    fetch: tuple[Fetch, ...] = ()
    votes: int = 0


@dataclass(frozen=True, slots=True)
class SyncComplete:
    """All peers hold the elected state."""

    turn: int
    revision: int


@dataclass(frozen=True, slots=True)
class Retry:
    """The exclusive call under way has failed: ``relink`` and call again, or ``out of step``."""

    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class Commence:
    """All peers of the ring have asked for the operation: go."""

    tag: int
    seq: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Failed:
    """An operation that never began; ``kind`` names the error."""

    tag: int
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class Committed:
    """All peers have their result."""

    tag: int
    seq: int


@dataclass(frozen=True, slots=True)
class Aborting:
    """The operation is given up: restore the input."""

    tag: int
    seq: int
    reason: str


@dataclass(frozen=True, slots=True)
class Status:
    """The master's state for people, see :func:`shoal.collectives.status.describe`."""

    report: dict[str, Any]


# --- peer to peer -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Link:
    """The first packet between two peers: what the connection is for, and the proof of it.

    ``purpose`` is "ring" (with epoch and lane), "state" (key) or "bandwidth".
    """

    purpose: str
    sender: str
    receiver: str
    epoch: int = 0
    lane: int = 0
    key: str = ""
    proof: str = ""

    def signed(self, token: str, run: str) -> Link:
        """The same, with its proof."""
        return Link(
            self.purpose, self.sender, self.receiver, self.epoch, self.lane, self.key,
            self._proof(token, run),
        )  # fmt: skip

    def genuine(self, token: str, run: str, receiver: str) -> bool:
        """Whether it was signed for this run and this receiver."""
        known = hmac.compare_digest(self.proof.encode(), self._proof(token, run).encode())
        return known and self.receiver == receiver

    def _proof(self, token: str, run: str) -> str:
        said = (self.purpose, self.sender, self.receiver, self.epoch, self.lane, self.key)
        return prove(token, "link", run, *said).hex()


FROM_PEER = (
    Register, Observe, Heartbeat, Leave, Vote, LinksEstablished, AskPending, Optimize, Measured,
    SyncState, SyncDone, Initiate, Complete,
)  # fmt: skip
FROM_MASTER = (
    Registered, Kicked, Connect, TopologyReady, TopologyFailed, Pending, Measure, Elected,
    SyncComplete, Retry, Commence, Failed, Committed, Aborting, Status, Heartbeat,
)  # fmt: skip
_ADAPTERS: dict[str, TypeAdapter[Any]] = {
    kind.__name__: TypeAdapter(kind) for kind in {*FROM_PEER, *FROM_MASTER, Link}
}


def pack(packet: object) -> bytes:
    """One frame."""
    kind = type(packet).__name__
    body: bytes = _ADAPTERS[kind].dump_json(packet)
    text = b'{"kind":"%s","body":%s}' % (kind.encode(), body)
    return LENGTH.pack(len(text)) + text


def check_length(length: int) -> int:
    """The length itself; raises :class:`WireError` where nobody should allocate it."""
    if not 0 < length <= MAX_PACKET:
        raise WireError(
            f"A control packet of {length} bytes is announced, but must have 1 to {MAX_PACKET}."
        )
    return length


def unpack(text: bytes | bytearray) -> Any:
    """The packet in a frame without its length; raises :class:`WireError` where it is none."""
    try:
        found = json.loads(text)
        return _ADAPTERS[found["kind"]].validate_python(found["body"], strict=False)
    except (ValueError, KeyError, TypeError, ValidationError, RecursionError) as error:
        start = bytes(text[:40])
        raise WireError(f"{start!r} is no packet of this protocol.") from error


class Frames:
    """Cuts a stream into packets. ``feed`` returns those that are complete."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """Packets that these bytes complete; raises :class:`WireError` for what is none."""
        held = self._held
        held += data
        packets = []
        while len(held) >= LENGTH.size:
            end = LENGTH.size + check_length(LENGTH.unpack_from(held)[0])
            if len(held) < end:
                break
            packets.append(unpack(held[LENGTH.size : end]))
            del held[:end]
        return packets
