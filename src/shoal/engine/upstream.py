"""The planner in front of any OpenAI-compatible endpoint: what is queued there is sent in an order
that lets the endpoint's own prefix cache serve it.

Of the requests that begin alike one goes ahead, the rest follow once it has begun to answer, group
by group, after BatchLLM (arXiv 2412.03594). Exact duplicates whose answer is determined are sent
once. Tools are written down in one order. Endpoints that cache per slot (llama.cpp) get one
request of a group at a time instead, so that the group stays in its slot. Retries, time-outs and
the wire are :class:`~shoal.engine.remote.RemoteEngine`'s.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from shoal.core.budget import Budget
from shoal.core.errors import BudgetExhausted, EngineError, RemoteError
from shoal.core.protocols import (
    Completion,
    Delta,
    Engine,
    EngineInfo,
    EngineLoad,
    OnDelta,
    Prompt,
    Request,
    Score,
)
from shoal.engine.batch.order import execution_order
from shoal.engine.batch.prefixes import Prefixes, find_prefixes
from shoal.engine.remote import RemoteEngine
from shoal.engine.upstream_format import same_key, slots_of, stable_tools, text_of

SHARED_BYTES = 256
"""Text that requests must have in common for one of them to go ahead."""
KNOWN = 1024
"""Requests that were sent and are remembered as being in the endpoint's cache."""
AGAIN = 2
"""Times a request is sent again whose answer broke off while nobody was listening to it."""


@dataclass(slots=True)
class UpstreamCounters:
    """What went through: ``asked`` requests came in, ``sent`` went out.

    deduplicated   answered with somebody else's answer
    ahead          sent before the rest of their group
    prompt_tokens, cached_tokens  as the endpoint counts and reports them
    """

    asked: int = 0
    sent: int = 0
    deduplicated: int = 0
    ahead: int = 0
    retried: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0


@dataclass(slots=True, eq=False)
class _Node:
    """Text that several requests begin with. ``held`` while others wait for one to go ahead."""

    warm: bool = False
    held: bool = False
    parked: list[_Entry] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Entry:
    """A request for everybody who asked for it. ``leads`` are the nodes others wait for."""

    request: Request
    text: bytes
    key: Hashable
    done: asyncio.Future[Completion]
    rank: int = 0
    path: tuple[_Node, ...] = ()
    leads: list[_Node] = field(default_factory=list)
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


class UpstreamEngine:
    """Implements :class:`shoal.core.protocols.Engine` over another one; serves one event loop.

    concurrency  requests at the endpoint at a time
    slots        the endpoint keeps prefixes in this many slots, not in a cache of all requests
    remember     answers kept for duplicates that come later
    budget_of    whose budget a request is charged to; a request beyond it fails alone
    """

    def __init__(
        self,
        engine: Engine,
        *,
        concurrency: int = 16,
        slots: int | None = None,
        remember: int = 0,
        budget_of: Callable[[Request], Budget | None] = lambda request: None,
    ) -> None:
        self._engine = engine
        self._slotted = slots is not None
        self._free = concurrency if slots is None else min(concurrency, slots)
        self._remember = remember
        self._budget_of = budget_of
        self._closed = False
        self.counters = UpstreamCounters()
        self._new: list[_Entry] = []
        self._planned: dict[_Entry, None] = {}  # waiting, in the order of the plan
        self._ready: dict[str, list[tuple[int, int, _Entry]]] = {}  # by tenant
        self._running: dict[_Entry, None] = {}
        self._tenants: Counter[str] = Counter()
        self._seen: OrderedDict[tuple[str, bytes], None] = OrderedDict()
        self._same: dict[Hashable, _Entry] = {}
        self._answers: OrderedDict[Hashable, Completion] = OrderedDict()
        self._ticket = itertools.count()
        self._scheduled = False

    @classmethod
    def open(
        cls,
        base_url: str,
        model: str | None = None,
        *,
        concurrency: int = 64,
        slots: int | None = None,
        remember: int = 0,
    ) -> UpstreamEngine:
        """Ask an endpoint for its models and whether it works in slots; blocks for some seconds.

        Raises as :meth:`RemoteEngine.open` does.
        """
        engine = RemoteEngine.open(base_url, model, concurrency=concurrency)
        slots = slots_of(base_url) if slots is None else slots
        return cls(engine, concurrency=concurrency, slots=slots, remember=remember)

    # -- the protocol -----------------------------------------------------------------------

    @property
    def info(self) -> EngineInfo:
        """The engine behind."""
        return self._engine.info

    @property
    def load(self) -> EngineLoad:
        """Requests sent and waiting; the endpoint's memory is its own."""
        waiting = len(self._new) + len(self._planned)
        return EngineLoad(len(self._running), waiting, 0, 0, 0)

    async def generate(
        self, requests: Sequence[Request], on_delta: OnDelta | None = None
    ) -> list[Completion]:
        """See :meth:`shoal.core.protocols.Engine.generate`."""
        self._check_open()
        entered = [self._enter(request) for request in requests]
        for index, (entry, _) in enumerate(entered):
            if on_delta is not None:
                _listen(entry, index, on_delta)
        try:
            results = await asyncio.gather(
                *(asyncio.shield(entry.done) for entry, _ in entered), return_exceptions=True
            )
        except asyncio.CancelledError:
            for entry, _ in entered:
                self._leave(entry)
            raise
        return _settled(
            [
                result if fresh or isinstance(result, BaseException) else _again(result)
                for result, (_, fresh) in zip(results, entered, strict=True)
            ]
        )

    async def score(self, prefix: Prompt, candidates: Sequence[str], salt: str = "") -> list[Score]:
        """See :meth:`shoal.core.protocols.Engine.score`."""
        return await self._engine.score(prefix, candidates, salt)

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See :meth:`shoal.core.protocols.Engine.embed`."""
        return await self._engine.embed(texts)

    def count_tokens(self, prompt: Prompt) -> int:
        """As the engine behind counts."""
        return self._engine.count_tokens(prompt)

    async def close(self) -> None:
        """Give up what waits and close the engine behind."""
        self._closed = True
        for entry in [*self._new, *self._planned, *self._running]:
            self._end(entry, EngineError("The engine is closed."))
        await self._engine.close()

    # -- what is queued ---------------------------------------------------------------------

    def _enter(self, request: Request) -> tuple[_Entry, bool]:
        """Queue a request and tell that it is new, or find the same one."""
        self.counters.asked += 1
        request = replace(request, tools=stable_tools(request.tools))
        key = same_key(request)
        entry = self._same.get(key)
        fresh = entry is None and key not in self._answers
        if entry is None:
            future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
            entry = _Entry(request, text_of(request), key, future)
            if fresh:
                self._same[key] = entry
                self._new.append(entry)
                self._wake()
            else:
                entry.done.set_result(self._answers[key])
                entry.said.append(self._answers[key].text)
        self.counters.deduplicated += not fresh
        entry.waiters += 1
        return entry, fresh

    def _leave(self, entry: _Entry) -> None:
        """Somebody does not wait any more; the last one to leave ends the request."""
        entry.waiters -= 1
        if not entry.waiters and not entry.done.done():
            if entry.task is not None:
                entry.task.cancel()
            self._end(entry, None)

    def _wake(self) -> None:
        """Send what can be sent, once all who ask at this moment have asked."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        self._scheduled = False
        if self._new and len(self._new) * 8 >= len(self._planned):
            self._plan()
        while self._free and (entry := self._next()) is not None:
            self._free -= 1
            del self._planned[entry]
            self._running[entry] = None
            self._tenants[entry.request.salt] += 1
            self._lead(entry)
            self.counters.ahead += bool(entry.leads)
            entry.task = asyncio.create_task(self._run(entry))

    def _plan(self) -> None:
        """Find what all that waits begins with, beside what runs and what was sent before."""
        waiting = [*self._planned, *self._new]
        self._new.clear()
        entries = [*waiting, *self._running]
        texts = [(entry.request.salt, entry.text) for entry in entries] + list(self._seen)
        tree = find_prefixes(
            [np.frombuffer(text, dtype=np.uint8) for _, text in texts],
            [scope for scope, _ in texts],
        )
        answers = np.zeros(len(texts), dtype=np.int64)
        answers[: len(entries)] = [entry.request.sampling.max_tokens for entry in entries]
        paths = [_worth_waiting(tree, int(end)) for end in tree.terminal_P]
        nodes = {node: _Node() for path in paths for node in path}
        for path in paths[len(entries) :]:
            for node in path:
                nodes[node].warm = True
        for entry, path in zip(entries, paths, strict=False):
            entry.path = tuple(nodes[node] for node in path)
        for entry in self._running:
            self._lead(entry)
        order = execution_order(tree, answers).tolist()
        ranked = [place for place in order if place < len(waiting)]
        self._planned = dict.fromkeys(waiting[place] for place in ranked)
        self._ready.clear()
        for rank, entry in enumerate(self._planned):
            entry.rank = rank
            self._push(entry)

    def _push(self, entry: _Entry) -> None:
        heap = self._ready.setdefault(entry.request.salt, [])
        heapq.heappush(heap, (entry.rank, next(self._ticket), entry))

    def _next(self) -> _Entry | None:
        """The first in order that need not wait, of the tenant with the fewest under way."""
        for tenant in sorted(self._ready, key=self._tenants.__getitem__):
            heap = self._ready[tenant]
            while heap:
                entry = heapq.heappop(heap)[2]
                if entry not in self._planned:
                    continue
                holding = next((node for node in self._awaits(entry) if node.held), None)
                if holding is None:
                    return entry
                holding.parked.append(entry)
            del self._ready[tenant]
        return None

    def _awaits(self, entry: _Entry) -> tuple[_Node, ...]:
        """Nodes that another request may be computing: in a slot, only one's own group."""
        return entry.path[-1:] if self._slotted else entry.path

    def _lead(self, entry: _Entry) -> None:
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

    def _release(self, entry: _Entry, *, warm: bool) -> None:
        """Let those go on who waited for this request."""
        for node in entry.leads:
            node.held, node.warm = False, warm
            while node.parked:
                waiting = node.parked.pop(0)
                if waiting in self._planned:
                    self._push(waiting)
                    if self._slotted:
                        break
        entry.leads = []

    # -- what is under way --------------------------------------------------------------------

    async def _run(self, entry: _Entry) -> None:
        try:
            result: Completion | BaseException = await self._charged(entry)
        except asyncio.CancelledError:
            return  # whoever cancelled has ended it
        except EngineError as error:
            result = error
        except BaseException as error:
            self._end(entry, error)
            raise
        self._end(entry, result)

    async def _charged(self, entry: _Entry) -> Completion:
        """The answer, within the budget of whoever asks."""
        request = entry.request
        budget = self._budget_of(request)
        if budget is None:
            return await self._ask(entry)
        need = self._engine.count_tokens(request.prompt) + request.sampling.max_tokens
        try:
            held = budget.reserve(need)
        except BudgetExhausted as error:
            return Completion("", finish="budget", error=str(error))
        used = 0
        try:
            completion = await self._ask(entry)
            used = completion.usage.asked_tokens
            return completion
        finally:
            held.settle(used)

    async def _ask(self, entry: _Entry) -> Completion:
        def on_delta(delta: Delta) -> None:
            if not entry.begun:
                entry.begun = True
                if not self._slotted:
                    self._release(entry, warm=True)
                    self._wake()
            entry.hear(delta.text)

        for attempt in itertools.count():
            self.counters.sent += 1
            try:
                (completion,) = await self._engine.generate([entry.request], on_delta)
            except RemoteError:
                if entry.listeners or not entry.said or attempt == AGAIN:
                    raise
                entry.said.clear()
                self.counters.retried += 1
            else:
                return completion
        raise AssertionError("the last attempt returns or raises")

    def _end(self, entry: _Entry, result: Completion | BaseException | None) -> None:
        """Hand a result to all who wait; None where nobody does any more."""
        if self._same.get(entry.key) is entry:
            del self._same[entry.key]
        if entry in self._running:
            del self._running[entry]
            self._free += 1
            self._tenants[entry.request.salt] -= 1
        self._planned.pop(entry, None)
        if entry in self._new:
            self._new.remove(entry)
        good = isinstance(result, Completion) and result.error is None
        self._release(entry, warm=good or entry.begun)
        if good and isinstance(result, Completion):
            self._account(entry, result)
        if not entry.done.done():
            if result is None:
                entry.done.cancel()
            elif isinstance(result, Completion):
                entry.done.set_result(result)
            else:
                entry.done.set_exception(result)
        self._wake()

    def _account(self, entry: _Entry, completion: Completion) -> None:
        self.counters.prompt_tokens += completion.usage.prompt_tokens
        self.counters.cached_tokens += completion.usage.shared_tokens
        if not self._slotted:
            self._seen[entry.request.salt, entry.text] = None
            while len(self._seen) > KNOWN:
                self._seen.popitem(last=False)
        if self._remember:
            self._answers[entry.key] = completion
            while len(self._answers) > self._remember:
                self._answers.popitem(last=False)

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("The engine is closed: open a new one.")


def _worth_waiting(tree: Prefixes, end: int) -> list[int]:
    """Shared nodes down to this one, each with enough text beyond the one above."""
    found, above = [], 0
    for node in tree.path(end):
        several = tree.last_N[node] - tree.first_N[node] >= 2
        if several and tree.end_N[node] - above >= SHARED_BYTES:
            found.append(node)
            above = int(tree.end_N[node])
    return found


def _listen(entry: _Entry, index: int, on_delta: OnDelta) -> None:
    """Hear the text of an entry, what has been said already included."""

    def hear(piece: str) -> None:
        if piece:
            on_delta(Delta(index, piece))

    if entry.said:
        asyncio.get_running_loop().call_soon(hear, "".join(entry.said))
    entry.listeners.append(hear)


def _again(completion: Completion) -> Completion:
    """Somebody else's answer: nothing of its prompt was computed for this request."""
    usage = completion.usage
    return replace(completion, usage=replace(usage, shared_tokens=usage.prompt_tokens))


def _settled(results: Sequence[Completion | BaseException]) -> list[Completion]:
    """Requests that failed at the endpoint fail alone, unless all did."""
    failures = [result for result in results if isinstance(result, BaseException)]
    for failure in failures:
        if len(failures) == len(results) or not isinstance(failure, RemoteError):
            raise failure
    return [
        result
        if isinstance(result, Completion)
        else Completion("", finish="error", error=str(result), error_kind="remote")
        for result in results
    ]
