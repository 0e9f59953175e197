"""Votes that can never meet: peers that wait for each other in different calls.

The official code lets them wait for ever. Here a vote on the topology that nobody shares is
answered with the ring that stands, and everything else with :class:`OutOfStep` as the reason.
"""

from __future__ import annotations

from dataclasses import replace

from shoal.collectives.group import FREE, TOPOLOGY_VOTES, VOTES, Member, State
from shoal.collectives.turn import Turn


def pass_voters(turn: Turn) -> None:
    """Answer votes on the topology with the ring that stands where all others wait elsewhere.

    So a newcomer whose loop begins with such a vote falls in step with those who have just
    admitted it by theirs.
    """
    group = turn.group
    voters = [p for p in group.ring if group.members[p].state in TOPOLOGY_VOTES]
    others = [p for p in group.ring if p not in voters]
    opening = {p for op in group.ops.values() if not op.seq for p in op.votes}
    waiting = [p for p in others if p in opening or _wait(group.members[p], True)]
    if voters and others and group.linked and len(waiting) == len(others):
        for peer in voters:
            turn.set(peer, State.IDLE)
            turn.send(peer, turn.ready(group.ring))


def end_stalemate(turn: Turn) -> None:
    """Answer votes that can never meet: all wait, or an operation waits for a voter."""
    pass_voters(turn)
    group = turn.group
    for tag, op in list(group.ops.items()):
        missing = [peer for peer in group.ring if peer not in op.votes]
        late = [p for p in missing if group.members[p].state in VOTES - TOPOLOGY_VOTES]
        if not op.seq and late:
            state = group.members[late[0]].state
            turn.fail_op(
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
        turn.refuse_call(peer, "out of step", f"Nobody can go on: {told}.")


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
