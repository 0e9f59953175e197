"""One step of one group, on a copy of it: sending, coming and going, giving up what was begun.

What a step may do to a group stands here; which packet or vote leads to it, in
:mod:`shoal.collectives.requests` and :mod:`shoal.collectives.consensus`. Whatever ends early ends
with an answer: no peer is left waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from shoal.collectives.events import Joined, Kick, MasterState, Note, Outgoing, Send
from shoal.collectives.group import MEASURING, SYNCING, Group, Member, Phase, State
from shoal.collectives.packets import Aborting, Failed, Retry, TopologyFailed, TopologyReady

LOOPBACK = ("127.", "::1", "localhost")


class Turn:
    """A copy of one group, and what is to be sent. Nothing of it outlives the step."""

    def __init__(self, state: MasterState, number: int) -> None:
        self.state = state
        self.number = number
        self.group = state.groups[number].copy() if number in state.groups else Group()
        self.home = dict(state.home)
        self.seq = state.seq
        self.out: list[Outgoing] = []

    def result(self) -> MasterState:
        """The master's state after this step; a group that has died out is forgotten."""
        groups = dict(self.state.groups)
        if self.group.members or self.group.expected or self.group.next_revision:
            groups[self.number] = self.group
        else:
            groups.pop(self.number, None)
        return MasterState(groups, self.home, self.seq)

    # --- sending --------------------------------------------------------------------------------

    def send(self, peer: str, packet: object) -> None:
        """Answer a peer."""
        self.out.append(Send(peer, packet))

    def note(self, kind: str, **body: Any) -> None:
        """Have something logged."""
        self.out.append(Note(kind, {"group": self.number, **body}))

    def set(self, peer: str, state: State) -> None:
        """What a peer does from now on."""
        self.group.members[peer] = replace(self.group.members[peer], state=state)

    def kick(self, peer: str, reason: str) -> None:
        """Have a peer told why it is removed, and remove it."""
        self.out.append(Kick(peer, reason))
        self.note("kick", peer=peer, reason=reason)
        self.remove(peer, f"it was removed: {reason}")

    # --- coming and going -----------------------------------------------------------------------

    def joined(self, event: Joined) -> None:
        """Let a peer wait for admission, or remove it where it cannot fit."""
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

    # --- giving up ------------------------------------------------------------------------------

    def fail_round(self, reason: str, without: str = "") -> None:
        """The links of the round under way will not all come about: let its peers vote again."""
        group = self.group
        assert group.round is not None
        failed, group.round = group.round, None
        for peer in failed.ring:
            if peer != without and peer in group.members:
                accepted = group.members[peer].phase is Phase.ACCEPTED
                self.set(peer, State.CONNECTING_FAILED if accepted else State.IDLE)
                self.send(peer, TopologyFailed(failed.epoch, reason))

    def fail_op(self, tag: int, kind: str, reason: str) -> None:
        """Give an operation up: exactly one answer to each peer that asked for it."""
        op = self.group.ops[tag]
        if op.seq:
            self.end_op(tag, lambda: Aborting(tag, op.seq, reason))
            self.note("abort", tag=tag, seq=op.seq, reason=reason)
        else:
            self.end_op(tag, lambda: Failed(tag, kind, reason))

    def end_op(self, tag: int, answer: Callable[[], object]) -> None:
        """Answer all who asked for it; who has no other operation is idle again."""
        op = self.group.ops.pop(tag)
        for peer in op.votes:
            if peer in self.group.members:
                self.send(peer, answer())
                if not any(peer in other.votes for other in self.group.ops.values()):
                    self.set(peer, State.IDLE)

    def ready(self, ring: tuple[str, ...]) -> TopologyReady:
        """What peers are told of a ring that stands."""
        sizes = {number: len(other.ring) for number, other in self.state.groups.items()}
        return TopologyReady(self.group.epoch, ring, {**sizes, self.number: len(ring)})
