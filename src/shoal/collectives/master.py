"""The master as a pure function: ``step(state, event) -> (state, what to send)``.

PCCL (arXiv 2505.14065), "Roles, phases, states": peers vote, and whatever all accepted peers of a
group have voted for happens. There are no sockets and no clock here; the shell
(:mod:`shoal.collectives.serve`) brings packets and disconnects, the simulator brings them in
random order. Departures from the official code, all for the sake of its known faults:

- groups vote apart, so a newcomer of one does not stop the others;
- a leaver or a broken link ends the *epoch* of its ring: all operations in flight are given up
  together, and every later call is answered with "relink" until a new ring stands;
- signatures (count, element type, operation, format) are compared before an operation begins;
- votes that can never meet are answered at once, with :class:`OutOfStep` as the reason;
- a finished measurement is followed by a round of connecting, so the better ring is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from shoal.collectives.election import elect
from shoal.collectives.group import (
    FREE,
    MEASURING,
    SYNCING,
    TOPOLOGY_VOTES,
    VOTES,
    Group,
    Member,
    Op,
    Phase,
    Round,
    State,
)
from shoal.collectives.packets import (
    Aborting,
    Address,
    AskPending,
    Commence,
    Committed,
    Complete,
    Connect,
    Failed,
    Initiate,
    LinksEstablished,
    Measure,
    Measured,
    Optimize,
    Pending,
    Retry,
    SyncComplete,
    SyncDone,
    SyncState,
    TopologyFailed,
    TopologyReady,
    Vote,
)
from shoal.collectives.topology import arrange

LOOPBACK = ("127.", "::1", "localhost")


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


def step(state: MasterState, event: Event) -> tuple[MasterState, list[Outgoing]]:
    """What follows from one event. The state that went in stays as it was."""
    if isinstance(event, Waited):
        return _waited(state)
    number = event.group if isinstance(event, Joined) else state.home.get(event.peer)
    if number is None:  # kicked while its packet was on the way
        return state, []
    turn = _Turn(state, number)
    if isinstance(event, Joined):
        turn.joined(event)
    elif isinstance(event, Left):
        turn.remove(event.peer, event.reason)
    else:
        turn.said(event.peer, event.packet)
    turn.evaluate()
    return turn.result(), turn.out


def _waited(state: MasterState) -> tuple[MasterState, list[Outgoing]]:
    out: list[Outgoing] = []
    for number in state.groups:
        turn = _Turn(state, number)
        turn.group.expected = frozenset()
        turn.evaluate()
        state = turn.result()
        out += turn.out
    return state, out


class _Turn:
    """One step of one group, on a copy of it. Nothing of it outlives the step."""

    def __init__(self, state: MasterState, number: int) -> None:
        self.state = state
        self.number = number
        self.group = state.groups[number].copy() if number in state.groups else Group()
        self.home = dict(state.home)
        self.seq = state.seq
        self.out: list[Outgoing] = []

    def result(self) -> MasterState:
        groups = dict(self.state.groups)
        if self.group.members or self.group.expected or self.group.next_revision:
            groups[self.number] = self.group
        else:
            groups.pop(self.number, None)
        return MasterState(groups, self.home, self.seq)

    # --- sending --------------------------------------------------------------------------------

    def send(self, peer: str, packet: object) -> None:
        self.out.append(Send(peer, packet))

    def note(self, kind: str, **body: Any) -> None:
        self.out.append(Note(kind, {"group": self.number, **body}))

    def set(self, peer: str, state: State) -> None:
        self.group.members[peer] = replace(self.group.members[peer], state=state)

    def kick(self, peer: str, reason: str) -> None:
        self.out.append(Kick(peer, reason))
        self.note("kick", peer=peer, reason=reason)
        self.remove(peer, f"it was removed: {reason}")

    # --- coming and going -----------------------------------------------------------------------

    def joined(self, event: Joined) -> None:
        group = self.group
        assert event.peer not in self.home, "the shell gives every connection an id of its own"
        group.members[event.peer] = Member(event.peer, event.address, event.pool)
        self.home[event.peer] = self.number
        group.expected -= {event.peer}
        self.note("join", peer=event.peer)
        if complaint := self._unfit(event):
            self.kick(event.peer, complaint)

    def _unfit(self, event: Joined) -> str | None:
        others = [
            member
            for number, group in {**self.state.groups, self.number: self.group}.items()
            for member in group.members.values()
            if member.id != event.peer
        ]
        local = event.address.host.startswith(LOOPBACK)
        for other in others:
            if other.address.host.startswith(LOOPBACK) != local:
                return (
                    f"This peer is at {event.address.host}, another at {other.address.host}: "
                    "peers on the master's machine must join by its outer address, too."
                )
        for member in self.group.members.values():
            if member.pool != event.pool:
                return (
                    f"This peer has a pool of {event.pool} connections, its group of {member.pool}."
                )
        return None

    def remove(self, peer: str, reason: str) -> None:
        """Take a peer out of everything; the caller evaluates afterwards."""
        group = self.group
        member = group.members.pop(peer)
        self.home.pop(peer, None)
        group.rates = {pair: rate for pair, rate in group.rates.items() if peer not in pair}
        group.unreachable = frozenset(pair for pair in group.unreachable if peer not in pair)
        self.note("leave", peer=peer, reason=reason)
        if group.round is not None and peer in group.round.ring:
            self.fail_round(f"Peer {peer} is gone: {reason}.", without=peer)
        if member.phase is Phase.ACCEPTED:
            group.ring = tuple(other for other in group.ring if other != peer)
            self.break_ring(f"Peer {peer} is gone: {reason}.")
            if not group.ring:  # nobody is left who holds the state it counted
                group.next_revision = 0

    def break_ring(self, reason: str) -> None:
        """End the epoch: everything that needs the ring's links is answered now."""
        group = self.group
        group.linked = False
        for tag in list(group.ops):
            self.fail_op(tag, "relink", reason)
        for peer in group.ring:
            if group.members[peer].state in SYNCING | MEASURING:
                self.refuse_call(peer, "relink", reason)
        group.ballots.clear()

    def refuse_call(self, peer: str, kind: str, reason: str) -> None:
        """Answer the exclusive call a peer is in with a failure."""
        measuring = self.group.members[peer].state in MEASURING
        self.set(peer, State.OPTIMIZE_FAILED if measuring else State.IDLE)
        self.group.ballots.pop(peer, None)
        self.send(peer, Retry(kind, reason))

    # --- packets --------------------------------------------------------------------------------

    def said(self, peer: str, packet: object) -> None:
        member = self.group.members[peer]
        handler = _HANDLERS.get(type(packet))
        if handler is None:
            self.kick(peer, f"{type(packet).__name__} is not for a peer to say here.")
        elif member.phase is Phase.REGISTERED and not isinstance(packet, LinksEstablished):
            self.kick(peer, f"{type(packet).__name__} comes from a peer not yet admitted.")
        else:
            handler(self, peer, packet)

    def begin_call(self, peer: str, what: str, *, needs_ring: bool) -> bool:
        """Whether a peer may enter an exclusive call; answers it where not."""
        state = self.group.members[peer].state
        if state not in FREE:
            self.kick(peer, f"{what} is illegal in the state {state}.")
        elif needs_ring and not self.group.linked:
            self.send(peer, Retry("relink", "The ring is not connected."))
        else:
            return True
        return False

    def vote(self, peer: str, packet: Vote) -> None:
        if self.begin_call(peer, "A vote on the topology", needs_ring=False):
            self.set(peer, State.VOTE_ACCEPT if packet.admit else State.VOTE_NO_NEW)

    def links_established(self, peer: str, packet: LinksEstablished) -> None:
        group, current = self.group, self.group.round
        if current is None or packet.epoch != current.epoch or peer not in current.missing:
            return  # of a round that has failed since
        if packet.ok:
            self.set(peer, State.WAITING)
            group.round = replace(current, missing=current.missing - {peer})
            return
        pairs = {(peer, other) for other in packet.failed if other in current.ring}
        group.unreachable |= pairs
        self.fail_round(f"Peer {peer} has no links: {packet.detail or 'it gave no reason'}.")

    def ask_pending(self, peer: str, packet: AskPending) -> None:
        member = self.group.members[peer]
        if member.asking:
            self.kick(peer, "It asks for pending peers twice at once.")
        else:
            self.group.members[peer] = replace(member, asking=True)

    def optimize(self, peer: str, packet: Optimize) -> None:
        if self.begin_call(peer, "A vote on measuring", needs_ring=True):
            self.group.measure_seconds = packet.seconds
            self.set(peer, State.VOTE_OPTIMIZE)

    def measured(self, peer: str, packet: Measured) -> None:
        group = self.group
        if packet.turn != group.turn or group.members[peer].state is not State.OPTIMIZE:
            return
        for target, rate in packet.rates.items():
            if target in group.members and rate > 0:
                group.rates[peer, target] = rate
            elif target in group.members:
                group.unreachable |= {(peer, target)}
        self.set(peer, State.VOTE_OPTIMIZED)

    def sync_state(self, peer: str, packet: SyncState) -> None:
        if self.begin_call(peer, "Shared-state sync", needs_ring=True):
            self.set(peer, State.VOTE_SYNC)
            self.group.ballots[peer] = packet

    def sync_done(self, peer: str, packet: SyncDone) -> None:
        group = self.group
        served = group.members[peer].state in (State.DISTRIBUTE, State.REQUEST)
        if packet.turn != group.turn or not served:
            return
        if packet.ok:
            self.set(peer, State.VOTE_SYNCED)
            return
        reason = f"Peer {peer} could not fetch the shared state: {packet.detail}."
        for other in group.ring:
            if group.members[other].state in SYNCING:
                self.refuse_call(other, "relink", reason)

    def initiate(self, peer: str, packet: Initiate) -> None:
        group, tag = self.group, packet.tag
        member = group.members[peer]
        op = group.ops.get(tag, Op(tag))
        if member.state not in FREE | {State.COLLECTIVE}:
            self.kick(peer, f"An operation (tag {tag}) is illegal in the state {member.state}.")
        elif peer in op.votes:
            self.kick(peer, f"Tag {tag} is in flight already.")
        elif not group.linked:
            self.send(peer, Failed(tag, "relink", "The ring is not connected."))
        elif len(group.ring) < 2:
            reason = f"Tag {tag} needs a second peer: there is only one in group {self.number}."
            self.send(peer, Failed(tag, "too few", reason))
        else:
            group.ops[tag] = replace(op, votes={**op.votes, peer: packet.signature})
            self.set(peer, State.COLLECTIVE)

    def complete(self, peer: str, packet: Complete) -> None:
        op = self.group.ops.get(packet.tag)
        if op is None or op.seq != packet.seq or peer in op.done:
            return  # given up since
        if packet.ok:
            self.group.ops[packet.tag] = replace(op, done=op.done | {peer})
        else:
            self.break_ring(f"Peer {peer} gave tag {packet.tag} up: {packet.detail}.")

    # --- what votes lead to ---------------------------------------------------------------------

    def evaluate(self) -> None:
        """Let everything happen that now has all votes: after every event, also a leave."""
        group = self.group
        self.found()
        if group.all_in(*TOPOLOGY_VOTES):
            admit = group.all_in(State.VOTE_ACCEPT)
            self.start_round(group.waiting if admit else ())
        if group.round is not None and not group.round.missing:
            self.finish_round()
        if group.all_in(State.VOTE_OPTIMIZE):
            self.start_measuring()
        if group.all_in(State.VOTE_OPTIMIZED):
            self.start_round(())
        if group.all_in(State.VOTE_SYNC):
            self.hold_election()
        if group.all_in(State.VOTE_SYNCED):
            self.finish_sync()
        self.answer_pending()
        for tag in list(group.ops):
            self.advance_op(tag)
        self.end_stalemate()

    def found(self) -> None:
        """Admit whoever waits where no accepted peer is left to vote on it."""
        group = self.group
        if not group.ring and group.round is None and group.waiting and not group.expected:
            self.start_round(group.waiting)

    def start_round(self, newcomers: tuple[str, ...]) -> None:
        group = self.group
        wanted = (*group.ring, *newcomers)
        ring, unplaced = arrange(
            wanted, keep=group.ring, rates=group.rates, unreachable=group.unreachable
        )
        for peer in unplaced:
            self.kick(peer, "No ring avoids the links that this peer could not make.")
        if any(group.members[peer].state in FREE for peer in group.ring) or not ring:
            return  # the kick has answered those who measured: they vote again
        if group.linked and ring == group.ring:
            self.announce(ring)
            return
        group.linked = False
        group.epoch += 1
        group.round = Round(group.epoch, ring, frozenset(ring) if len(ring) > 1 else frozenset())
        for i, peer in enumerate(ring):
            self.set(peer, State.CONNECTING)
            if len(ring) > 1:
                after, before = ring[(i + 1) % len(ring)], ring[i - 1]
                member = group.members[after]
                packet = Connect(group.epoch, after, member.address, before, member.pool)
                self.send(peer, packet)
        if len(ring) == 1:
            self.finish_round()

    def finish_round(self) -> None:
        group = self.group
        assert group.round is not None
        if group.round.ring != group.ring:
            self.note("ring", epoch=group.epoch, ring=list(group.round.ring))
        ring, group.round, group.linked = group.round.ring, None, True
        group.ring = ring
        self.announce(ring)

    def announce(self, ring: tuple[str, ...]) -> None:
        group = self.group
        for peer in ring:
            member = group.members[peer]
            if member.phase is Phase.REGISTERED:
                self.note("accept", peer=peer)
            group.members[peer] = replace(member, phase=Phase.ACCEPTED, state=State.IDLE)
            self.send(peer, self.ready(ring))

    def ready(self, ring: tuple[str, ...]) -> TopologyReady:
        sizes = {number: len(other.ring) for number, other in self.state.groups.items()}
        return TopologyReady(self.group.epoch, ring, {**sizes, self.number: len(ring)})

    def fail_round(self, reason: str, without: str = "") -> None:
        group = self.group
        assert group.round is not None
        failed, group.round = group.round, None
        for peer in failed.ring:
            if peer != without and peer in group.members:
                accepted = group.members[peer].phase is Phase.ACCEPTED
                self.set(peer, State.CONNECTING_FAILED if accepted else State.IDLE)
                self.send(peer, TopologyFailed(failed.epoch, reason))

    def start_measuring(self) -> None:
        """Ask every peer for the edges nobody has measured, in an order that avoids clashes."""
        group = self.group
        group.turn += 1
        n = len(group.ring)
        for i, peer in enumerate(group.ring):
            others = [group.ring[(i + k) % n] for k in range(1, n)]
            missing = [
                other
                for other in others
                if (peer, other) not in group.rates and (peer, other) not in group.unreachable
            ]
            targets = {other: group.members[other].address for other in missing}
            self.set(peer, State.OPTIMIZE)
            self.send(peer, Measure(group.turn, targets, group.measure_seconds))

    def hold_election(self) -> None:
        group = self.group
        group.turn += 1
        addresses = {peer: group.members[peer].address for peer in group.ring}
        found = elect(group.ballots, addresses, turn=group.turn, next_revision=group.next_revision)
        self.note("election", revision=found.revision, kicked=dict(found.kicked))
        for peer, reason in found.kicked.items():  # ends the epoch: the others call again
            self.kick(peer, reason)
        if found.kicked or found.revision is None:
            return
        group.elected_revision = found.revision
        for peer, packet in found.told.items():
            self.set(peer, State.REQUEST if packet.fetch else State.DISTRIBUTE)
            self.send(peer, packet)

    def finish_sync(self) -> None:
        group = self.group
        group.next_revision = max(group.next_revision, group.elected_revision + 1)
        group.ballots.clear()
        for peer in group.ring:
            self.set(peer, State.IDLE)
            self.send(peer, SyncComplete(group.turn, group.elected_revision))
        self.note("synced", revision=group.elected_revision)

    def answer_pending(self) -> None:
        group = self.group
        if group.ring and all(group.members[peer].asking for peer in group.ring):
            for peer in group.ring:
                group.members[peer] = replace(group.members[peer], asking=False)
                self.send(peer, Pending(bool(group.waiting)))

    def advance_op(self, tag: int) -> None:
        group = self.group
        op = group.ops[tag]
        if not op.seq and len(op.votes) == len(group.ring):
            if len(set(op.votes.values())) > 1:
                self.fail_op(tag, "signature", _differing(op))
                return
            self.seq += 1
            group.ops[tag] = replace(op, seq=self.seq)
            for peer in group.ring:
                self.send(peer, Commence(tag, self.seq, group.epoch))
            self.note("commence", tag=tag, seq=self.seq, world=len(group.ring))
        elif op.seq and len(op.done) == len(group.ring):
            self.end_op(tag, lambda: Committed(tag, op.seq))
            self.note("commit", tag=tag, seq=op.seq, signature=next(iter(op.votes.values())))

    def fail_op(self, tag: int, kind: str, reason: str) -> None:
        op = self.group.ops[tag]
        if op.seq:
            self.end_op(tag, lambda: Aborting(tag, op.seq, reason))
            self.note("abort", tag=tag, seq=op.seq, reason=reason)
        else:
            self.end_op(tag, lambda: Failed(tag, kind, reason))

    def end_op(self, tag: int, answer: Callable[[], object]) -> None:
        op = self.group.ops.pop(tag)
        for peer in op.votes:
            if peer not in self.group.members:
                continue
            self.send(peer, answer())
            if not any(peer in other.votes for other in self.group.ops.values()):
                self.set(peer, State.IDLE)

    def pass_voters(self) -> None:
        """Answer votes on the topology with the ring that stands where all others wait elsewhere.

        So a newcomer whose loop begins with such a vote falls in step with those who have just
        admitted it by theirs.
        """
        group = self.group
        voters = [p for p in group.ring if group.members[p].state in TOPOLOGY_VOTES]
        others = [p for p in group.ring if p not in voters]
        opening = {p for op in group.ops.values() if not op.seq for p in op.votes}
        waiting = [p for p in others if p in opening or _wait(group.members[p], True)]
        if voters and others and group.linked and len(waiting) == len(others):
            for peer in voters:
                self.set(peer, State.IDLE)
                self.send(peer, self.ready(group.ring))

    def end_stalemate(self) -> None:
        """Answer votes that can never meet: all wait, or an operation waits for a voter."""
        self.pass_voters()
        group = self.group
        for tag, op in list(group.ops.items()):
            missing = [peer for peer in group.ring if peer not in op.votes]
            late = [p for p in missing if group.members[p].state in VOTES - TOPOLOGY_VOTES]
            if not op.seq and late:
                state = group.members[late[0]].state
                self.fail_op(
                    tag,
                    "out of step",
                    f"Peer {next(iter(op.votes))} calls tag {tag}, while peer {late[0]} is in "
                    f"{state}: all peers of a group must make the same calls.",
                )
        waits = {peer: _wait(group.members[peer], group.linked) for peer in group.ring}
        if len(set(waits.values())) < 2 or None in waits.values():
            return
        told = ", ".join(f"peer {peer} is in {wait}" for peer, wait in sorted(waits.items()))
        for peer in group.ring:
            group.members[peer] = replace(group.members[peer], asking=False)
            self.refuse_call(peer, "out of step", f"Nobody can go on: {told}.")


def _wait(member: Member, linked: bool) -> str | None:
    """The vote an accepted peer waits in, those on the topology as one; None where it is free.

    A question alone holds nobody while the ring is broken: another thread may yet vote for a new
    one.
    """
    if member.state in TOPOLOGY_VOTES:
        return "a vote on the topology"
    if member.state in VOTES:
        return str(member.state)
    asks = member.asking and member.state in FREE and linked
    return "a question for pending peers" if asks else None


def _differing(op: Op) -> str:
    (one, first), *others = sorted(op.votes.items())
    other, second = next((peer, s) for peer, s in others if s != first)
    return f"Tag {op.tag} is {first} for peer {one}, but {second} for peer {other}."


_HANDLERS: dict[type, Callable[[_Turn, str, Any], None]] = {
    Vote: _Turn.vote,
    LinksEstablished: _Turn.links_established,
    AskPending: _Turn.ask_pending,
    Optimize: _Turn.optimize,
    Measured: _Turn.measured,
    SyncState: _Turn.sync_state,
    SyncDone: _Turn.sync_done,
    Initiate: _Turn.initiate,
    Complete: _Turn.complete,
}
