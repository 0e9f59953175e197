"""Random schedules against the master: peers that vote, die and come back, and what must hold.

Packets travel in order between one peer and the master, and in any order between peers; a seeded
scheduler chooses what moves next, who dies, who joins and which link breaks. After every event
:func:`check_state` looks at the master, each simulated peer refuses an answer it did not wait for,
and at the end, when failures stop, every peer must come to the end of its program.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from shoal.collectives.events import (
    Joined,
    Kick,
    Left,
    MasterState,
    Outgoing,
    Said,
    Send,
)
from shoal.collectives.group import FREE, LINKING, TOPOLOGY_VOTES, Group, Phase, State
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

Life = Generator[None, Any, None]
"""A peer's program: yields to wait for its next packet."""


DECISIVE = {State.VOTE_OPTIMIZE, State.VOTE_OPTIMIZED, State.VOTE_SYNC, State.VOTE_SYNCED}
"""Votes after which something must happen as soon as all peers are in one of them."""


class Violation(AssertionError):
    """A schedule under which the protocol broke a promise."""


@dataclass(slots=True)
class SimPeer:
    """A peer in the simulator; ``content`` stands for its shared state."""

    name: str
    world: Simulation
    to_master: deque[Any] = field(default_factory=deque)
    from_master: deque[Any] = field(default_factory=deque)
    epoch: int = 0
    ring: tuple[str, ...] = ()
    revision: int = 0
    content: int = 0
    life: Life | None = None

    def say(self, packet: object) -> None:
        self.to_master.append(packet)

    # Each call below is one request and waits for its one answer.

    def ready(self, *, vote: bool | None) -> Generator[None, Any, None]:
        """Until a ring stands, voting again after every failure; a newcomer does not vote."""
        if vote is not None:
            self.say(Vote(vote))
        while True:
            packet = yield
            if isinstance(packet, TopologyReady):
                self.epoch, self.ring = packet.epoch, packet.ring
                self.world.saw_ring(self, packet)
                return
            if isinstance(packet, TopologyFailed):
                if vote is not None:
                    self.say(Vote(vote))
            elif isinstance(packet, Connect):
                broken = self.world.breaks()
                failed = (packet.next,) if broken and self.world.breaks() else ()
                self.say(LinksEstablished(packet.epoch, not broken, failed, "sim"))
            elif isinstance(packet, Retry) and packet.kind == "out of step":
                raise Violation(f"{self.name} is out of step: {packet.reason}")
            else:
                raise Violation(f"{self.name} waits for a ring and gets {packet}")

    def pending(self) -> Generator[None, Any, bool]:
        self.say(AskPending())
        packet = yield
        if not isinstance(packet, Pending):
            raise Violation(f"{self.name} asks for pending peers and gets {packet}")
        return packet.waiting

    def optimize(self) -> Generator[None, Any, None]:
        self.say(Optimize(0.0))
        while True:
            packet = yield
            if isinstance(packet, Retry):
                return (yield from self.ready(vote=False))
            if not isinstance(packet, Measure):
                raise Violation(f"{self.name} measures and gets {packet}")
            rates = {
                target: 0.0 if self.world.breaks() else self.world.rng.uniform(1, 1000)
                for target in packet.targets
            }
            self.say(Measured(packet.turn, rates))
            packet = yield
            if isinstance(packet, Retry):
                return (yield from self.ready(vote=False))
            self.from_master.appendleft(packet)
            return (yield from self.connected_after_measuring())

    def connected_after_measuring(self) -> Generator[None, Any, None]:
        """The rest of a measuring call is a round of connecting, as after a vote."""
        while True:
            packet = yield
            if isinstance(packet, TopologyReady):
                self.epoch, self.ring = packet.epoch, packet.ring
                self.world.saw_ring(self, packet)
                return
            if isinstance(packet, TopologyFailed):
                return (yield from self.ready(vote=False))
            if not isinstance(packet, Connect):
                raise Violation(f"{self.name} connects after measuring and gets {packet}")
            self.say(LinksEstablished(packet.epoch, not self.world.breaks(), (), "sim"))

    def sync(self) -> Generator[None, Any, None]:
        while True:
            entry = Entry("x", "f32", (1,), str(self.content))
            self.say(SyncState(self.revision, (entry,)))
            packet = yield
            if isinstance(packet, Elected):
                ok = not (packet.fetch and self.world.breaks())
                if ok and packet.fetch:
                    self.content = int(packet.fetch[0].hash)
                if ok:
                    self.revision = packet.revision
                self.say(SyncDone(packet.turn, ok, "sim"))
                packet = yield
            if isinstance(packet, SyncComplete):
                self.world.synced(self, packet)
                return
            if not isinstance(packet, Retry) or packet.kind != "relink":
                raise Violation(f"{self.name} syncs and gets {packet}")
            yield from self.ready(vote=False)

    def reduce_many(self, tags: int) -> Generator[None, Any, bool]:
        """Reduce concurrent tags until all are committed; False where nobody else is left."""
        left = list(range(tags))
        while left:
            flying = dict.fromkeys(left, 0)
            for tag in left:
                self.say(Initiate(tag, f"sum f32 {self.revision}"))
            failed: list[int] = []
            alone = False
            while flying:
                packet = yield
                match packet:
                    case Commence() if flying.get(packet.tag) == 0:
                        flying[packet.tag] = packet.seq
                        ok = packet.epoch == self.epoch and not self.world.breaks()
                        self.say(Complete(packet.tag, packet.seq, ok, "sim"))
                    case Committed() if flying.get(packet.tag) == packet.seq:
                        self.world.ended(self, packet.seq, committed=True)
                        del flying[packet.tag]
                    case Aborting() if flying.get(packet.tag) == packet.seq:
                        self.world.ended(self, packet.seq, committed=False)
                        failed.append(packet.tag)
                        del flying[packet.tag]
                    case Failed() if flying.get(packet.tag) == 0:
                        if packet.kind not in ("relink", "too few"):
                            raise Violation(f"{self.name}: {packet}")
                        alone = alone or packet.kind == "too few"
                        failed.append(packet.tag)
                        del flying[packet.tag]
                    case _:
                        raise Violation(f"{self.name} reduces {flying} and gets {packet}")
            left = failed
            if left and alone:
                return False
            if left:
                yield from self.ready(vote=False)
                if len(self.ring) < 2:
                    return False
        return True

    def program(self, steps: int) -> Life:
        """As a trainer would: admit, sync, measure now and then, reduce, advance."""
        yield from self.ready(vote=None)
        for number in range(steps):
            first = not number  # a newcomer may vote on what has just admitted it, or not
            if (
                self.world.rng.random() < 0.5
                if first
                else self.revision % 2 or (yield from self.pending())
            ):
                yield from self.ready(vote=True)
            yield from self.sync()
            if self.revision % 4 == 3:
                yield from self.optimize()
            if (yield from self.reduce_many(1 + self.revision % 3)):
                self.revision += 1
                self.content = hash((self.content, self.revision))


class Simulation:
    """One seeded schedule. ``run`` raises :class:`Violation` where a promise is broken."""

    def __init__(self, seed: int, *, events: int = 60, peers: int = 4, steps: int = 4) -> None:
        self.rng = random.Random(seed)
        self.state = MasterState()
        self.peers: dict[str, SimPeer] = {}
        self.events, self.most, self.steps = events, peers, steps
        self.failing = True
        self.born = self.count = self.kicked = self.fed = 0
        self.outcomes: dict[int, bool] = {}
        self.rings: dict[int, tuple[str, ...]] = {}
        self.contents: dict[int, int] = {}

    def breaks(self) -> bool:
        """Whether something that can go wrong does."""
        return self.failing and self.rng.random() < 0.08

    def run(self) -> None:
        """Random events, then no more failures until all peers have finished."""
        for _ in range(2):
            self.spawn()
        for _ in range(self.events):
            chance = self.rng.random()
            if chance < 0.06 and len(self.peers) < self.most:
                self.spawn()
            elif chance < 0.10 and self.peers:
                self.kill(self.rng.choice(list(self.peers)))
            elif not self.move():
                break
        self.failing = False
        while self.move():
            self.count += 1
            if self.count > 20_000:
                raise Violation("the schedule does not come to an end")
        if self.peers:
            raise Violation(
                f"deadlock: {[(p.name, self.where(p.name)) for p in self.peers.values()]}"
            )

    def where(self, name: str) -> object:
        return self.state.groups[0].members.get(name)

    def spawn(self) -> None:
        self.born += 1
        peer = SimPeer(f"p{self.born:02d}", self)
        peer.life = peer.program(self.rng.randint(1, self.steps))
        next(peer.life)
        self.peers[peer.name] = peer
        self.feed(Joined(peer.name, 0, Address("127.0.0.1", 1, 2, 3)))

    def kill(self, name: str) -> None:
        """A peer vanishes; what it had sent may have arrived or not."""
        peer = self.peers.pop(name)
        for _ in range(self.rng.randint(0, len(peer.to_master))):
            self.feed(Said(name, peer.to_master.popleft()))
        if name in self.state.home:
            self.feed(Left(name))

    def move(self) -> bool:
        """Let one packet arrive, anywhere; False where nothing is on the way."""
        busy = [
            (p, way) for p in self.peers.values() for way in (p.to_master, p.from_master) if way
        ]
        if not busy:
            return False
        peer, way = self.rng.choice(busy)
        packet = way.popleft()
        if way is peer.to_master:
            self.feed(Said(peer.name, packet))
        elif isinstance(packet, Kick):
            del self.peers[peer.name]
        else:
            assert peer.life is not None
            try:
                peer.life.send(packet)
            except StopIteration:
                self.kill(peer.name)
        return True

    def feed(self, event: Joined | Left | Said) -> None:
        before = self.state
        self.fed += 1
        self.state, out = step(before, event)
        for item in out:
            self.deliver(item)
        check_state(self.state, before)
        if 0 not in self.state.groups:  # died out: a new group counts from the beginning
            self.rings.clear()
            self.contents.clear()

    def deliver(self, item: Outgoing) -> None:
        if isinstance(item, Send) and item.peer in self.peers:
            self.peers[item.peer].from_master.append(item.packet)
        elif isinstance(item, Kick) and item.peer in self.peers:
            if "illegal" in item.reason or "not yet" in item.reason or "twice" in item.reason:
                raise Violation(f"{item.peer} is kicked for a legal request: {item.reason}")
            self.kicked += 1
            peer = self.peers[item.peer]
            peer.to_master.clear()
            peer.from_master.append(item)

    def ended(self, peer: SimPeer, seq: int, *, committed: bool) -> None:
        """No operation is committed for one peer and given up for another."""
        if self.outcomes.setdefault(seq, committed) is not committed:
            raise Violation(f"operation {seq} is committed for some and not for {peer.name}")

    def saw_ring(self, peer: SimPeer, ready: TopologyReady) -> None:
        if peer.name not in ready.ring:
            raise Violation(f"{peer.name} is told a ring without it: {ready.ring}")
        if self.rings.setdefault(ready.epoch, ready.ring) != ready.ring:
            raise Violation(f"epoch {ready.epoch} has two rings")

    def synced(self, peer: SimPeer, packet: SyncComplete) -> None:
        """All peers that leave one sync hold the same content."""
        if self.contents.setdefault(packet.turn, peer.content) != peer.content:
            raise Violation(f"sync {packet.turn} left {peer.name} with another content")


def explore(first: int, count: int) -> tuple[int, int]:
    """Run that many short schedules from a seed on: events, and schedules that broke a promise."""
    events = broken = 0
    for seed in range(first, first + count):
        simulation = Simulation(seed, events=40, steps=3)
        try:
            simulation.run()
        except Exception:  # also a master that falls over
            broken += 1
        events += simulation.fed
    return events, broken


def check_state(state: MasterState, before: MasterState) -> None:
    """What must hold of the master after every event."""
    for number, group in state.groups.items():
        _check_group(group)
        earlier = before.groups.get(number)
        if earlier is None or not (set(earlier.ring) & set(group.ring)):
            continue
        if group.next_revision < earlier.next_revision:
            raise Violation("the next revision went back while the group lived")
        if group.epoch < earlier.epoch:
            raise Violation("an epoch went back while the group lived")


def _check_group(group: Group) -> None:
    accepted = {m.id for m in group.members.values() if m.phase is Phase.ACCEPTED}
    if set(group.ring) != accepted or len(group.ring) != len(accepted):
        raise Violation(f"the ring {group.ring} is no permutation of {sorted(accepted)}")
    voters = {peer for op in group.ops.values() for peer in op.votes}
    for member in group.members.values():
        lawful = member.phase is Phase.ACCEPTED or member.state in FREE | LINKING
        if not lawful or (member.state in LINKING and group.round is None):
            raise Violation(f"{member.id} is {member.phase} and in {member.state}")
        if (member.id in voters) != (member.state is State.COLLECTIVE):
            raise Violation(f"{member.id} is in {member.state}, which operations deny")
    if not group.ring and group.waiting and group.round is None and not group.expected:
        raise Violation("peers wait while nobody is there to vote on them")
    states = {group.members[peer].state for peer in group.ring}
    if states and ((len(states) == 1 and states <= DECISIVE) or states <= TOPOLOGY_VOTES):
        raise Violation(f"all peers are in {states} and nothing followed")
    if group.ring and all(group.members[peer].asking for peer in group.ring):
        raise Violation("all peers asked for pending peers and nothing followed")
    for op in group.ops.values():
        if not set(op.votes) <= accepted:
            raise Violation(f"tag {op.tag} holds the vote of a peer that is gone")
        waits_for = set(group.ring) - (op.done if op.seq else set(op.votes))
        if not waits_for or not group.linked:
            raise Violation(f"tag {op.tag} waits for nobody, or for a ring that is broken")
