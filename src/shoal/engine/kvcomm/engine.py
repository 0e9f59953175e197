"""The engine that communicates caches: what is moved, what is computed, and how well that went.

A request whose prompt has placeholders is either put together from base caches corrected by
anchors, or computed exactly and remembered as an anchor. Requests without placeholders pass
through untouched.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from shoal.core.errors import EngineError, ShoalError
from shoal.core.protocols import (
    Completion,
    Delta,
    EngineInfo,
    EngineLoad,
    OnDelta,
    Prompt,
    Request,
    Sampling,
    Score,
    Segment,
)
from shoal.core.records import Message
from shoal.engine.compute import compute
from shoal.engine.generation import Composition, Piece
from shoal.engine.kvcomm.deciding import decide, put_together
from shoal.engine.kvcomm.library import Library
from shoal.engine.kvcomm.policy import Bases, Call, CommPolicy, Decision, Known, Mode, Way
from shoal.engine.kvcomm.templates import Part, Template
from shoal.engine.kvcomm.watches import Glance, Learn
from shoal.engine.kvshare.movable import immovable
from shoal.engine.local import LocalEngine
from shoal.engine.repair import Repair

T = TypeVar("T")
_log = logging.getLogger(__name__)


class KVComm:
    """Implements :class:`shoal.core.protocols.Engine` around a local engine.

    ``calls`` tells what became of each request with placeholders; ``library`` holds what is
    computed once, and anchors outlive the engine in ``folder``, where one is given. ``disabled``
    says why nothing is ever moved here: a model whose keys cannot be rotated is answered exactly.
    """

    def __init__(
        self, engine: LocalEngine, policy: CommPolicy = CommPolicy(), folder: Path | None = None
    ) -> None:
        self.engine = engine
        self.policy = policy
        self.disabled = compute.call(lambda: immovable(engine.model.decoder))
        self.calls: list[Call] = []
        self.library = Library(engine, policy, folder)
        self._active = 0
        self._waiting: list[Callable[[], None]] = []

    # -- the protocol ---------------------------------------------------------------------

    @property
    def info(self) -> EngineInfo:
        """What runs here."""
        return replace(self.engine.info, details={"kvcomm": self.policy.after})

    @property
    def load(self) -> EngineLoad:
        """See :attr:`LocalEngine.load`."""
        return self.engine.load

    async def generate(
        self, requests: Sequence[Request], on_delta: OnDelta | None = None
    ) -> list[Completion]:
        """See :meth:`shoal.core.protocols.Engine.generate`."""
        plain = [i for i, request in enumerate(requests) if not _has_placeholders(request)]
        answers: dict[int, Completion] = {}

        def relabelled(indices: Sequence[int]) -> OnDelta | None:
            if on_delta is None:
                return None
            tell = on_delta
            return lambda delta: tell(Delta(indices[delta.index], delta.text, delta.tokens))

        async def group() -> None:
            chosen = [requests[i] for i in plain]
            done = await self.engine.generate(chosen, relabelled(plain))
            answers.update(zip(plain, done, strict=True))

        async def alone(index: int) -> None:
            answers[index] = await self._call(requests[index], relabelled([index]))

        others = (alone(i) for i in range(len(requests)) if i not in plain)
        await asyncio.gather(*others, *([group()] if plain else []))
        return [answers[i] for i in range(len(requests))]

    async def score(self, prefix: Prompt, candidates: Sequence[str], salt: str = "") -> list[Score]:
        """See :meth:`shoal.core.protocols.Engine.score`; always exact."""
        return await self.engine.score(prefix, candidates, salt)

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See :meth:`shoal.core.protocols.Engine.embed`."""
        return await self.engine.embed(texts)

    def count_tokens(self, prompt: Prompt) -> int:
        """See :meth:`shoal.core.protocols.Engine.count_tokens`."""
        return self.engine.count_tokens(prompt)

    async def close(self) -> None:
        """Keep the anchors, where there is a folder for them, and close the engine."""
        self.library.save()
        await self.engine.close()

    def with_policy(self, policy: CommPolicy) -> KVComm:
        """The same engine and everything known so far, put to work by another policy."""
        other = KVComm(self.engine, policy)
        other.library = self.library.with_policy(policy)
        return other

    async def pieces(self, template: Template, salt: str = "") -> tuple[Piece, ...]:
        """How a prompt would be put together, whatever rule and gate say.

        Raises ``ValueError`` where a placeholder has no anchor that is long enough.
        """
        known, bases = await self.library.read(template, salt)

        def work() -> tuple[Piece, ...]:
            pairs = zip(bases, known.pools, strict=True)
            seen = [
                None if base is None else self.library.compare(salt, base, pool.usable(base))
                for base, pool in pairs
            ]
            policy = self.policy
            way = policy.ways[0]
            return put_together(template, known, bases, seen, way, offsets=policy.offsets)

        return await _on_compute(work)

    # -- one call -------------------------------------------------------------------------

    async def _call(self, request: Request, on_delta: OnDelta | None) -> Completion:
        if request.adapter is not None:  # anchors are the model's own
            (answer,) = await self.engine.generate([request], on_delta)
            return answer
        self._active += 1
        try:
            return await self._answer(request, self.template(request), on_delta)
        except ShoalError as error:
            return Completion("", finish="error", error=str(error))
        finally:
            self._active -= 1
            if not self._active:  # anchors of calls under way do not change beneath them
                for commit in self._waiting:
                    commit()
                self._waiting.clear()

    def template(self, request: Request) -> Template:
        """A request's prompt in fixed and changing parts, each as tokens of its own."""
        model, salt = self.engine.model, request.salt
        if request.placeholders:
            messages = [part for part in request.prompt if isinstance(part, Message)]
            parts = model.chat.encode_apart(
                messages,
                model.tokenizer,
                [each.text for each in request.placeholders],
                tools=request.tools,
                salt=salt,
            )
            names = [name for each in request.placeholders for name in ("", each.name)]
            both = zip(parts, [*names, ""], strict=True)
            return Template.of([Part(tuple(tokens), name) for tokens, name in both])
        return Template.of(
            [
                Part(tuple(self.engine.encode((part,), salt)), part.name)
                for part in request.prompt
                if isinstance(part, Segment)
            ]
        )

    async def _answer(
        self, request: Request, template: Template, on_delta: OnDelta | None
    ) -> Completion:
        if self.disabled is not None:
            whole = (Piece(template.tokens),)
            (answer,) = await self.engine.compose([Composition(request, whole)], on_delta)
            self._told("dense", Decision(None, self.disabled), 0.0)
            return answer
        started = time.perf_counter()
        known, bases = await self.library.read(template, request.salt)
        compare = functools.partial(self.library.compare, request.salt)
        decision = await _on_compute(lambda: decide(known, bases, self.policy, compare))
        looks = self.policy.gated and (decision.way is not None or decision.held) and known.looks()
        margin = kl = None
        if decision.way is not None:
            way = self.policy.ways[decision.way]
            pieces = await self._put_together(template, known, bases, decision, way)
            seconds = time.perf_counter() - started
            answer, seen = await self._moved(request, pieces, way, on_delta)
            margin = seen.margin if seen.margin < math.inf else None
            if not seen.unsure:
                if looks and not answer.error:
                    kl = await self._look(request, template, known, bases, decision, taken=seen)
                self._told("moved", decision, seconds, kl, margin)
                why = decision.why if kl is None else f"KL {kl:.3f}"
                how = answer.how if answer.error else f"{answer.how} ({why})"
                return replace(_later(answer, seconds), how=how)
            decision = replace(decision, way=None, why="two answers were too near to each other")
        seconds = time.perf_counter() - started
        exact = Glance(self.engine)
        learn = Learn(self.engine, template, known, bases, self._waiting, exact)
        whole = (Piece(template.tokens),)
        (answer,) = await self.engine.compose([Composition(request, whole, watch=learn)], on_delta)
        if decision.held and looks and not answer.error:  # would it be good enough by now?
            kl = await self._look(request, template, known, bases, decision, exact=exact)
        self._told("dense", decision, seconds, kl, margin)
        return _later(answer, seconds)

    async def _put_together(
        self,
        template: Template,
        known: Known,
        bases: Bases,
        decision: Decision,
        way: Way,
    ) -> tuple[Piece, ...]:
        offsets = self.policy.offsets
        return await _on_compute(
            lambda: put_together(template, known, bases, decision.seen, way, offsets=offsets)
        )

    async def _look(
        self,
        request: Request,
        template: Template,
        known: Known,
        bases: Bases,
        decision: Decision,
        *,
        exact: Glance | None = None,
        taken: Glance | None = None,
    ) -> float | None:
        """Note how far every way up to the one that was taken is from exact; of the last in nats.

        Cheaper ways are tried as well: anchors that came since may have opened them again. A look
        that fails is none, as the answer is there already.
        """
        kl = None
        try:
            exact = exact or await self._glance(request, (Piece(template.tokens),))
            for index, (way, gate) in enumerate(zip(self.policy.ways, known.gates, strict=False)):
                found = taken if index == decision.way else None
                if found is None:
                    pieces = await self._put_together(template, known, bases, decision, way)
                    found = await self._glance(request, pieces, way.repair)
                kl = _divergence(exact, found)
                gate.note(decision.distance, kl)
                if index == decision.way:
                    break
        except EngineError as error:
            _log.warning("A look at a moved prompt failed: %s", error)
        return kl

    async def _moved(
        self, request: Request, pieces: tuple[Piece, ...], way: Way, on_delta: OnDelta | None
    ) -> tuple[Completion, Glance]:
        """The answer behind moved texts; a choice that is in doubt is given up."""
        weighs = self.policy.gated and _chooses(request)
        seen = Glance(self.engine, sure=self.policy.sure if weighs else None)
        composition = Composition(request, pieces, way.repair, seen)
        # what is given up must not have been told before
        (answer,) = await self.engine.compose([composition], None if weighs else on_delta)
        if weighs and on_delta is not None and not seen.unsure and answer.tokens:
            on_delta(Delta(0, answer.text, answer.tokens))
        return answer, seen

    def _told(
        self,
        mode: Mode,
        found: Decision,
        seconds: float,
        kl: float | None = None,
        margin: float | None = None,
    ) -> None:
        ms, anchors = seconds * 1e3, found.anchors
        told = Call(mode, found.why, found.entropy, found.distance, anchors, ms, kl, margin)
        self.calls.append(told)

    async def _glance(
        self, request: Request, pieces: tuple[Piece, ...], repair: Repair | None = None
    ) -> Glance:
        """What a prompt in pieces predicts; nothing is answered."""
        seen = Glance(self.engine)
        bare = replace(request, sampling=Sampling(max_tokens=0), grammar=None, placeholders=())
        (done,) = await self.engine.compose([Composition(bare, pieces, repair, seen)])
        if done.error:
            raise EngineError(done.error)
        return seen


def _divergence(exact: Glance, found: Glance) -> float:
    """Of an approximate next-token distribution from the exact one, in nats."""
    assert exact.logprobs is not None and found.logprobs is not None
    true_V, found_V = exact.logprobs, found.logprobs
    return float((true_V.exp() * (true_V - found_V)).sum())


def _chooses(request: Request) -> bool:
    """Whether the answer is the likeliest of a list."""
    listed = request.grammar is not None and request.grammar.kind == "choice"
    return listed and request.sampling.temperature == 0


def _has_placeholders(request: Request) -> bool:
    named = any(isinstance(part, Segment) and part.name for part in request.prompt)
    return bool(request.placeholders) or named


def _later(answer: Completion, seconds: float) -> Completion:
    """The same answer, with the time its prompt took to prepare."""
    usage = replace(
        answer.usage,
        first_token_ms=answer.usage.first_token_ms + seconds * 1e3,
        total_ms=answer.usage.total_ms + seconds * 1e3,
    )
    return replace(answer, usage=usage)


async def _on_compute(work: Callable[[], T]) -> T:
    def run() -> T:
        with torch.inference_mode():
            return work()

    return await asyncio.wrap_future(compute.future(run))
