"""The engine that communicates caches: what is moved, what is computed, and how well that went.

A request whose prompt has placeholders is either put together from base caches corrected by
anchors, or computed exactly and remembered as an anchor. Requests without placeholders pass
through untouched.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from shoal.core.errors import ShoalError
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
from shoal.engine.generation import Composition, Generation, Piece
from shoal.engine.kvcomm.anchors import (
    Anchor,
    AnchorPool,
    Comparison,
    after_offset,
    compare,
    difference,
    entropy,
    text_offset,
)
from shoal.engine.kvcomm.gate import Gate
from shoal.engine.kvcomm.templates import Part, Template
from shoal.engine.local import LocalEngine
from shoal.engine.repair import Repair
from shoal.engine.segments import KVSegment

T = TypeVar("T")
Mode = Literal["plain", "dense", "moved"]


@dataclass(frozen=True, slots=True)
class CommPolicy:
    """How caches are communicated.

    gamma     texts are shared whose anchors' entropy is at most ``gamma`` log2 of their number
    top_p     anchors within this mass of weights count as used
    size, window, budget  of a placeholder's anchors, see :class:`AnchorPool`
    bases     texts whose base caches are kept, the last used
    gated     whether measured fidelity decides, too; without it the paper's rule alone does
    offsets   off: only rotation, a baseline
    after     the fixed piece after a text: "moved" with its offset, or "computed"
    repair    of moved tokens, on top of offsets
    beginning what a text stands behind when its base cache is computed
    """

    gamma: float = 0.3
    top_p: float = 0.9
    size: int = 20
    window: int = 5
    budget: int = 256 << 20
    bases: int = 64
    gated: bool = True
    offsets: bool = True
    after: Literal["moved", "computed"] = "moved"
    repair: Repair | None = None
    beginning: str = "The task is: "


@dataclass(frozen=True, slots=True)
class Call:
    """What became of one request with placeholders.

    why         one sentence
    entropy     of the weights of anchors, bits; the largest of its placeholders
    distance    to the nearest anchor, relative; the largest
    anchors     usable ones; the fewest
    prepare_ms  for base caches, decision and offsets, before the prompt was submitted
    kl          nats to the exact next-token distribution, where this call was looked at
    """

    mode: Mode
    why: str
    entropy: float = 0.0
    distance: float = 0.0
    anchors: int = 0
    prepare_ms: float = 0.0
    kl: float | None = None


@dataclass(frozen=True, slots=True)
class _Decision:
    move: bool
    why: str
    entropy: float = 0.0
    distance: float = 0.0
    anchors: int = 0
    seen: tuple[Comparison, ...] = ()


@dataclass(slots=True, eq=False)
class _Known:
    """What is known of one template: its fixed pieces after each placeholder, and anchors."""

    fixed: list[KVSegment]
    pools: list[AnchorPool]
    gate: Gate


class KVComm:
    """Implements :class:`shoal.core.protocols.Engine` around a local engine.

    ``calls`` tells what became of each request with placeholders; anchors outlive the engine in
    ``folder``, where one is given.
    """

    def __init__(
        self, engine: LocalEngine, policy: CommPolicy = CommPolicy(), folder: Path | None = None
    ) -> None:
        self.engine = engine
        self.policy = policy
        self.folder = folder
        self.calls: list[Call] = []
        self._known: dict[str, asyncio.Task[_Known]] = {}
        self._bases: OrderedDict[tuple[str, tuple[int, ...]], asyncio.Task[KVSegment]]
        self._bases = OrderedDict()
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
        if self.folder is not None:
            for key, task in self._known.items():
                for index, pool in enumerate((await task).pools):
                    if pool.anchors:
                        pool.save(self._file(key, index))
        await self.engine.close()

    def with_policy(self, policy: CommPolicy) -> KVComm:
        """The same engine and everything known so far, put to work by another policy."""
        other = KVComm(self.engine, policy, self.folder)
        other._known, other._bases = self._known, self._bases
        return other

    async def pieces(self, template: Template, salt: str = "") -> tuple[Piece, ...]:
        """How a prompt would be put together, whatever rule and gate say.

        Raises ``ValueError`` where a placeholder has no anchor that is long enough.
        """
        known, bases = await self._read(template, salt)

        def work() -> tuple[Piece, ...]:
            pairs = zip(bases, known.pools, strict=True)
            seen = [compare(base, pool.usable(base)) for base, pool in pairs]
            return self._pieces(template, known, bases, seen)

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
        started = time.perf_counter()
        known, bases = await self._read(template, request.salt)
        decision = await _on_compute(lambda: self._decide(known, bases))
        if not decision.move:
            learn = _Learn(self.engine, template, known, bases, self._waiting)
            whole = (Piece(template.tokens),)
            seconds = time.perf_counter() - started
            composition = Composition(request, whole, watch=learn)
            (answer,) = await self.engine.compose([composition], on_delta)
            self._told("dense", decision, seconds)
            return _later(answer, seconds)
        pieces = await _on_compute(lambda: self._pieces(template, known, bases, decision.seen))
        seconds = time.perf_counter() - started
        seen = _Glance(self.engine)
        composition = Composition(request, pieces, self.policy.repair, seen)
        (answer,) = await self.engine.compose([composition], on_delta)
        kl = None
        if self.policy.gated and known.gate.looks():
            kl = await self._look(request, template, seen)
            known.gate.note(decision.distance, kl)
        self._told("moved", decision, seconds, kl)
        how = f"{answer.how} ({decision.why})" if kl is None else f"{answer.how} (KL {kl:.3f})"
        return replace(_later(answer, seconds), how=how if not answer.error else answer.how)

    def _told(self, mode: Mode, found: _Decision, seconds: float, kl: float | None = None) -> None:
        self.calls.append(
            Call(mode, found.why, found.entropy, found.distance, found.anchors, seconds * 1e3, kl)
        )

    def _decide(self, known: _Known, bases: Sequence[KVSegment]) -> _Decision:
        """Whether all texts of a call may be moved (equation 5, and the gate)."""
        if not bases:
            return _Decision(False, "nothing in the prompt changes")
        found = _Decision(True, "anchors agree", anchors=self.policy.size)
        for base, pool in zip(bases, known.pools, strict=True):
            anchors = pool.usable(base)
            if len(anchors) < 2:
                return _Decision(False, "fewer than two anchors are long enough")
            seen = compare(base, anchors)
            weights = seen.weights
            found = _Decision(
                True,
                found.why,
                max(found.entropy, entropy(weights)),
                max(found.distance, seen.relative),
                min(found.anchors, len(anchors)),
                (*found.seen, seen),
            )
            if entropy(weights) > self.policy.gamma * math.log2(len(anchors)):
                return replace(found, move=False, why="the anchors do not agree on this text")
            self._count_uses(weights, anchors)
        if self.policy.gated and not known.gate.open:
            return replace(found, move=False, why="looks found the approximation too far off")
        if self.policy.gated and not known.gate.reaches(found.distance):
            return replace(found, move=False, why="the text is too far from every anchor")
        return found

    def _count_uses(self, weights_A: torch.Tensor, anchors: Sequence[Anchor]) -> None:
        order = weights_A.argsort(descending=True)
        before = weights_A[order].cumsum(0) - weights_A[order]
        for index in order[before < self.policy.top_p].tolist():
            anchors[index].uses += 1

    def _pieces(
        self,
        template: Template,
        known: _Known,
        bases: Sequence[KVSegment],
        seen: Sequence[Comparison],
    ) -> tuple[Piece, ...]:
        """The prompt with moved texts; its last token is computed."""
        parts, policy = template.parts, self.policy
        pieces = [Piece(parts[0].tokens)]
        for index, (base, pool) in enumerate(zip(bases, known.pools, strict=True)):
            anchors = pool.usable(base)
            after = parts[2 * index + 2]
            moved = base.add(*text_offset(seen[index], anchors)) if policy.offsets else base
            pieces.append(Piece(base.tokens, moved))
            if policy.after == "computed":
                pieces.append(Piece(after.tokens))
                continue
            fixed = known.fixed[index]
            follows = fixed.add(*after_offset(seen[index], anchors)) if policy.offsets else fixed
            pieces.append(Piece(after.tokens, follows))
        return tuple(_last_computed([piece for piece in pieces if piece.tokens]))

    # -- what is computed once ------------------------------------------------------------

    async def _read(self, template: Template, salt: str) -> tuple[_Known, list[KVSegment]]:
        """What is known of a template, and the base caches of its texts."""
        if len(template.parts) == 1:
            return _Known([], [], Gate()), []
        known = await self._about(template, salt)
        texts = [part.tokens for part in template.parts[1::2]]
        return known, list(await asyncio.gather(*(self._base(text, salt) for text in texts)))

    async def _about(self, template: Template, salt: str) -> _Known:
        """What is known of a template; its fixed pieces are computed once."""
        key = template.key(salt)
        if key not in self._known:
            self._known[key] = asyncio.create_task(self._first_seen(template, salt))
        return await self._known[key]

    async def _first_seen(self, template: Template, salt: str) -> _Known:
        encode = self.engine.model.tokenizer.encode
        parts = [
            part.tokens if not part.placeholder else tuple(encode(f"{{{part.placeholder}}}"))
            for part in template.parts
        ]
        start = len(parts[0])  # the beginning is exact, and shared like any other
        tokens = [token for part in parts for token in part]
        rest = await self.engine.capture(tokens, start, salt)
        fixed, done = [], 0
        for index, part in enumerate(parts[1:], 1):
            if index % 2 == 0:
                fixed.append(rest.slice(done, done + len(part)))
            done += len(part)
        policy = self.policy
        pools = [
            AnchorPool(policy.size, policy.window, policy.budget) for _ in range(len(parts) // 2)
        ]
        if self.folder is not None:
            for index, pool in enumerate(pools):
                pool.load(self._file(template.key(salt), index), self.engine.model.fingerprint)
        return _Known(fixed, pools, Gate())

    def _file(self, key: str, index: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}-{index}.safetensors"

    async def _base(self, tokens: tuple[int, ...], salt: str) -> KVSegment:
        """A text's own keys and values, behind the fixed beginning; computed once."""
        key = (salt, tokens)
        if key not in self._bases:
            before = self.engine.model.tokenizer.encode(self.policy.beginning)
            capture = self.engine.capture([*before, *tokens], len(before), salt)
            self._bases[key] = asyncio.create_task(capture)
        self._bases.move_to_end(key)
        while len(self._bases) > self.policy.bases:
            self._bases.popitem(last=False)
        return await self._bases[key]

    async def _look(self, request: Request, template: Template, seen: _Glance) -> float:
        """Divergence of the approximate next-token distribution from the exact one, in nats."""
        exact = _Glance(self.engine)
        bare = replace(request, sampling=Sampling(max_tokens=0), grammar=None)
        await self.engine.compose([Composition(bare, (Piece(template.tokens),), watch=exact)])
        assert exact.logprobs is not None and seen.logprobs is not None
        true_V, found_V = exact.logprobs, seen.logprobs
        return float((true_V.exp() * (true_V - found_V)).sum())


class _Glance:
    """Keeps the distribution of the first token."""

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine
        self.logprobs: torch.Tensor | None = None

    def prefilled(self, job: Generation) -> None:
        assert job.end is not None and job.end.last_hidden is not None
        logits = self._engine.model.decoder.logits(job.end.last_hidden[None], precise=True)
        self.logprobs = torch.log_softmax(logits[0], -1)

    def ending(self, job: Generation) -> None:
        """Nothing more is wanted."""


class _Learn:
    """Makes anchors of an exact prompt; they are added when no call is under way."""

    def __init__(
        self,
        engine: LocalEngine,
        template: Template,
        known: _Known,
        bases: Sequence[KVSegment],
        commits: list[Callable[[], None]],
    ) -> None:
        self._engine = engine
        self._template = template
        self._known = known
        self._bases = bases
        self._commits = commits

    def prefilled(self, job: Generation) -> None:
        first, *rest = (len(part.tokens) for part in self._template.parts)
        real = self._engine.cut(job, first, job.prompt_tokens)
        ends = list(itertools.accumulate(rest, initial=0))
        for index, (base, pool) in enumerate(zip(self._bases, self._known.pools, strict=True)):
            start, middle, end = ends[2 * index : 2 * index + 3]
            text, after = real.slice(start, middle), real.slice(middle, end)
            kept = replace(base, keys_LTKd=base.keys_LTKd.to(base.values_LTKd.dtype))
            anchor = Anchor(
                kept, difference(text, base), difference(after, self._known.fixed[index])
            )
            self._commits.append(lambda pool=pool, anchor=anchor: pool.add(anchor))  # type: ignore[misc]

    def ending(self, job: Generation) -> None:
        """Nothing more is wanted."""


def _has_placeholders(request: Request) -> bool:
    named = any(isinstance(part, Segment) and part.name for part in request.prompt)
    return bool(request.placeholders) or named


def _last_computed(pieces: list[Piece]) -> list[Piece]:
    last = pieces[-1]
    if last.segment is None:
        return pieces
    kept = Piece(last.tokens[:-1], last.segment.slice(0, len(last.tokens) - 1))
    return [*pieces[:-1], *([kept] if kept.tokens else []), Piece(last.tokens[-1:])]


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
