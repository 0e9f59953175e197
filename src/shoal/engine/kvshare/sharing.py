"""KVShare: cache of moved text is found by content, rotated to its place and partly repaired.

"KVShare: An LLM Service System with Efficient and Effective Multi-Tenant KV Cache Reuse"
(arXiv 2503.16525). Its full text could not be had; what follows is built from its abstracts and
from what later papers say of it:
- chunks of adaptive length, found by content (:mod:`shoal.engine.kvshare.chunks`);
- longest exact prefix first, then chunks, rotated to their new place;
- the tokens that deserve it are computed again in their new context (:mod:`shoal.engine.repair`),
  and where asked for, more of them while the answer is written (:mod:`shoal.engine.late_repair`);
- requests in order of their hit rate (:mod:`shoal.engine.kvshare.order`).

Departures: approximate cache crosses no border between tenants unless its owner declared the text,
and what is declared is computed anew behind a canonical beginning, never behind anybody's text: so
nobody's text leaks into it, and nobody can poison what others read. The semantic alignment of the
paper's first version is not here: equal tokens alone lend their cache. The paper chooses tokens by
attention times deviation of values (DHD); the default here is the deviation of values alone, which
stayed nearer to dense in the claim, most of all where several texts were moved.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from shoal.core.errors import EngineError
from shoal.core.protocols import Request, Sampling, Segment
from shoal.core.records import Message
from shoal.engine.compute import compute
from shoal.engine.generation import Composition, Generation, HiddenStates, Job, Piece
from shoal.engine.kvshare.chunks import LONGEST, SHORTEST, Chunk, Marks, chunks
from shoal.engine.kvshare.matching import Match, match, pieces
from shoal.engine.kvshare.movable import immovable
from shoal.engine.kvshare.order import HitRateOrder, PreparedOrder, Reach
from shoal.engine.kvshare.store import Behind, Entry, SegmentStore
from shoal.engine.kvshare.tenants import PUBLIC, AccessDenied, Scope, Tenants, tenant_of
from shoal.engine.local import LocalEngine
from shoal.engine.policies import Policy
from shoal.engine.repair import Repair
from shoal.engine.tree import PrefixTree

DECLARED = "\x00declared"
"""Salt under which declared texts are computed: no request has it."""
DEEPEST = 1
LEAST = 4
"""Tokens of a chunk that is worth an entry; it is moved only in a run of :data:`SHORTEST_RUN`."""
REPAIR = Repair("values", 0.15)
"""What moved text gets unless somebody says otherwise: the rule that did best in the claim."""
Order = Literal["arrival", "hit rate", "hit rate alone"]
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Plan:
    """What is known of one request.

    found  what was found last, and of how long an exact prefix in which version of the store
    """

    cut: list[Chunk]
    scopes: tuple[Scope, ...]
    match: Match = field(default_factory=lambda: Match(0))
    found: tuple[int, int, Match] | None = None
    held: list[Entry] = field(default_factory=list)
    placed_at: float | None = None


class KVShare:
    """Finds, moves and stores: a Reuse, a Watch and a Finder for one engine.

    store     what was computed before; to be touched on the compute thread
    tenants   who may read and keep what
    repair    which moved tokens are computed again
    deepest   how often cache may be computed behind moved cache and still be moved itself
    disabled  why nothing is ever moved here; None where it can be
    """

    def __init__(
        self,
        engine: LocalEngine,
        *,
        store: SegmentStore | None = None,
        tenants: Tenants | None = None,
        repair: Repair | None = None,
        deepest: int = DEEPEST,
    ) -> None:
        self.store = SegmentStore(engine.model.fingerprint) if store is None else store
        if self.store.fingerprint != engine.model.fingerprint:
            raise EngineError(
                f"The store holds cache of another model than {engine.model.name}: open one for "
                "its fingerprint."
            )
        self.tenants = tenants or Tenants()
        self.repair = repair or REPAIR
        self.disabled = (
            compute.call(lambda: immovable(engine.model.decoder))
            if engine.info.sharing
            else "An engine that shares nothing cannot move keys and values."
        )
        self._engine = engine
        self._marks = Marks.of(engine.model.tokenizer)
        self._deepest = deepest
        self._plans: dict[Job, _Plan] = {}
        self._token_seconds = 1e-3  # of prefill; measured as requests pass

    # -- what comes in --------------------------------------------------------------------------

    def welcome(self, job: Generation) -> None:
        """Let a request find and store; raises :class:`AccessDenied` for an unknown tenant."""
        self.tenants.access(job.request.salt)
        if self.disabled is None:
            job.watch = self

    async def declare(self, text: str, scope: Scope = PUBLIC, *, salt: str = "") -> int:
        """Compute a text for others, behind a canonical beginning and nobody's text.

        ``salt`` is its owner's, as the server knows it. Returns how many of its tokens can be
        found from now on. Raises :class:`AccessDenied` where that tenant may not declare, or
        where the text holds what another keeps to itself, and :class:`EngineError` where it does
        not fit.
        """
        access, tenant = self.tenants.access(salt), tenant_of(salt)
        if scope.visibility == "private":
            raise AccessDenied("A private text needs no declaration: ask with reuse='approx'.")
        member = scope.visibility == "public" or scope.name in access.groups
        if not (access.declares and member):
            raise AccessDenied(
                f"This tenant may not declare texts for {scope.name or 'everybody'}: let the "
                "operator allow it."
            )
        if self.disabled is not None:
            raise EngineError(self.disabled)
        text_ids = tuple(self._engine.model.tokenizer.encode(text, special=False, salt=salt))
        # a heading or an empty line is nobody's own
        long = (chunk for chunk in chunks(text_ids, self._marks) if len(chunk) >= SHORTEST)
        digests = {chunk.digest for chunk in long}
        kept = compute.future(lambda: self.store.private_to_others(digests, tenant))
        if await asyncio.wrap_future(kept):
            raise AccessDenied(
                "The text cannot be declared, as somebody else keeps a part of it private."
            )
        beginning = self._beginning()
        watch = _Declaring(self, text_ids, len(beginning), scope, tenant)
        request = Request((), Sampling(max_tokens=0), salt=DECLARED)
        whole = (Piece((*beginning, *text_ids)),)
        (done,) = await self._engine.compose([Composition(request, whole, watch=watch)])
        if done.error is not None:
            raise EngineError(done.error)
        return watch.stored

    def _beginning(self) -> tuple[int, ...]:
        """What stands before a text that is computed for others: how a user's turn begins."""
        engine = self._engine
        if engine.model.chat.template is None:
            return tuple(engine.encode((Segment("\n\n"),)))
        mark = "\n\nTEXT"
        tokens = engine.encode((Message("user", mark),))
        inside = engine.model.tokenizer.encode(mark, special=False)
        for start in range(len(tokens) - len(inside), 0, -1):
            if tokens[start : start + len(inside)] == inside:
                return tuple(tokens[:start])
        return tuple(tokens)

    # -- as a finder ----------------------------------------------------------------------------

    def reach(self, job: Job, tree: PrefixTree) -> Reach:
        if isinstance(job, HiddenStates):
            return Reach(tree.match(job.prefix, job.salt))
        plan = self._plan(job)
        if plan is None:
            return Reach(tree.match(job.tokens, job.request.salt))
        found = self._match(job, plan, tree)
        largest = max(found.hits, key=len, default=None)
        return Reach(found.exact + found.moved, largest.entry.digest if largest else b"")

    def prepare(self, job: Job, tree: PrefixTree) -> None:
        if isinstance(job, HiddenStates) or job.preempted:
            return  # what a preempted answer was begun with is what it goes on with
        plan = self._plan(job)
        if plan is None:
            return
        self.store.release(plan.held)
        plan.match = self._match(job, plan, tree)
        plan.held = [hit.entry for hit in plan.match.hits]
        self.store.hold(plan.held)
        job.pieces = pieces(job.tokens, plan.match.hits)
        job.repair = self.repair if job.pieces else None

    def placed(self, job: Job) -> None:
        plan = self._plans.get(job)
        if plan is not None and plan.placed_at is None:
            plan.placed_at = time.perf_counter()
            self.store.count(plan.held, plan.match.missed)

    def ended(self, job: Job) -> None:
        plan = self._plans.pop(job, None)
        if plan is not None:
            self.store.release(plan.held)

    def _plan(self, job: Generation) -> _Plan | None:
        if job.watch is not self:
            return None
        if job not in self._plans:
            scopes = self.tenants.readable(job.request.salt)
            if job.request.reuse == "own":
                scopes = scopes[:1]
            self._plans[job] = _Plan(chunks(job.tokens, self._marks), scopes)
        return self._plans[job]

    def _match(self, job: Generation, plan: _Plan, tree: PrefixTree) -> Match:
        """Looks anew only where something has changed: many wait while few are placed."""
        exact, version = tree.match(job.tokens, job.request.salt), self.store.version
        if plan.found is None or plan.found[:2] != (exact, version):
            found = match(job.tokens, plan.cut, exact, lambda chunk: self._find(job, plan, chunk))
            plan.found = exact, version, found
        return plan.found[2]

    def _find(self, job: Generation, plan: _Plan, chunk: Chunk) -> Entry | None:
        return self.store.find(chunk.digest, job.tokens, chunk.start, chunk.end, plan.scopes)

    # -- as a watch -----------------------------------------------------------------------------

    def prefilled(self, job: Generation) -> None:
        """Store what was computed for this prompt."""
        plan = self._plans.get(job)
        if plan is not None and not job.preempted:
            self._time(job, plan)
            self._store(job, plan)

    def ending(self, job: Generation) -> None:
        """Everything was stored when the prompt was complete."""

    def _time(self, job: Generation, plan: _Plan) -> None:
        """What a computed token costs, from prompts that were computed whole."""
        if plan.placed_at is not None and job.computed >= LONGEST and not plan.match.hits:
            seconds = (time.perf_counter() - plan.placed_at) / job.computed
            self._token_seconds += (seconds - self._token_seconds) / 8

    def _store(self, job: Generation, plan: _Plan) -> None:
        hits, (scope, *_) = plan.match.hits, plan.scopes
        quota = self.tenants.access(job.request.salt).quota_bytes
        approximate_from = hits[0].start if hits else job.prompt_tokens
        depth = 1 + max((hit.entry.depth for hit in hits), default=0)
        for chunk in plan.cut:
            own = 0 if chunk.end <= approximate_from else depth
            moved = any(hit.start < chunk.end and chunk.start < hit.end for hit in hits)
            if len(chunk) < LEAST or own > self._deepest or moved:
                continue
            known = self._find(job, plan, chunk)
            if known is None or known.depth > own:
                self.store.put(
                    self._engine.cut(job, chunk.start, chunk.end),
                    chunk.digest,
                    scope,
                    owner=tenant_of(scope.name),
                    seconds=self._token_seconds * len(chunk),
                    depth=own,
                    quota=quota,
                )

    def store_declared(self, job: Generation, declaring: _Declaring) -> int:
        """Store a declared text; how many tokens of it there was room for."""
        quota = self.tenants.access(declaring.owner).quota_bytes
        stored = 0
        for chunk in chunks(declaring.text, self._marks):
            if len(chunk) < LEAST:
                continue
            start, end = declaring.first + chunk.start, declaring.first + chunk.end
            if self.store.put(
                self._engine.cut(job, start, end),
                chunk.digest,
                declaring.scope,
                owner=declaring.owner,
                seconds=self._token_seconds * len(chunk),
                behind=Behind(declaring.text, chunk.start),
                quota=quota,
            ):
                stored += len(chunk)
        return stored


@dataclass(slots=True)
class _Declaring:
    """Waits for a declared text, which begins at token ``first`` of what is computed."""

    kvshare: KVShare
    text: tuple[int, ...]
    first: int
    scope: Scope
    owner: str
    stored: int = 0

    def prefilled(self, job: Generation) -> None:
        self.stored = self.kvshare.store_declared(job, self)

    def ending(self, job: Generation) -> None:
        """Nothing more is wanted."""


def attach(
    engine: LocalEngine,
    *,
    order: Order = "hit rate",
    store: SegmentStore | None = None,
    tenants: Tenants | None = None,
    repair: Repair | None = None,
) -> KVShare:
    """Let an engine serve requests with ``reuse="approx"``; call it before the first request.

    Where cache cannot be moved all requests are answered exactly, and ``disabled`` says why.
    ``order`` "hit rate alone" neither ages nor shares, for comparison. Raises
    :class:`EngineError` for a store of another model, and while requests are under way.
    """
    if engine.scheduler.busy:
        raise EngineError("Requests are under way: attach KVShare before the first of them.")
    kvshare = KVShare(engine, store=store, tenants=tenants, repair=repair)
    if kvshare.disabled is not None:
        _log.warning("%s", kvshare.disabled)
    orders: dict[Order, Callable[[], Policy]] = {
        "arrival": lambda: PreparedOrder(kvshare),
        "hit rate": lambda: HitRateOrder(kvshare, weight=kvshare.tenants.weight),
        "hit rate alone": lambda: HitRateOrder(kvshare, ageing=0, slack=float("inf")),
    }
    engine.reuse = kvshare
    engine.scheduler.waiting = orders[order]()
    return kvshare
