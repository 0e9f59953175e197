"""What the votes of a group lead to: rings, measurements, elections, operations.

:func:`evaluate` runs after every event, also after a leave: the leaver may have been the missing
vote.
"""

from __future__ import annotations

from dataclasses import replace

from shoal.collectives.election import elect
from shoal.collectives.group import FREE, TOPOLOGY_VOTES, Op, Phase, Round, State
from shoal.collectives.packets import (
    Commence,
    Committed,
    Connect,
    Measure,
    Pending,
    SyncComplete,
)
from shoal.collectives.stalemate import end_stalemate
from shoal.collectives.topology import arrange
from shoal.collectives.turn import Turn


def evaluate(turn: Turn) -> None:
    """Let everything happen that now has all votes: after every event, also a leave."""
    group = turn.group
    admit_first(turn)
    if group.all_in(*TOPOLOGY_VOTES):
        admit = group.all_in(State.VOTE_ACCEPT)
        start_round(turn, group.waiting if admit else ())
    if group.round is not None and not group.round.missing:
        finish_round(turn)
    if group.all_in(State.VOTE_OPTIMIZE):
        start_measuring(turn)
    if group.all_in(State.VOTE_OPTIMIZED):
        start_round(turn, ())
    if group.all_in(State.VOTE_SYNC):
        hold_election(turn)
    if group.all_in(State.VOTE_SYNCED):
        finish_sync(turn)
    answer_pending(turn)
    for tag in list(group.ops):
        advance_op(turn, tag)
    end_stalemate(turn)


def admit_first(turn: Turn) -> None:
    """Admit whoever waits where no accepted peer is left to vote on it."""
    group = turn.group
    if not group.ring and group.round is None and group.waiting and not group.expected:
        start_round(turn, group.waiting)


def start_round(turn: Turn, newcomers: tuple[str, ...]) -> None:
    group = turn.group
    wanted = (*group.ring, *newcomers)
    ring, unplaced = arrange(
        wanted, keep=group.ring, rates=group.rates, unreachable=group.unreachable
    )
    for peer in unplaced:
        turn.kick(peer, "No ring avoids the links that this peer could not make.")
    if any(group.members[peer].state in FREE for peer in group.ring) or not ring:
        return  # the kick has answered those who measured: they vote again
    if group.linked and ring == group.ring:
        announce(turn, ring)
        return
    group.linked = False
    group.epoch += 1
    group.round = Round(group.epoch, ring, frozenset(ring) if len(ring) > 1 else frozenset())
    for i, peer in enumerate(ring):
        turn.set(peer, State.CONNECTING)
        if len(ring) > 1:
            after, before = ring[(i + 1) % len(ring)], ring[i - 1]
            member = group.members[after]
            packet = Connect(group.epoch, after, member.address, before, member.pool)
            turn.send(peer, packet)
    if len(ring) == 1:
        finish_round(turn)


def finish_round(turn: Turn) -> None:
    group = turn.group
    assert group.round is not None
    if group.round.ring != group.ring:
        turn.note("ring", epoch=group.epoch, ring=list(group.round.ring))
    ring, group.round, group.linked = group.round.ring, None, True
    group.ring = ring
    announce(turn, ring)


def announce(turn: Turn, ring: tuple[str, ...]) -> None:
    group = turn.group
    for peer in ring:
        member = group.members[peer]
        if member.phase is Phase.REGISTERED:
            turn.note("accept", peer=peer)
        group.members[peer] = replace(member, phase=Phase.ACCEPTED, state=State.IDLE)
        turn.send(peer, turn.ready(ring))


def start_measuring(turn: Turn) -> None:
    """Ask every peer for the edges nobody has measured, in an order that avoids clashes."""
    group = turn.group
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
        turn.set(peer, State.OPTIMIZE)
        turn.send(peer, Measure(group.turn, targets, group.measure_seconds))


def hold_election(turn: Turn) -> None:
    group = turn.group
    group.turn += 1
    addresses = {peer: group.members[peer].address for peer in group.ring}
    found = elect(group.ballots, addresses, turn=group.turn, next_revision=group.next_revision)
    turn.note("election", revision=found.revision, kicked=dict(found.kicked))
    for peer, reason in found.kicked.items():  # ends the epoch: the others call again
        turn.kick(peer, reason)
    if found.kicked or found.revision is None:
        return
    group.elected_revision = found.revision
    for peer, packet in found.told.items():
        turn.set(peer, State.REQUEST if packet.fetch else State.DISTRIBUTE)
        turn.send(peer, packet)


def finish_sync(turn: Turn) -> None:
    group = turn.group
    group.next_revision = max(group.next_revision, group.elected_revision + 1)
    group.ballots.clear()
    for peer in group.ring:
        turn.set(peer, State.IDLE)
        turn.send(peer, SyncComplete(group.turn, group.elected_revision))
    turn.note("synced", revision=group.elected_revision)


def answer_pending(turn: Turn) -> None:
    group = turn.group
    if group.ring and all(group.members[peer].asking for peer in group.ring):
        for peer in group.ring:
            group.members[peer] = replace(group.members[peer], asking=False)
            turn.send(peer, Pending(bool(group.waiting)))


def advance_op(turn: Turn, tag: int) -> None:
    group = turn.group
    op = group.ops[tag]
    if not op.seq and len(op.votes) == len(group.ring):
        if len(set(op.votes.values())) > 1:
            turn.fail_op(tag, "signature", _differing(op))
            return
        turn.seq += 1
        group.ops[tag] = replace(op, seq=turn.seq)
        for peer in group.ring:
            turn.send(peer, Commence(tag, turn.seq, group.epoch))
        turn.note("commence", tag=tag, seq=turn.seq, world=len(group.ring))
    elif op.seq and len(op.done) == len(group.ring):
        turn.end_op(tag, lambda: Committed(tag, op.seq))
        turn.note("commit", tag=tag, seq=op.seq, signature=next(iter(op.votes.values())))


def _differing(op: Op) -> str:
    (one, first), *others = sorted(op.votes.items())
    other, second = next((peer, s) for peer, s in others if s != first)
    return f"Tag {op.tag} is {first} for peer {one}, but {second} for peer {other}."
