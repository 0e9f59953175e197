"""The policy of jobs known ahead of time: planned order, planned lifetimes, expected growth.

BatchLLM (arXiv 2412.03594): prompts are announced before they start; groups run in order of
R = answer tokens / prompt tokens; a shared prefix is held from its first member to its last and
then freed at once, with no LRU anywhere; a request is admitted while the memory in use and the
expected growth of everything running fit (:mod:`shoal.engine.lengths`), not up to a number of
requests.

Departures: prefixes nest at any depth; jobs that arrive during the run are planned with what is
left, and prefixes that are in memory then come first. What answers are expected to need is not
min(limit, mean + one standard deviation) each, but drawn lengths and their worst moment together.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shoal.engine.batch.order import Order, execution_order
from shoal.engine.batch.plan import Level, reduced
from shoal.engine.batch.prefixes import Prefixes, find_prefixes
from shoal.engine.generation import Generation, HiddenStates, Job
from shoal.engine.lengths import AnswerLengths, kind_of
from shoal.engine.outlook import Growth
from shoal.engine.tree import Node, PrefixTree


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt that will come.

    key     the id of its request
    tokens  its token ids
    scope   salt: prompts of different scopes never share
    limit   tokens of its answer at most
    kind    answers of one kind are expected to be of like length
    """

    key: str
    tokens: NDArray[np.int32]
    scope: str = ""
    limit: int = 0
    kind: object = None


@dataclass(frozen=True, slots=True)
class Span:
    """The life of a shared prefix of ``tokens``, in steps from opening to freeing."""

    tokens: int
    prompts: int
    opened: int
    closed: int


@dataclass(slots=True)
class _Schedule:
    """The plan in force. ``left_N`` counts what has not ended directly below each node."""

    tree: Prefixes
    keys: list[str]
    place: dict[str, int]  # key -> index of its prompt
    rank: dict[str, int]
    left_N: list[int]


class Planned:
    """Implements :class:`~shoal.engine.policies.Policy`.

    level    how much of the tree is shared; :data:`Level`
    order    how groups are ordered; :data:`Order`
    expects  admit by expected growth; otherwise every answer may grow to its limit
    clock    the number of the present step, for life spans
    """

    keeps = False

    def __init__(
        self,
        *,
        level: Level = "multi",
        order: Order = "ratio",
        expects: bool = True,
        clock: Callable[[], int] = lambda: 0,
    ) -> None:
        self.spans: list[Span] = []
        self.plans = 0
        self.preemptions = 0
        self._level: Level = level
        self._order: Order = order
        self._expects = expects
        self._clock = clock
        self._items: dict[str, Item] = {}
        self._keys: dict[Job, str] = {}  # of jobs that have come and not ended
        self._queue: list[tuple[int, int, Job]] = []
        self._waiting: dict[Job, None] = {}
        self._ticket = itertools.count()
        self._scores: dict[tuple[str, bytes], list[str]] = {}
        self._lengths = AnswerLengths()
        self._schedule = _Schedule(find_prefixes([]), [], {}, {}, [0])
        self._holds: dict[int, tuple[Node, int]] = {}  # tree node -> pinned cache, step of opening
        self._stale = False

    # -- what will come ---------------------------------------------------------------------

    def announce(self, items: Iterable[Item]) -> None:
        """Plan with prompts that have not come yet; their prefixes are kept for them."""
        for item in items:
            self._items[item.key] = item
            self._stale = True

    def announce_scores(self, key: str, prefix: ArrayLike, scope: str = "") -> None:
        """Plan with texts that will be scored below a prefix."""
        tokens = np.asarray(prefix, dtype=np.int32)
        self._scores.setdefault((scope, tokens.tobytes()), []).append(key)
        self.announce([Item(key, tokens, scope)])

    def planned_keys(self, tree: PrefixTree) -> list[str]:
        """Everything announced, in the order of the plan."""
        if self._stale:
            self._plan(tree)
        return sorted(self._schedule.rank, key=self._schedule.rank.__getitem__)

    def release(self, tree: PrefixTree) -> None:
        """Keep nothing any more."""
        for hold, _ in self._holds.values():
            path = hold.path()
            tree.unpin(hold)
            tree.forget(path)
        self._holds.clear()

    def withdraw(self, keys: Iterable[str], tree: PrefixTree) -> None:
        """Announced prompts that will not come, or have ended: nothing is kept for them."""
        for key in keys:
            if self._items.pop(key, None) is not None:
                self._count_down(key, tree)

    # -- the queue --------------------------------------------------------------------------

    def add(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            self._keys[job] = key = self._key(job)
            if key not in self._items:
                self.announce([_item(key, job)])
            self._push(job)

    def put_back(self, job: Job) -> None:
        self.preemptions += 1
        self._push(job)

    def remove(self, job: Job) -> None:
        self._waiting.pop(job, None)

    def _push(self, job: Job) -> None:
        self._waiting[job] = None
        rank = self._schedule.rank.get(self._keys[job], 0)
        heapq.heappush(self._queue, (rank, next(self._ticket), job))

    def _key(self, job: Job) -> str:
        if isinstance(job, Generation):
            return job.request.id
        content = (job.salt, np.asarray(job.prefix, dtype=np.int32).tobytes())
        known = self._scores.get(content)
        return known.pop(0) if known else f"scores {next(self._ticket)}"

    def head(self, tree: PrefixTree) -> Job | None:
        if self._stale:
            self._plan(tree)
        while self._queue and self._queue[0][2] not in self._waiting:
            heapq.heappop(self._queue)
        return self._queue[0][2] if self._queue else None

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._waiting)

    def __contains__(self, job: object) -> bool:
        return job in self._waiting

    # -- the plan ---------------------------------------------------------------------------

    def _plan(self, tree: PrefixTree) -> None:
        """Plan everything that has not ended; prefixes in memory stay there and come first."""
        self._stale = False
        self.plans += 1
        items = [item for item in self._items.values() if len(item.tokens)]
        found = reduced(
            find_prefixes([item.tokens for item in items], [item.scope for item in items]),
            self._level,
        )
        N = len(found.parent_N)
        left_N = np.bincount(found.parent_N[1:], minlength=N)
        left_N += np.bincount(found.terminal_P, minlength=N)
        old, self._holds = self._holds, {}
        keys = [item.key for item in items]
        schedule = _Schedule(found, keys, {k: i for i, k in enumerate(keys)}, {}, left_N.tolist())
        self._schedule = schedule
        urgent_N = np.zeros(N, dtype=bool)
        if self._level == "multi":
            for node in np.flatnonzero(found.prompts >= 2).tolist():
                if node and (urgent_N[found.parent_N[node]] or not found.parent_N[node]):
                    urgent_N[node] = self._hold_known(node, items, tree)
        for hold, _ in old.values():
            path = hold.path()
            tree.unpin(hold)
            tree.forget(path)
        answer_P = np.array([self._expected(item) for item in items], dtype=np.int64)
        order_P = execution_order(found, answer_P, self._order, urgent_N)
        schedule.rank |= {keys[prompt]: rank for rank, prompt in enumerate(order_P.tolist())}
        jobs = [job for _, _, job in sorted(self._queue) if job in self._waiting]
        self._queue = []
        for job in dict.fromkeys(jobs):
            self._push(job)

    def _hold_known(self, node: int, items: Sequence[Item], tree: PrefixTree) -> bool:
        """Hold a prefix that is in the cache, as what was held before is let go."""
        found = self._schedule.tree
        item = items[int(found.order_P[found.first_N[node]])]
        tokens = item.tokens[: found.end_N[node]].tolist()
        if tree.match(tokens, item.scope) < len(tokens):
            return False
        self._hold(node, tokens, item.scope, tree)
        return True

    def _hold(self, node: int, tokens: Sequence[int], scope: str, tree: PrefixTree) -> None:
        """Keep a prefix, all of which has its slots already."""
        hold = tree.insert(tokens, scope)
        assert hold is not None, "what is in the tree needs no memory"
        self._holds[node] = (hold, self._clock())

    # -- admission and lifetimes --------------------------------------------------------------

    def _expected(self, item: Item) -> float:
        """Tokens an answer is expected to have."""
        seen = self._lengths.of(item.kind)
        return min(item.limit, seen.mean) if seen.known else item.limit

    def growth(self, job: Generation) -> Growth:
        item = self._items.get(self._keys[job])
        if not self._expects or item is None:
            return Growth(job.growth, ends=True)
        return self._lengths.growth(job, item.kind)

    def shared(self, job: Generation) -> tuple[str, int]:
        scope = job.request.salt
        if self._level == "multi":
            return scope, len(job.tokens)
        node = self._group(self._keys[job])
        return f"{scope}\x1f{self.plans}.{node}", int(self._schedule.tree.end_N[node])

    def _group(self, key: str) -> int:
        """The common prefix of a single-level plan that a prompt belongs to; 0: none."""
        tree = self._schedule.tree
        node = int(tree.terminal_P[self._schedule.place[key]])
        several = tree.last_N[node] - tree.first_N[node] >= 2
        return node if several else int(tree.parent_N[node])

    def placed(self, job: Job, tree: PrefixTree) -> None:
        place = self._schedule.place.get(self._keys[job])
        if place is None:
            return
        found = self._schedule.tree
        node, missing = int(found.terminal_P[place]), []
        while node and node not in self._holds:
            if found.last_N[node] - found.first_N[node] >= 2:
                missing.append(node)
            node = int(found.parent_N[node])
        for node in reversed(missing):
            if isinstance(job, HiddenStates):
                tokens, scope = job.prefix, job.salt
            else:
                tokens, scope = job.tokens, self.shared(job)[0]
            self._hold(node, tokens[: found.end_N[node]], scope, tree)

    def ended(self, job: Job, tree: PrefixTree) -> None:
        key = self._keys.pop(job, None)
        item = self._items.pop(key, None) if key is not None else None
        if key is None or item is None:
            return
        if isinstance(job, Generation):
            self._lengths.add(job, item.kind)
        self._count_down(key, tree)

    def _count_down(self, key: str, tree: PrefixTree) -> None:
        """A prompt is done with: free the prefixes of which it was the last."""
        place = self._schedule.place.pop(key, None)
        if place is None:
            return
        found, left_N = self._schedule.tree, self._schedule.left_N
        node = int(found.terminal_P[place])
        left_N[node] -= 1
        while node and not left_N[node]:
            if node in self._holds:
                self._free(node, tree)
            node = int(found.parent_N[node])
            left_N[node] -= 1

    def _free(self, node: int, tree: PrefixTree) -> None:
        hold, opened = self._holds.pop(node)
        found = self._schedule.tree
        prompts = int(found.last_N[node] - found.first_N[node])
        self.spans.append(Span(int(found.end_N[node]), prompts, opened, self._clock()))
        path = hold.path()
        tree.unpin(hold)
        tree.forget(path)

    def make_way(self, tree: PrefixTree) -> bool:
        """Let go of all prefixes; they stay findable while nothing else needs the memory."""
        for hold, _ in self._holds.values():
            tree.unpin(hold)
        held = bool(self._holds)
        self._holds.clear()
        return held


def _item(key: str, job: Job) -> Item:
    if isinstance(job, HiddenStates):
        return Item(key, np.asarray(job.prefix, dtype=np.int32), job.salt)
    tokens = np.asarray(job.tokens, dtype=np.int32)
    return Item(key, tokens, job.request.salt, job.max_new, kind_of(job.request))
