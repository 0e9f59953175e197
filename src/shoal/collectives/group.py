"""What the master knows of one group of peers: who is in it, and what each one waits for.

The names of phases and connection states are those of the official implementation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from shoal.collectives.packets import Address, SyncState


class Phase(StrEnum):
    """Whether a peer takes part, or waits to be admitted."""

    REGISTERED = "PEER_REGISTERED"
    ACCEPTED = "PEER_ACCEPTED"


class ConnectionState(StrEnum):
    """What a peer does; operations under way have states of their own, by tag."""

    IDLE = "IDLE"
    VOTE_ACCEPT = "VOTE_ACCEPT_NEW_PEERS"
    VOTE_NO_NEW = "VOTE_NO_NEW_PEERS_ESTABLISH_P2P_CONNECTIONS"
    CONNECTING = "CONNECTING_TO_PEERS"
    CONNECTING_FAILED = "CONNECTING_TO_PEERS_FAILED"
    WAITING = "WAITING_FOR_OTHER_PEERS"
    VOTE_OPTIMIZE = "VOTE_OPTIMIZE_TOPOLOGY"
    OPTIMIZE = "OPTIMIZE_TOPOLOGY"
    OPTIMIZE_FAILED = "OPTIMIZE_TOPOLOGY_FAILED"
    VOTE_OPTIMIZED = "VOTE_COMPLETE_TOPOLOGY_OPTIMIZATION"
    VOTE_SYNC = "VOTE_SYNC_SHARED_STATE"
    DISTRIBUTE = "DISTRIBUTE_SHARED_STATE"
    REQUEST = "REQUEST_SHARED_STATE"
    VOTE_SYNCED = "VOTE_COMPLETE_SHARED_STATE_SYNC"
    COLLECTIVE = "COLLECTIVE_COMMUNICATIONS_RUNNING"


State = ConnectionState
FREE = frozenset({State.IDLE, State.CONNECTING_FAILED, State.OPTIMIZE_FAILED})
TOPOLOGY_VOTES = frozenset({State.VOTE_ACCEPT, State.VOTE_NO_NEW})
LINKING = frozenset({State.CONNECTING, State.WAITING})
MEASURING = frozenset({State.VOTE_OPTIMIZE, State.OPTIMIZE, State.VOTE_OPTIMIZED})
SYNCING = frozenset({State.VOTE_SYNC, State.DISTRIBUTE, State.REQUEST, State.VOTE_SYNCED})
VOTES = TOPOLOGY_VOTES | {State.VOTE_OPTIMIZE, State.VOTE_SYNC}


class TagState(StrEnum):
    """What an operation waits for."""

    INITIATE = "VOTE_INITIATE_COLLECTIVE_COMMS"
    PERFORM = "PERFORM_COLLECTIVE_COMMS"
    COMPLETE = "VOTE_COMPLETE_COLLECTIVE_COMMS"


@dataclass(frozen=True, slots=True)
class Member:
    """A connected peer; ``asking`` is the one vote that is orthogonal to its state."""

    id: str
    address: Address
    pool: int = 1
    phase: Phase = Phase.REGISTERED
    state: State = State.IDLE
    asking: bool = False


@dataclass(frozen=True, slots=True)
class Op:
    """An operation: who has asked for it as what, its number once begun, who has finished."""

    tag: int
    votes: Mapping[str, str] = field(default_factory=dict)
    seq: int = 0
    done: frozenset[str] = frozenset()

    def state_of(self, peer: str) -> TagState:
        """What this peer does in it."""
        if not self.seq:
            return TagState.INITIATE
        return TagState.COMPLETE if peer in self.done else TagState.PERFORM


@dataclass(frozen=True, slots=True)
class Round:
    """A ring being connected: ``missing`` have not reported yet."""

    epoch: int
    ring: tuple[str, ...]
    missing: frozenset[str]


@dataclass(slots=True)
class Group:
    """One group. Fields hold immutable values; a step works on a copy.

    ring           accepted peers in order
    linked         whether the links of ``epoch`` stand; a leaver or a broken link ends that
    turn           number of the shared-state or measuring round under way
    next_revision  the only revision that counts as up to date; 0 takes any
    expected       peers from the journal of an earlier master that are not back yet
    rates          Mbit/s by pair
    """

    members: dict[str, Member] = field(default_factory=dict)
    ring: tuple[str, ...] = ()
    linked: bool = False
    epoch: int = 0
    turn: int = 0
    round: Round | None = None
    ops: dict[int, Op] = field(default_factory=dict)
    ballots: dict[str, SyncState] = field(default_factory=dict)
    elected_revision: int = 0
    next_revision: int = 0
    expected: frozenset[str] = frozenset()
    rates: dict[tuple[str, str], float] = field(default_factory=dict)
    unreachable: frozenset[tuple[str, str]] = frozenset()
    measure_seconds: float = 1.0

    def copy(self) -> Group:
        """A copy whose containers are its own."""
        return replace(
            self,
            members=dict(self.members),
            ops=dict(self.ops),
            ballots=dict(self.ballots),
            rates=dict(self.rates),
        )

    @property
    def waiting(self) -> tuple[str, ...]:
        """Registered peers that are not admitted yet, in order of arrival."""
        return tuple(m.id for m in self.members.values() if m.phase is Phase.REGISTERED)

    def all_in(self, *states: State) -> bool:
        """Whether there are accepted peers, and all are in one of these states."""
        for peer in self.ring:  # asked very often: no generator
            if self.members[peer].state not in states:
                return False
        return bool(self.ring)
