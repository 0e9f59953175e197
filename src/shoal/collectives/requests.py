"""What a peer's packet does to its group; what then follows is :mod:`shoal.collectives.consensus`.

A request that is illegal in the peer's state removes the peer. One that is legal but comes too
late, or while the ring is broken, is answered with what to do instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from shoal.collectives.group import FREE, SYNCING, Op, Phase, State
from shoal.collectives.packets import (
    AskPending,
    Complete,
    Failed,
    Initiate,
    LinksEstablished,
    Measured,
    Optimize,
    Retry,
    SyncDone,
    SyncState,
    Vote,
)
from shoal.collectives.turn import Turn


def said(turn: Turn, peer: str, packet: object) -> None:
    """Act on one packet of a peer."""
    member = turn.group.members[peer]
    handler = _HANDLERS.get(type(packet))
    if handler is None:
        turn.kick(peer, f"{type(packet).__name__} is not for a peer to say here.")
    elif member.phase is Phase.REGISTERED and not isinstance(packet, LinksEstablished):
        turn.kick(peer, f"{type(packet).__name__} comes from a peer not yet admitted.")
    else:
        handler(turn, peer, packet)


def begin_call(turn: Turn, peer: str, what: str, *, needs_ring: bool) -> bool:
    """Whether a peer may enter an exclusive call; answers it where not."""
    state = turn.group.members[peer].state
    if state not in FREE:
        turn.kick(peer, f"{what} is illegal in the state {state}.")
    elif needs_ring and not turn.group.linked:
        turn.send(peer, Retry("relink", "The ring is not connected."))
    else:
        return True
    return False


def vote(turn: Turn, peer: str, packet: Vote) -> None:
    if begin_call(turn, peer, "A vote on the topology", needs_ring=False):
        turn.set(peer, State.VOTE_ACCEPT if packet.admit else State.VOTE_NO_NEW)


def links_established(turn: Turn, peer: str, packet: LinksEstablished) -> None:
    group, current = turn.group, turn.group.round
    if current is None or packet.epoch != current.epoch or peer not in current.missing:
        return  # of a round that has failed since
    if packet.ok:
        turn.set(peer, State.WAITING)
        group.round = replace(current, missing=current.missing - {peer})
        return
    pairs = {(peer, other) for other in packet.failed if other in current.ring}
    group.unreachable |= pairs
    turn.fail_round(f"Peer {peer} has no links: {packet.detail or 'it gave no reason'}.")


def ask_pending(turn: Turn, peer: str, packet: AskPending) -> None:
    member = turn.group.members[peer]
    if member.asking:
        turn.kick(peer, "It asks for pending peers twice at once.")
    else:
        turn.group.members[peer] = replace(member, asking=True)


def optimize(turn: Turn, peer: str, packet: Optimize) -> None:
    if begin_call(turn, peer, "A vote on measuring", needs_ring=True):
        turn.group.measure_seconds = packet.seconds
        turn.set(peer, State.VOTE_OPTIMIZE)


def measured(turn: Turn, peer: str, packet: Measured) -> None:
    group = turn.group
    if packet.turn != group.turn or group.members[peer].state is not State.OPTIMIZE:
        return
    for target, rate in packet.rates.items():
        if target in group.members and rate > 0:
            group.rates[peer, target] = rate
        elif target in group.members:
            group.unreachable |= {(peer, target)}
    turn.set(peer, State.VOTE_OPTIMIZED)


def sync_state(turn: Turn, peer: str, packet: SyncState) -> None:
    if begin_call(turn, peer, "Shared-state sync", needs_ring=True):
        turn.set(peer, State.VOTE_SYNC)
        turn.group.ballots[peer] = packet


def sync_done(turn: Turn, peer: str, packet: SyncDone) -> None:
    group = turn.group
    served = group.members[peer].state in (State.DISTRIBUTE, State.REQUEST)
    if packet.turn != group.turn or not served:
        return
    if packet.ok:
        turn.set(peer, State.VOTE_SYNCED)
        return
    reason = f"Peer {peer} could not fetch the shared state: {packet.detail}."
    for other in group.ring:
        if group.members[other].state in SYNCING:
            turn.refuse_call(other, "relink", reason)


def initiate(turn: Turn, peer: str, packet: Initiate) -> None:
    group, tag = turn.group, packet.tag
    member = group.members[peer]
    op = group.ops.get(tag, Op(tag))
    if member.state not in FREE | {State.COLLECTIVE}:
        turn.kick(peer, f"An operation (tag {tag}) is illegal in the state {member.state}.")
    elif peer in op.votes:
        turn.kick(peer, f"Tag {tag} is in flight already.")
    elif not group.linked:
        turn.send(peer, Failed(tag, "relink", "The ring is not connected."))
    elif len(group.ring) < 2:
        reason = f"Tag {tag} needs a second peer: there is only one in group {turn.number}."
        turn.send(peer, Failed(tag, "too few", reason))
    else:
        group.ops[tag] = replace(op, votes={**op.votes, peer: packet.signature})
        turn.set(peer, State.COLLECTIVE)


def complete(turn: Turn, peer: str, packet: Complete) -> None:
    op = turn.group.ops.get(packet.tag)
    if op is None or op.seq != packet.seq or peer in op.done:
        return  # given up since
    if packet.ok:
        turn.group.ops[packet.tag] = replace(op, done=op.done | {peer})
    else:
        turn.break_ring(f"Peer {peer} gave tag {packet.tag} up: {packet.detail}.")


_HANDLERS: dict[type, Callable[[Turn, str, Any], None]] = {
    Vote: vote,
    LinksEstablished: links_established,
    AskPending: ask_pending,
    Optimize: optimize,
    Measured: measured,
    SyncState: sync_state,
    SyncDone: sync_done,
    Initiate: initiate,
    Complete: complete,
}
