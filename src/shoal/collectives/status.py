"""The master's state for people: rings, what each peer waits for, rates between them."""

from __future__ import annotations

from typing import Any

from shoal.collectives.events import MasterState
from shoal.collectives.group import Group


def describe(run: str, state: MasterState) -> dict[str, Any]:
    """A JSON-ready report of all groups."""
    groups = {str(number): _describe(group) for number, group in sorted(state.groups.items())}
    return {"run": run, "operations": state.seq, "groups": groups}


def _describe(group: Group) -> dict[str, Any]:
    peers = {
        member.id: {
            "phase": str(member.phase),
            "state": str(member.state),
            "address": f"{member.address.host}:{member.address.ring}",
            "pool": member.pool,
            "tags": {
                str(op.tag): str(op.state_of(member.id))
                for op in group.ops.values()
                if member.id in op.votes
            },
        }
        for member in group.members.values()
    }
    return {
        "ring": list(group.ring),
        "linked": group.linked,
        "epoch": group.epoch,
        "next_revision": group.next_revision,
        "expected": sorted(group.expected),
        "peers": peers,
        "rates": [[*pair, rate] for pair, rate in sorted(group.rates.items())],
        "unreachable": [list(pair) for pair in sorted(group.unreachable)],
    }
