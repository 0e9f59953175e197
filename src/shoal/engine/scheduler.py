"""Which tokens the next step computes. The scheduler says what to run; it does not run it.

A step takes one token of every answer under way and fills the rest of its rows with prompt
tokens in the order of arrival (chunked prefill: Agrawal et al., arXiv 2308.16369). Work is
planned on nodes of the prefix tree, so whatever several prompts share is computed for the
first of them and awaited by the others. When memory is full, new requests wait; when a running
answer cannot grow, the youngest one gives its slots back and is computed again later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from shoal.engine.attention import Work
from shoal.engine.generation import Generation, HiddenStates
from shoal.engine.tree import Node, PrefixTree

Job = Generation | HiddenStates

ROWS = 512  # of one step; more makes prefill no faster and answers under way wait longer
TAIL = 64  # slots of an answer's first tail; the next ones double up to four times that


class Scheduler:
    """Waiting and running jobs over one prefix tree."""

    def __init__(self, tree: PrefixTree, *, sharing: bool = True, rows: int = ROWS) -> None:
        self.tree = tree
        self.sharing = sharing
        self.rows = rows
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []
        self.preemptions = 0

    def submit(self, jobs: Iterable[Job]) -> None:
        """Queue a group; the scheduler sees all of it before any of it starts."""
        self.waiting.extend(jobs)

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def plan(self) -> list[Work]:
        """Admit what fits and choose the next step's work, ancestors first."""
        self._admit()
        plan = _Plan(self.rows)
        for job in self.running:
            if isinstance(job, Generation) and job.decoding and job.end is not None:
                plan.add(job.end)
        for job in self.running:
            for node in job.unfinished():
                job.charge(plan.add(node))
        return plan.works

    def _admit(self) -> None:
        while self.waiting:
            job = self.waiting[0]
            if isinstance(job, Generation) and self.running and not self._has_room(job):
                return
            if not self._place(job):
                assert self.running, "a job that fits alone is placed when nothing runs"
                return
            self.waiting.popleft()
            self.running.append(job)

    def _has_room(self, job: Generation) -> bool:
        """Whether this job and everything running could grow to their ends together."""
        new = len(job.tokens)
        if self.sharing:
            new -= self.tree.match(job.tokens, job.request.salt)
        promised = sum(each.growth for each in self.running if isinstance(each, Generation))
        return new + job.growth + promised <= self.tree.free + self.tree.evictable

    def _place(self, job: Job) -> bool:
        if isinstance(job, HiddenStates):
            return self._place_suffixes(job)
        job.decoding = False
        if not self.sharing:
            job.end = self.tree.extend(None, job.tokens)
            return job.end is not None
        end = self.tree.insert(job.tokens, job.request.salt)
        if end is not None and end.complete and end.last_hidden is None:
            # Computed for a longer prompt, which did not keep this token's hidden state.
            self.tree.unpin(end)
            end = self.tree.insert(job.tokens[:-1], job.request.salt)
            if end is not None:
                tail = self.tree.tail(end if end.capacity else None, TAIL)
                if tail is None:
                    self.tree.unpin(end)
                else:
                    tail.tokens.append(job.tokens[-1])
                end = tail
        job.end = end
        return end is not None

    def _place_suffixes(self, job: HiddenStates) -> bool:
        base: Node | None = None
        if job.prefix:
            if self.sharing:
                base = self.tree.insert(job.prefix, job.salt)
            else:
                base = self.tree.extend(None, job.prefix)
            if base is None:
                return False
        job.end = base
        job.nodes, job.paths = [], [[] for _ in job.suffixes]
        if self._grow_trie(job, base, [(index, 0) for index in range(len(job.suffixes))]):
            return True
        self._release(job)
        return False

    def _grow_trie(
        self, job: HiddenStates, parent: Node | None, members: list[tuple[int, int]]
    ) -> bool:
        """Private nodes for the suffixes, each shared beginning once; False: no memory.

        ``members`` are suffixes with how much of each is placed above.
        """
        groups: dict[int, list[int]] = {}
        for index, done in members:
            if done < len(job.suffixes[index]):
                groups.setdefault(job.suffixes[index][done], []).append(index)
        done = members[0][1] if members else 0
        for group in groups.values():
            run = _common_run([job.suffixes[index][done:] for index in group])
            end = self.tree.extend(parent, run)
            if end is None:
                return False
            pieces = _between(parent, end)
            for piece in pieces:
                piece.keep_hidden = True
            job.nodes.extend(pieces)
            for index in group:
                job.paths[index].extend(pieces)
            if not self._grow_trie(job, end, [(index, done + len(run)) for index in group]):
                return False
        return True

    def grow(self, job: Generation) -> None:
        """Give the newest token of an answer a slot; its keys and values come next step."""
        end = job.end
        assert end is not None
        if not job.decoding or len(end.tokens) == end.capacity:
            room = min(2 * end.capacity, 4 * TAIL) if job.decoding else TAIL
            while (tail := self.tree.tail(end, min(room, job.growth + 1))) is None:
                if self._preempt() is job:
                    return
            job.end = end = tail
            job.decoding = True
        end.tokens.append(job.tokens[-1])

    def _preempt(self) -> Generation:
        """Take the slots of the youngest answer under way and queue it first."""
        youngest = next(job for job in reversed(self.running) if isinstance(job, Generation))
        self.preemptions += 1
        youngest.preempted = True
        self._release(youngest)
        self.running.remove(youngest)
        self.waiting.appendleft(youngest)
        return youngest

    def _release(self, job: Job) -> None:
        if isinstance(job, HiddenStates):
            for node in reversed(job.nodes):
                self.tree.drop(node)
            job.nodes = []
        if job.end is not None:
            if isinstance(job, Generation) and self.sharing:
                for node in job.end.path():
                    if not node.attached:
                        self.tree.adopt(node)
            self.tree.unpin(job.end)
            job.end = None

    def finish(self, job: Job) -> None:
        """Let go of a job's nodes; what it computed stays findable until memory is needed."""
        self._release(job)
        if job in self.running:
            self.running.remove(job)
        elif job in self.waiting:
            self.waiting.remove(job)


class _Plan:
    """Works of one step; remembers how far each node will be filled."""

    def __init__(self, rows: int) -> None:
        self.works: list[Work] = []
        self._rows = rows
        self._filled: dict[Node, int] = {}

    def add(self, node: Node) -> int:
        """Plan what is left of a node, as far as rows are left; how many tokens that is.

        A node is planned before those below it and whole unless the rows run out, so nothing
        is ever planned below a gap.
        """
        done = self._filled.get(node, node.filled)
        count = min(len(node.tokens) - done, self._rows)
        if count:
            self.works.append(Work(node, done, count))
            self._filled[node] = done + count
            self._rows -= count
        return count


def _between(above: Node | None, end: Node) -> list[Node]:
    nodes = []
    node: Node | None = end
    while node is not None and node is not above:
        nodes.append(node)
        node = node.parent
    return nodes[::-1]


def _common_run(runs: list[Sequence[int]]) -> Sequence[int]:
    """The longest beginning that all runs share."""
    shortest = min(runs, key=len)
    for length, tokens in enumerate(zip(*runs, strict=False)):
        if len(set(tokens)) > 1:
            return shortest[:length]
    return shortest
