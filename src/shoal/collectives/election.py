"""Which shared state wins, who must fetch what from whom, and who must go.

PCCL (arXiv 2505.14065), "Shared state". Peers vote with hashes. Departures: those that are behind
fetch from all holders in turn instead of from the first one found; after a restart of the master,
which knows no revision, the highest revision wins before the most votes do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shoal.collectives.packets import Address, Elected, Entry, Fetch, Strategy, SyncState

Content = tuple[tuple[str, str, tuple[int, ...], str], ...]


@dataclass(frozen=True, slots=True)
class Election:
    """What each peer is told; who is kicked and why. ``revision`` is None without a winner."""

    revision: int | None
    told: Mapping[str, Elected] = field(default_factory=dict)
    kicked: Mapping[str, str] = field(default_factory=dict)


def elect(
    ballots: Mapping[str, SyncState],
    addresses: Mapping[str, Address],
    *,
    turn: int,
    next_revision: int,
) -> Election:
    """Decide by revision (up to date before behind), then votes, then the earliest id.

    Kicked are: peers ahead of ``next_revision`` (unless it is 0), a mixture of ENFORCE_POPULAR
    with others, peers whose keys or shapes differ from the winner's, and SEND_ONLY peers whose
    content lost. Kicks alone are returned where there are any before the winner is known.
    """
    if ahead := _ahead(ballots, next_revision) or _mixed(ballots):
        return Election(None, kicked=ahead)
    standing = {
        peer: ballot
        for peer, ballot in ballots.items()
        if ballot.strategy is not Strategy.RECEIVE_ONLY
    }
    if not standing:
        reason = "No peer offers its shared state: all are receive-only."
        return Election(None, kicked=dict.fromkeys(ballots, reason))
    groups: dict[tuple[int, Content], list[str]] = {}
    for peer in sorted(standing):
        ballot = standing[peer]
        groups.setdefault((ballot.revision, _content(ballot)), []).append(peer)
    (revision, _), holders = max(groups.items(), key=lambda item: (item[0][0], len(item[1])))
    winner = ballots[holders[0]]
    wrong = {
        peer: complaint
        for peer, ballot in ballots.items()
        if (complaint := _complaint(ballot, winner)) is not None
    }
    told = {}
    for place, peer in enumerate(sorted(set(ballots) - set(wrong))):
        dirty = _dirty(ballots[peer], winner)
        sources = [holders[(place + i) % len(holders)] for i in range(len(dirty))]
        fetch = tuple(
            Fetch(entry.key, entry.hash, source, addresses[source])
            for entry, source in zip(dirty, sources, strict=True)
        )
        told[peer] = Elected(turn, revision, fetch, len(holders))
    return Election(revision, told, wrong)


def _ahead(ballots: Mapping[str, SyncState], next_revision: int) -> dict[str, str]:
    if next_revision == 0:
        return {}
    return {
        peer: f"The shared state has revision {ballot.revision}, but {next_revision} is next."
        for peer, ballot in ballots.items()
        if ballot.revision > next_revision
    }


def _mixed(ballots: Mapping[str, SyncState]) -> dict[str, str]:
    popular = [p for p, b in ballots.items() if b.strategy is Strategy.ENFORCE_POPULAR]
    if not popular or len(popular) == len(ballots):
        return {}
    reason = "Either all peers sync with enforce-popular or none does."
    minority = popular if 2 * len(popular) <= len(ballots) else set(ballots) - set(popular)
    return dict.fromkeys(minority, reason)


def _content(ballot: SyncState) -> Content:
    """What must be equal to stand together; entries that may differ count by key alone."""
    return tuple(
        (entry.key, entry.dtype, entry.shape, "" if entry.unequal else entry.hash)
        for entry in sorted(ballot.entries, key=lambda entry: entry.key)
    )


def _complaint(ballot: SyncState, winner: SyncState) -> str | None:
    ours = {entry.key: (entry.dtype, entry.shape, entry.unequal) for entry in ballot.entries}
    theirs = {entry.key: (entry.dtype, entry.shape, entry.unequal) for entry in winner.entries}
    if ours != theirs:
        key = min(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))
        return (
            f"The shared state has {key!r} as {ours.get(key)}, the elected one as "
            f"{theirs.get(key)} (element type, shape, may differ)."
        )
    if ballot.strategy is Strategy.SEND_ONLY and _dirty(ballot, winner):
        key = _dirty(ballot, winner)[0].key
        return f"The shared state is send-only, but its {key!r} is not the elected one."
    return None


def _dirty(ballot: SyncState, winner: SyncState) -> list[Entry]:
    """The winner's entries that this peer does not hold."""
    held = {entry.key: entry.hash for entry in ballot.entries}
    return [e for e in winner.entries if not e.unequal and held.get(e.key) != e.hash]
