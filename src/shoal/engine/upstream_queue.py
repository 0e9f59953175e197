"""Who waits for an endpoint, and who is sent next.

Requests that begin alike are nodes of a tree over what is queued, what runs and what was sent
before. One request goes ahead for a node that nothing has warmed; the others are parked there
until it has begun to answer, or, where an endpoint keeps prefixes in slots, until it has ended.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import numpy as np

from shoal.core.protocols import Completion, Request
from shoal.engine.batch.order import execution_order
from shoal.engine.batch.prefixes import Prefixes, find_prefixes

SHARED_BYTES = 256
"""Text that requests must have in common for one of them to go ahead."""
KNOWN = 1024
"""Requests that were sent and are remembered as being in the endpoint's cache."""


@dataclass(slots=True, eq=False)
class Node:
    """Text that several requests begin with. ``held`` while others wait for one to go ahead."""

    warm: bool = False
    held: bool = False
    parked: list[Entry] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Entry:
    """A request for everybody who asked for it. ``leads`` are the nodes others wait for."""

    request: Request
    text: bytes
    key: Hashable
    done: asyncio.Future[Completion]
    rank: int = 0
    path: tuple[Node, ...] = ()
    leads: list[Node] = field(default_factory=list)
    begun: bool = False
    waiters: int = 0
    said: list[str] = field(default_factory=list)
    listeners: list[Callable[[str], None]] = field(default_factory=list)
    task: asyncio.Task[None] | None = None

    def hear(self, piece: str) -> None:
        """Pass text on to all who listen."""
        self.said.append(piece)
        for listener in self.listeners:
            listener(piece)


class UpstreamQueue:
    """Requests in the order of a plan, and the text that each waits for.

    new      came in and are not planned yet
    planned  wait, in the order of the plan
    running  were sent
    """

    def __init__(self, *, slotted: bool) -> None:
        self._slotted = slotted
        self.new: list[Entry] = []
        self.planned: dict[Entry, None] = {}
        self.running: dict[Entry, None] = {}
        self._ready: dict[str, list[tuple[int, int, Entry]]] = {}  # by tenant
        self._under_way: Counter[str] = Counter()  # by tenant
        self._seen: OrderedDict[tuple[str, bytes], None] = OrderedDict()
        self._ticket = itertools.count()

    def refresh(self) -> None:
        """Plan anew where enough has come in to be worth it."""
        if self.new and len(self.new) * 8 >= len(self.planned):
            self._plan()

    def take(self) -> Entry | None:
        """The next request, which is under way from now on; None where all have to wait."""
        entry = self._next()
        if entry is not None:
            del self.planned[entry]
            self.running[entry] = None
            self._under_way[entry.request.salt] += 1
            self._lead(entry)
        return entry

    def leave(self, entry: Entry, *, warm: bool) -> bool:
        """A request has ended or is given up; True where it was under way."""
        ran = entry in self.running
        if ran:
            del self.running[entry]
            self._under_way[entry.request.salt] -= 1
        self.planned.pop(entry, None)
        if entry in self.new:
            self.new.remove(entry)
        self.release(entry, warm=warm)
        return ran

    def remember(self, entry: Entry) -> None:
        """The endpoint's cache holds this text now, unless it works in slots."""
        if not self._slotted:
            self._seen[entry.request.salt, entry.text] = None
            while len(self._seen) > KNOWN:
                self._seen.popitem(last=False)

    def _plan(self) -> None:
        """Find what all that waits begins with, beside what runs and what was sent before."""
        waiting = [*self.planned, *self.new]
        self.new.clear()
        entries = [*waiting, *self.running]
        texts = [(entry.request.salt, entry.text) for entry in entries] + list(self._seen)
        tree = find_prefixes(
            [np.frombuffer(text, dtype=np.uint8) for _, text in texts],
            [scope for scope, _ in texts],
        )
        answers = np.zeros(len(texts), dtype=np.int64)
        answers[: len(entries)] = [entry.request.sampling.max_tokens for entry in entries]
        paths = [_worth_waiting(tree, int(end)) for end in tree.terminal_P]
        nodes = {node: Node() for path in paths for node in path}
        for path in paths[len(entries) :]:
            for node in path:
                nodes[node].warm = True
        for entry, path in zip(entries, paths, strict=False):
            entry.path = tuple(nodes[node] for node in path)
        for entry in self.running:
            self._lead(entry)
        order = execution_order(tree, answers).tolist()
        ranked = [place for place in order if place < len(waiting)]
        self.planned = dict.fromkeys(waiting[place] for place in ranked)
        self._ready.clear()
        for rank, entry in enumerate(self.planned):
            entry.rank = rank
            self._push(entry)

    def _push(self, entry: Entry) -> None:
        heap = self._ready.setdefault(entry.request.salt, [])
        heapq.heappush(heap, (entry.rank, next(self._ticket), entry))

    def _next(self) -> Entry | None:
        """The first in order that need not wait, of the tenant with the fewest under way."""
        for tenant in sorted(self._ready, key=self._under_way.__getitem__):
            heap = self._ready[tenant]
            while heap:
                entry = heapq.heappop(heap)[2]
                if entry not in self.planned:
                    continue
                holding = next((node for node in self._awaits(entry) if node.held), None)
                if holding is None:
                    return entry
                holding.parked.append(entry)
            del self._ready[tenant]
        return None

    def _awaits(self, entry: Entry) -> tuple[Node, ...]:
        """Nodes that another request may be computing: in a slot, only one's own group."""
        return entry.path[-1:] if self._slotted else entry.path

    def _lead(self, entry: Entry) -> None:
        """Let others wait for what this request computes first."""
        if self._slotted:
            entry.leads = list(entry.path[-1:])
        elif entry.begun:
            entry.leads = []
            for node in entry.path:
                node.warm = True
        else:
            entry.leads = [node for node in entry.path if not node.warm]
        for node in entry.leads:
            node.held = True

    def release(self, entry: Entry, *, warm: bool) -> None:
        """Let those go on who waited for this request."""
        for node in entry.leads:
            node.held, node.warm = False, warm
            while node.parked:
                waiting = node.parked.pop(0)
                if waiting in self.planned:
                    self._push(waiting)
                    if self._slotted:
                        break
        entry.leads = []


def _worth_waiting(tree: Prefixes, end: int) -> list[int]:
    """Shared nodes down to this one, each with enough text beyond the one above."""
    found, above = [], 0
    for node in tree.path(end):
        several = tree.last_N[node] - tree.first_N[node] >= 2
        if several and tree.end_N[node] - above >= SHARED_BYTES:
            found.append(node)
            above = int(tree.end_N[node])
    return found
