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
import itertools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

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
from shoal.engine.remote import RemoteEngine
from shoal.engine.upstream_format import same_key, slots_of, stable_tools, text_of
from shoal.engine.upstream_queue import Entry, UpstreamQueue

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
        self._queue = UpstreamQueue(slotted=self._slotted)
        self._same: dict[Hashable, Entry] = {}
        self._answers: OrderedDict[Hashable, Completion] = OrderedDict()
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
        queue = self._queue
        return EngineLoad(len(queue.running), len(queue.new) + len(queue.planned), 0, 0, 0)

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
        for entry in [*self._queue.new, *self._queue.planned, *self._queue.running]:
            self._end(entry, EngineError("The engine is closed."))
        await self._engine.close()

    # -- what is queued ---------------------------------------------------------------------

    def _enter(self, request: Request) -> tuple[Entry, bool]:
        """Queue a request and tell that it is new, or find the same one."""
        self.counters.asked += 1
        request = replace(request, tools=stable_tools(request.tools))
        key = same_key(request)
        entry = self._same.get(key)
        fresh = entry is None and key not in self._answers
        if entry is None:
            future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
            entry = Entry(request, text_of(request), key, future)
            if fresh:
                self._same[key] = entry
                self._queue.new.append(entry)
                self._wake()
            else:
                entry.done.set_result(self._answers[key])
                entry.said.append(self._answers[key].text)
        self.counters.deduplicated += not fresh
        entry.waiters += 1
        return entry, fresh

    def _leave(self, entry: Entry) -> None:
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
        self._queue.refresh()
        while self._free and (entry := self._queue.take()) is not None:
            self._free -= 1
            self.counters.ahead += bool(entry.leads)
            entry.task = asyncio.create_task(self._run(entry))

    # -- what is under way --------------------------------------------------------------------

    async def _run(self, entry: Entry) -> None:
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

    async def _charged(self, entry: Entry) -> Completion:
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

    async def _ask(self, entry: Entry) -> Completion:
        def on_delta(delta: Delta) -> None:
            if not entry.begun:
                entry.begun = True
                if not self._slotted:
                    self._queue.release(entry, warm=True)
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

    def _end(self, entry: Entry, result: Completion | BaseException | None) -> None:
        """Hand a result to all who wait; None where nobody does any more."""
        if self._same.get(entry.key) is entry:
            del self._same[entry.key]
        good = isinstance(result, Completion) and result.error is None
        self._free += self._queue.leave(entry, warm=good or entry.begun)
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

    def _account(self, entry: Entry, completion: Completion) -> None:
        self.counters.prompt_tokens += completion.usage.prompt_tokens
        self.counters.cached_tokens += completion.usage.shared_tokens
        self._queue.remember(entry)
        if self._remember:
            self._answers[entry.key] = completion
            while len(self._answers) > self._remember:
                self._answers.popitem(last=False)

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("The engine is closed: open a new one.")


def _listen(entry: Entry, index: int, on_delta: OnDelta) -> None:
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
