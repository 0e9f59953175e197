"""Which tokens the next step computes. The scheduler says what to run; it does not run it.

A step takes one token of every answer under way and fills the rest of its rows with prompt
tokens in the order of arrival (chunked prefill: Agrawal et al., arXiv 2308.16369). Work is
planned on nodes of the prefix tree, so whatever several prompts share is computed for the
first of them and awaited by the others. When memory is full, new requests wait; when a running
answer cannot grow, the youngest one gives its slots back and is computed again later. Who is
admitted next, how far its answer is expected to grow and how long its cache is kept is the
policy's to say (:mod:`shoal.engine.policies`).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from shoal.engine.attention import Work
from shoal.engine.generation import Generation, HiddenStates, Piece
from shoal.engine.generation import Job as Job
from shoal.engine.outlook import Course, peak
from shoal.engine.policies import ArrivalOrder, Policy
from shoal.engine.segments import KVSegment
from shoal.engine.tree import Node, PrefixTree
from shoal.models.adapters.adapter import Adapter

ROWS = 512  # of one step; more makes prefill no faster and answers under way wait longer
TAIL = 64  # slots of an answer's first tail; the next ones double up to four times that
LEAST = 16  # slots of a tail where the answer is expected to end soon


@dataclass(slots=True)
class Meter:
    """What the planned steps were made of.

    prefill_tokens   rows of prompts, computed for the first time
    repeated_tokens  rows computed again after a preemption, answers included
    decode_tokens    rows of answers under way
    repair_tokens    rows of moved tokens that were computed again while an answer was written
    steps            how many steps had this many rows
    high_water       slots in use at most
    """

    prefill_tokens: int = 0
    repeated_tokens: int = 0
    decode_tokens: int = 0
    repair_tokens: int = 0
    steps: Counter[int] = field(default_factory=Counter)
    high_water: int = 0


class Scheduler:
    """Waiting and running jobs over one prefix tree."""

    def __init__(
        self,
        tree: PrefixTree,
        *,
        sharing: bool = True,
        rows: int = ROWS,
        policy: Policy | None = None,
        write: Callable[[KVSegment, Sequence[int], int], None] | None = None,
    ) -> None:
        self.tree = tree
        self.sharing = sharing
        self.rows = rows
        self.waiting: Policy = ArrivalOrder() if policy is None else policy
        self.running: dict[Job, None] = {}  # in order of admission
        self.preemptions = 0
        self.meter = Meter()
        self.write = write or _cannot_write  # a segment into slots, at a position

    def submit(self, jobs: Iterable[Job]) -> None:
        """Queue a group; the scheduler sees all of it before any of it starts."""
        self.waiting.add(jobs)

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def plan(self) -> list[Work]:
        """Admit what fits and choose the next step's work, ancestors first."""
        self._admit()
        plan = _Plan(self.rows)
        for job in self.running:
            if isinstance(job, Generation) and job.decoding and job.end is not None:
                self.meter.decode_tokens += plan.add(job.end, job.adapter)
        for job in self.running:
            if isinstance(job, Generation) and job.decoding and job.late is not None:
                for node, place in job.late.rows():
                    self.meter.repair_tokens += plan.again(node, place, job.adapter)
        for job in self.running:
            for node in job.unfinished():
                count = plan.add(node, job.adapter)
                job.charge(count)
                if isinstance(job, Generation) and job.preempted:
                    self.meter.repeated_tokens += count
                else:
                    self.meter.prefill_tokens += count
        if plan.works:
            self.meter.steps[plan.rows] += 1
            used = self.tree.pinned + self.tree.evictable
            self.meter.high_water = max(self.meter.high_water, used)
        return plan.works

    def _admit(self) -> None:
        courses: list[Course] | None = None
        while (job := self.waiting.head(self.tree)) is not None:
            if courses is None:
                answers = (each for each in self.running if isinstance(each, Generation))
                courses = list(map(self._course, answers))
            if self.running and not self._has_room(job, courses):
                return
            if not self._place(job):
                if self.running:
                    return
                made_way = self.waiting.make_way(self.tree)
                assert made_way, "a job that fits alone is placed when nothing runs"
                continue
            self.waiting.remove(job)
            self.running[job] = None
            self.waiting.placed(job, self.tree)
            if isinstance(job, Generation):
                courses.append(self._course(job))

    def _course(self, job: Generation) -> Course:
        """What an answer under way is expected to take and to give back."""
        assert job.end is not None
        growth = self.waiting.growth(job)
        own = sum(node.capacity for node in job.end.path() if node.pins == 1)
        return Course(growth.slots, job.spare, own, growth.ends)

    def _has_room(self, job: Job, courses: Sequence[Course]) -> bool:
        """Whether this job and the answers under way could grow as expected together."""
        if not isinstance(job, Generation):
            return True
        new = len(job.tokens)
        if self.sharing:
            salt, shared = self.waiting.shared(job)
            new += self.tree.cost(job.tokens[:shared], salt) - shared
        growth = self.waiting.growth(job)
        course = Course(growth.slots, 0, new, growth.ends)
        return new + peak([*courses, course]) <= self.tree.free + self.tree.evictable

    def _place(self, job: Job) -> bool:
        if isinstance(job, HiddenStates):
            return self._place_suffixes(job)
        job.decoding = False
        if not self.sharing:
            job.end = self.tree.extend(None, job.tokens)
            return job.end is not None
        salt, shared = self.waiting.shared(job)
        if job.pieces:
            job.end = self._place_pieces(job, salt)
            return job.end is not None
        if shared < len(job.tokens):
            job.end = self._place_apart(job, salt, shared)
            return job.end is not None
        end = self.tree.insert(job.tokens, salt)
        if end is not None and end.complete and end.last_hidden is None:
            # Computed for a longer prompt, which did not keep this token's hidden state.
            self.tree.unpin(end)
            end = self.tree.insert(job.tokens[:-1], salt)
            if end is not None:
                tail = self.tree.tail(end if end.capacity else None, TAIL)
                if tail is None:
                    self.tree.unpin(end)
                else:
                    tail.tokens.append(job.tokens[-1])
                end = tail
        job.end = end
        return end is not None

    def _place_apart(self, job: Generation, salt: str, shared: int) -> Node | None:
        """A prompt of which only a beginning may be found by others."""
        base = self.tree.insert(job.tokens[:shared], salt) if shared else None
        if shared and base is None:
            return None
        end = self.tree.extend(base, job.tokens[shared:])
        if end is None and base is not None:
            self.tree.unpin(base)
        return end

    def _place_pieces(self, job: Generation, salt: str) -> Node | None:
        """A prompt in pieces: an exact beginning, which others find, and private nodes below it.

        Moved keys and values are written at once; what stands between them is computed in the
        context that they make, and so nothing from the first of them on is ever shared.
        """
        pieces = [*job.pieces, Piece(tuple(job.answer))]  # an answer that was preempted
        exact = list(itertools.takewhile(lambda piece: piece.segment is None, pieces))
        exact = exact[: len(pieces) - 2]  # the last piece's states are this request's own
        beginning = [token for piece in exact for token in piece.tokens]
        job.beginning = len(beginning)
        end = self.tree.insert(beginning, salt) if beginning else None
        if beginning and end is None:
            return None
        for piece in pieces[len(exact) :]:
            if not piece.tokens:
                continue
            below = self.tree.extend(end, piece.tokens)
            if below is None:
                if end is not None:
                    self.tree.unpin(end)
                return None
            done = 0
            for node in _between(end, below):
                node.keep_hidden = job.keep_states
                if piece.segment is not None:
                    part = piece.segment.slice(done, done + len(node.tokens))
                    self.write(part, range(node.start, node.start + len(part)), node.position)
                    node.filled = len(node.tokens)
                    done += len(part)
            end = below
        job.repair_pending = job.repair is not None
        return end

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
            expected = max(LEAST, self.waiting.growth(job).slots + 1)
            room = min(room, expected, job.growth + 1)
            while (tail := self.tree.tail(end, room)) is None:
                if len(self.running) == 1 and self.waiting.make_way(self.tree):
                    continue
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
        del self.running[youngest]
        self.waiting.put_back(youngest)
        return youngest

    def _release(self, job: Job) -> None:
        if isinstance(job, HiddenStates):
            for node in reversed(job.nodes):
                self.tree.drop(node)
            job.nodes = []
        if job.end is None:
            return
        path = job.end.path()
        if (
            isinstance(job, Generation)
            and self.sharing
            and self.waiting.keeps
            and not job.approximate
        ):
            for node in path:
                if not node.attached:
                    self.tree.adopt(node)
        self.tree.unpin(job.end)
        if not self.waiting.keeps:
            self.tree.forget(path)
        job.end = None

    def finish(self, job: Job) -> None:
        """Let go of a job's nodes; unless the policy knows better, they stay findable until
        memory is needed."""
        self._release(job)
        self.running.pop(job, None)
        self.waiting.remove(job)
        self.waiting.ended(job, self.tree)


class _Plan:
    """Works of one step; remembers how far each node will be filled."""

    def __init__(self, rows: int) -> None:
        self.works: list[Work] = []
        self.rows = 0
        self._left = rows
        self._filled: dict[Node, int] = {}

    def again(self, node: Node, place: int, adapter: Adapter | None) -> int:
        """Plan one token that has been computed before; 0 where no row is left."""
        if not self._left:
            return 0
        self.works.append(Work(node, place, 1, adapter))
        self._left -= 1
        self.rows += 1
        return 1

    def add(self, node: Node, adapter: Adapter | None) -> int:
        """Plan what is left of a node, as far as rows are left; how many tokens that is.

        A node is planned before those below it and whole unless the rows run out, so nothing
        is ever planned below a gap.
        """
        done = self._filled.get(node, node.filled)
        count = min(len(node.tokens) - done, self._left)
        if count:
            self.works.append(Work(node, done, count, adapter))
            self._filled[node] = done + count
            self._left -= count
            self.rows += count
        return count


def _cannot_write(segment: KVSegment, slots: Sequence[int], position: int) -> None:
    raise AssertionError("a scheduler without tensors cannot move keys and values")


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
