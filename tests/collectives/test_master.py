"""The master as a pure function: what votes lead to, what a leaver leads to, who is refused."""

from __future__ import annotations

from typing import Any

import pytest

from shoal.collectives import consensus, simulator
from shoal.collectives.events import Joined, Kick, Left, MasterState, Said, Send, Waited
from shoal.collectives.master import step
from shoal.collectives.packets import (
    Aborting,
    Address,
    AskPending,
    Commence,
    Committed,
    Complete,
    Connect,
    Elected,
    Entry,
    Initiate,
    LinksEstablished,
    Measure,
    Measured,
    Optimize,
    Pending,
    Retry,
    Strategy,
    SyncComplete,
    SyncDone,
    SyncState,
    TopologyFailed,
    TopologyReady,
    Vote,
)
from shoal.collectives.simulator import Simulation, Violation, check_state
from shoal.collectives.turn import Turn

LOCAL = Address("127.0.0.1", 1, 2, 3)


class Table:
    """A master with a hand on every connection; checks all invariants after every event."""

    def __init__(self, state: MasterState | None = None) -> None:
        self.state = state or MasterState()

    def feed(self, event: Any) -> list[tuple[str, Any]]:
        before, known = self.state, repr(self.state)
        self.state, out = step(before, event)
        assert repr(before) == known, "a step changed the state that went in"
        check_state(self.state, before)
        return [
            (item.peer, item.packet if isinstance(item, Send) else item)
            for item in out
            if isinstance(item, Send | Kick)
        ]

    def join(self, peer: str, group: int = 0, host: str = "127.0.0.1", pool: int = 1) -> Any:
        return self.feed(Joined(peer, group, Address(host, 1, 2, 3), pool))

    def all_say(self, packet: Any, *peers: str) -> list[tuple[str, Any]]:
        answers: list[tuple[str, Any]] = []
        for peer in peers:
            answers = self.feed(Said(peer, packet))
        return answers

    def ring_of(self, *peers: str, group: int = 0) -> None:
        """Let these peers become accepted and linked."""
        for peer in peers:
            self.join(peer, group)
        sent = self.feed(Said(peers[0], Vote(True)))
        epochs = {packet.epoch for _, packet in sent if isinstance(packet, Connect)}
        for epoch in epochs:
            self.all_say(LinksEstablished(epoch, True), *peers)
        assert set(self.state.groups[group].ring) == set(peers)
        assert self.state.groups[group].linked


def kinds(sent: list[tuple[str, Any]]) -> list[tuple[str, str]]:
    return [(peer, type(packet).__name__) for peer, packet in sent]


def test_the_first_peer_is_admitted_at_once_and_the_second_waits_for_its_vote():
    table = Table()
    assert table.join("a") == [("a", TopologyReady(1, ("a",), {0: 1}))]
    assert table.join("b") == []
    assert kinds(table.feed(Said("a", Vote(True)))) == [("a", "Connect"), ("b", "Connect")]
    assert table.feed(Said("a", LinksEstablished(2, True))) == []
    sent = table.feed(Said("b", LinksEstablished(2, True)))
    assert sent == [(p, TopologyReady(2, ("a", "b"), {0: 2})) for p in "ab"]


def test_a_vote_without_admission_leaves_newcomers_waiting():
    table = Table()
    table.join("a")
    table.join("b")
    assert table.feed(Said("a", Vote(False))) == [("a", TopologyReady(1, ("a",), {0: 1}))]


def test_groups_do_not_wait_for_each_others_votes():
    table = Table()
    table.ring_of("a", "b", group=0)
    table.ring_of("c", "d", group=1)
    table.join("e", group=1)
    sent = table.all_say(Vote(True), "c", "d")
    assert kinds(sent) == [("c", "Connect"), ("d", "Connect"), ("e", "Connect")]
    table.all_say(LinksEstablished(sent[0][1].epoch, True), "c", "d")
    ready = table.feed(Said("e", LinksEstablished(sent[0][1].epoch, True)))
    assert ready[0][1].sizes == {0: 2, 1: 3}


def test_a_ring_that_stands_is_not_connected_again():
    table = Table()
    table.ring_of("a", "b")
    epoch = table.state.groups[0].epoch
    sent = table.all_say(Vote(True), "a", "b")
    assert sent == [(p, TopologyReady(epoch, ("a", "b"), {0: 2})) for p in "ab"]


def test_an_operation_commences_and_commits_when_all_have_voted():
    table = Table()
    table.ring_of("a", "b")
    assert table.feed(Said("a", Initiate(5, "sum f32 3"))) == []
    sent = table.feed(Said("b", Initiate(5, "sum f32 3")))
    assert sent == [(p, Commence(5, 1, 2)) for p in "ab"]
    assert table.feed(Said("a", Complete(5, 1, True))) == []
    assert table.feed(Said("b", Complete(5, 1, True))) == [(p, Committed(5, 1)) for p in "ab"]


def test_differing_signatures_are_named_to_all_and_nothing_begins():
    table = Table()
    table.ring_of("a", "b")
    table.feed(Said("a", Initiate(5, "sum f32 3")))
    sent = table.feed(Said("b", Initiate(5, "avg f32 3")))
    assert [(p, x.kind) for p, x in sent] == [("a", "signature"), ("b", "signature")]
    assert sent[0][1].reason == "Tag 5 is sum f32 3 for peer a, but avg f32 3 for peer b."
    assert table.state.groups[0].linked and not table.state.groups[0].ops


def test_a_leaver_aborts_every_operation_once_and_its_missing_vote_is_not_waited_for():
    table = Table()
    table.ring_of("a", "b", "c")
    table.all_say(Initiate(1, "x"), "a", "b", "c")
    table.feed(Said("a", Initiate(2, "x")))
    sent = table.feed(Left("c"))
    assert kinds(sent) == [("a", "Aborting"), ("b", "Aborting"), ("a", "Failed")]
    assert table.feed(Said("a", Complete(1, 1, True))) == []  # was on its way: too late
    assert [x.kind for _, x in table.feed(Said("b", Initiate(2, "x")))] == ["relink"]


def test_a_leaver_may_have_been_the_missing_vote():
    for packet in (Vote(True), Vote(False), AskPending()):
        table = Table()
        table.ring_of("a", "b", "c")
        assert table.all_say(packet, "a", "b") == []
        assert {peer for peer, _ in table.feed(Left("c"))} == {"a", "b"}


def test_a_broken_link_ends_the_epoch_for_all():
    table = Table()
    table.ring_of("a", "b")
    table.all_say(Initiate(1, "x"), "a", "b")
    sent = table.feed(Said("a", Complete(1, 1, False, "the link to b broke")))
    assert all(isinstance(packet, Aborting) and "link to b" in packet.reason for _, packet in sent)
    assert kinds(table.all_say(Vote(False), "a", "b")) == [("a", "Connect"), ("b", "Connect")]


def test_a_failed_link_fails_the_round_and_its_pair_is_not_tried_again():
    table = Table()
    table.ring_of("a", "b", "c", "d")
    table.feed(Left("d"))
    table.join("d")
    connect = table.all_say(Vote(True), "a", "b", "c")
    ring = table.state.groups[0].round.ring
    epoch = connect[0][1].epoch
    failed = table.feed(Said(ring[0], LinksEstablished(epoch, False, (ring[1],), "timeout")))
    assert all(isinstance(packet, TopologyFailed) for _, packet in failed)
    assert len(failed) == 4
    table.all_say(Vote(True), *table.state.groups[0].ring)
    again = table.state.groups[0].round.ring
    assert set(again) == set("abcd")
    edges = {(again[i], again[(i + 1) % 4]) for i in range(4)}
    assert (ring[0], ring[1]) not in edges


def test_a_peer_that_fits_in_no_ring_is_removed_with_a_reason():
    table = Table()
    table.ring_of("a", "b")
    table.join("c")
    epoch = table.all_say(Vote(True), "a", "b")[0][1].epoch
    table.feed(Said("c", LinksEstablished(epoch, False, ("a",), "refused")))
    sent = table.all_say(Vote(True), "a", "b")
    epoch = sent[0][1].epoch  # the other way round: a c b
    table.feed(Said("c", LinksEstablished(epoch, False, ("b",), "refused")))
    sent = table.all_say(Vote(True), "a", "b")
    kicked = [packet for _, packet in sent if isinstance(packet, Kick)]
    assert [kick.peer for kick in kicked] == ["c"]
    assert table.state.groups[0].ring == ("a", "b")


def test_a_newcomer_that_dies_while_connecting_does_not_stop_the_others():
    table = Table()
    table.ring_of("a", "b")
    table.join("c")
    table.all_say(Vote(True), "a", "b")
    assert kinds(table.feed(Left("c"))) == [("a", "TopologyFailed"), ("b", "TopologyFailed")]
    assert len(table.all_say(Vote(True), "a", "b")) == 2


def test_pending_peers_are_answered_the_same_to_all():
    table = Table()
    table.ring_of("a", "b")
    assert table.feed(Said("a", AskPending())) == []
    table.join("c")
    assert table.feed(Said("b", AskPending())) == [(p, Pending(True)) for p in "ab"]


def test_a_measured_ring_is_installed_and_its_slowest_edge_is_the_fastest_possible():
    table = Table()
    table.ring_of("a", "b", "c", "d")
    sent = table.all_say(Optimize(0.5), *"abcd")
    assert all(isinstance(packet, Measure) and packet.seconds == 0.5 for _, packet in sent)
    assert sum(len(packet.targets) for _, packet in sent) == 12
    fast = {("a", "c"), ("c", "b"), ("b", "d"), ("d", "a")}
    for peer in "abcd":
        rates = {
            other: 900.0 if (peer, other) in fast else 50.0 for other in "abcd" if other != peer
        }
        sent = table.feed(Said(peer, Measured(1, rates)))
    assert kinds(sent) == [(p, "Connect") for p in "acbd"]
    ready = table.all_say(LinksEstablished(sent[0][1].epoch, True), *"abcd")
    assert {packet.ring for _, packet in ready} == {tuple("acbd")}
    assert table.state.groups[0].ring == tuple("acbd")
    again = table.all_say(Optimize(0.5), *"abcd")
    assert all(not packet.targets for _, packet in again)  # all is known already


def ballot(revision: int, content: str, strategy: Strategy = Strategy.ENFORCE_POPULAR) -> SyncState:
    return SyncState(revision, (Entry("w", "float32", (2,), content),), strategy)


def test_a_sync_elects_fetches_and_counts_the_revision_up():
    table = Table()
    table.ring_of("a", "b", "c")
    table.feed(Said("a", ballot(7, "x")))
    table.feed(Said("b", ballot(7, "x")))
    sent = dict(table.feed(Said("c", ballot(0, "y"))))
    assert all(isinstance(packet, Elected) and packet.revision == 7 for packet in sent.values())
    assert [len(sent[p].fetch) for p in "abc"] == [0, 0, 1]
    done = table.all_say(SyncDone(sent["a"].turn, True), "a", "b", "c")
    assert all(isinstance(packet, SyncComplete) for _, packet in done)
    assert table.state.groups[0].next_revision == 8


def test_a_revision_ahead_of_the_next_is_removed_and_the_others_sync_again():
    table = Table()
    table.ring_of("a", "b", "c")
    turn = table.all_say(ballot(0, "x"), "a", "b", "c")[0][1].turn
    table.all_say(SyncDone(turn, True), "a", "b", "c")
    table.all_say(ballot(1, "x"), "a", "b")
    sent = table.feed(Said("c", ballot(2, "x")))
    assert [p for p, x in sent if isinstance(x, Kick)] == ["c"]
    assert [p for p, x in sent if isinstance(x, Retry) and x.kind == "relink"] == ["a", "b"]


def test_a_failed_fetch_lets_all_try_again():
    table = Table()
    table.ring_of("a", "b")
    turn = table.all_say(ballot(0, "x"), "a", "b")[0][1].turn
    sent = table.feed(Said("b", SyncDone(turn, False, "hash")))
    assert kinds(sent) == [("a", "Retry"), ("b", "Retry")]
    assert table.feed(Said("a", SyncDone(turn, True))) == []


def test_votes_that_can_never_meet_are_answered_with_who_waits_for_what():
    table = Table()
    table.ring_of("a", "b")
    table.feed(Said("a", Optimize()))
    sent = table.feed(Said("b", ballot(0, "x")))
    assert [packet.kind for _, packet in sent] == ["out of step"] * 2
    assert "peer a is in VOTE_OPTIMIZE_TOPOLOGY" in sent[0][1].reason
    table.feed(Said("a", Initiate(3, "x")))
    sent = table.feed(Said("b", ballot(0, "x")))
    assert [(peer, packet.kind) for peer, packet in sent] == [("a", "out of step")]


@pytest.mark.parametrize("other", [ballot(0, "x"), Initiate(3, "x"), Optimize(), AskPending()])
def test_a_vote_on_the_topology_that_nobody_shares_changes_nothing(other):
    table = Table()
    table.ring_of("a", "b", "c")
    table.join("d")
    table.all_say(other, "a", "b")
    sent = table.feed(Said("c", Vote(True)))
    assert sent == [("c", TopologyReady(2, ("a", "b", "c"), {0: 3}))]


def test_one_peer_alone_cannot_reduce():
    table = Table()
    table.join("a")
    assert table.feed(Said("a", Initiate(1, "x")))[0][1].kind == "too few"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Initiate(1, "x"), Vote(True)),
        (Initiate(1, "x"), Initiate(1, "x")),
        (Vote(True), Vote(True)),
        (Vote(True), Initiate(1, "x")),
        (AskPending(), AskPending()),
        (Optimize(), Vote(True)),
    ],
)
def test_an_illegal_request_removes_the_peer(first, second):
    table = Table()
    table.ring_of("a", "b")
    table.feed(Said("a", first))
    sent = table.feed(Said("a", second))
    assert [p for p, packet in sent if isinstance(packet, Kick)] == ["a"]
    assert table.state.groups[0].ring == ("b",)


def test_peers_that_could_not_reach_each_other_are_refused():
    table = Table()
    table.join("a")
    (kick,) = [packet for _, packet in table.join("b", host="10.0.0.2")]
    assert isinstance(kick, Kick) and "127.0.0.1" in kick.reason
    (kick,) = [packet for _, packet in table.join("c", pool=8)]
    assert isinstance(kick, Kick) and "pool of 8" in kick.reason


def test_after_a_restart_the_peers_of_the_journal_are_waited_for():
    journal = MasterState(
        {0: simulator.Group(next_revision=4, expected=frozenset({"a", "b", "c"}))}
    )
    table = Table(journal)
    assert table.join("a") == []
    assert table.join("b") == []
    assert kinds(table.feed(Waited())) == [("a", "Connect"), ("b", "Connect")]
    assert table.state.groups[0].next_revision == 4


@pytest.mark.parametrize("block", range(4))
def test_random_schedules_keep_every_promise(block):
    for seed in range(500 * block, 500 * (block + 1)):
        Simulation(seed).run()


def broken_leave(turn: Turn, peer: str, reason: str) -> None:
    """A master that forgets to end the epoch when a peer leaves."""
    member = turn.group.members.pop(peer)
    turn.home.pop(peer, None)
    if turn.group.round is not None and peer in turn.group.round.ring:
        turn.fail_round("gone", without=peer)
    if member.phase is simulator.Phase.ACCEPTED:
        turn.group.ring = tuple(other for other in turn.group.ring if other != peer)


def test_the_simulator_finds_a_master_that_forgets_something(monkeypatch):
    def first_violation() -> str | None:
        for seed in range(200):
            try:
                Simulation(seed).run()
            except (Violation, KeyError) as found:
                return str(found)
        return None

    mutants = {
        (Turn, "remove"): broken_leave,
        (consensus, "answer_pending"): lambda turn: None,
        (consensus, "finish_sync"): lambda turn: None,
        (consensus, "admit_first"): lambda turn: None,
    }
    for (place, name), mutant in mutants.items():
        with monkeypatch.context() as patch:
            patch.setattr(place, name, mutant)
            assert first_violation() is not None, f"{name} can be broken without notice"
    assert first_violation() is None
