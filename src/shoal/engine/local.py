"""The local engine: a model in this process and one cache that all its requests share.

Here requests become jobs and what jobs found becomes answers; :mod:`shoal.engine.actor` runs them
on the compute thread.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from shoal.core.errors import ContextOverflow, EngineError, ShoalError
from shoal.core.protocols import (
    Completion,
    Delta,
    EngineInfo,
    EngineLoad,
    ErrorKind,
    OnDelta,
    Prompt,
    Request,
    Sampling,
    Score,
)
from shoal.core.records import ToolSpec
from shoal.engine.actor import Actor, call_on, resolve
from shoal.engine.adapters import EngineAdapters, Resident
from shoal.engine.compute import compute, dismiss
from shoal.engine.generation import Composition, Generation, HiddenStates, Piece, Reuse
from shoal.engine.intake import Intake
from shoal.engine.pool import KVPool
from shoal.engine.scheduler import Job, Scheduler
from shoal.engine.segments import KVSegment, cut
from shoal.engine.step import Counters, Stepper
from shoal.engine.tree import PrefixTree
from shoal.engine.warm import warm
from shoal.models.depth.arrange import planned
from shoal.models.depth.plan import DepthPlan
from shoal.models.loading import Model, load

KV_BYTES = 1 << 30
_SCORE_ROWS = 64


def _threads() -> int:
    """As many as ``OMP_NUM_THREADS`` says, or one a core."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdigit() and int(said) else os.cpu_count() or 1


class LocalEngine:
    """Implements :class:`shoal.core.protocols.Engine` for one loaded model.

    With ``sharing`` off every request computes its whole prompt, as a baseline. ``kv_bytes``
    bounds the KV cache; requests beyond it wait. ``adapters`` are what requests can ask for by name
    (:class:`shoal.engine.adapters.EngineAdapters`); without any, every request goes through the
    model itself. ``reuse`` serves requests that allow approximate
    reuse (:func:`shoal.engine.kvshare.sharing.attach`); without it they are answered exactly.
    """

    reuse: Reuse | None = None

    def __init__(
        self,
        model: Model,
        *,
        sharing: bool = True,
        kv_bytes: int = KV_BYTES,
        adapters: EngineAdapters | None = None,
    ) -> None:
        dismiss()
        compute.call(lambda: warm(model.decoder))
        config = model.config
        self.model = model
        self.adapters = EngineAdapters(model.decoder) if adapters is None else adapters
        self._pool = KVPool(
            layers=config.layers,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            dtype=model.dtype,
            max_bytes=kv_bytes,
        )
        self._scheduler = Scheduler(PrefixTree(self._pool.slots), sharing=sharing)
        self._stepper = Stepper(model, self._pool, self._scheduler, self.adapters)
        self._packed = model.decoder.kernels == "packed"
        self._how = "packed weights and products of 8 bits" if self._packed else "exact"
        self._intake = Intake(model, slots=self._pool.slots.capacity, sharing=sharing)
        self._actor = Actor(self._stepper)

    @classmethod
    def open(
        cls,
        name: str = "smollm2-135m",
        *,
        dtype: str = "bf16",
        sharing: bool = True,
        kv_bytes: int = KV_BYTES,
        threads: int | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> LocalEngine:
        """Load a model by name or path and open an engine on it; see :func:`load`.

        The first time on a machine what steps are made of is compiled, too.
        """

        def build() -> LocalEngine:
            torch.set_num_threads(threads or _threads())
            model = load(name, dtype=dtype, progress=progress)
            warm(model.decoder, progress)
            return cls(model, sharing=sharing, kv_bytes=kv_bytes)

        return compute.call(build)

    def unshared(self) -> LocalEngine:
        """An engine on the same weights that shares nothing: the baseline to compare with."""
        kv_bytes = self._pool.slots.capacity * self._pool.token_bytes
        return LocalEngine(self.model, sharing=False, kv_bytes=kv_bytes, adapters=self.adapters)

    def planned(self, plan: DepthPlan) -> LocalEngine:
        """An engine that executes a depth plan over the same weights, with a cache of its own.

        A token's cache has a place for each executed block, so blocks that share weights do not
        share keys and values. Raises :class:`ConfigError` for a plan of another base.
        """
        kv_bytes = self._pool.slots.capacity * self._pool.token_bytes
        return LocalEngine(
            planned(self.model, plan), sharing=self._scheduler.sharing, kv_bytes=kv_bytes
        )

    @property
    def adapter_names(self) -> tuple[str, ...]:
        """See :class:`shoal.core.protocols.Adaptable`."""
        return self.adapters.names

    @property
    def info(self) -> EngineInfo:
        """What runs here."""
        return EngineInfo(
            model=self.model.name,
            kind="local",
            context_tokens=self.model.config.context,
            dtype=str(self.model.dtype).removeprefix("torch.") + self._packed * " (packed)",
            sharing=self._scheduler.sharing,
            knows_tools=self.model.chat.knows_tools,
        )

    @property
    def load(self) -> EngineLoad:
        """Requests under way and what the cache holds; from any thread, and cheap."""
        return EngineLoad(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            used_bytes=self._pool.used_bytes,
            pinned_bytes=self._scheduler.tree.pinned * self._pool.token_bytes,
            capacity_bytes=self._pool.slots.capacity * self._pool.token_bytes,
            preemptions=self._scheduler.preemptions,
        )

    @property
    def scheduler(self) -> Scheduler:
        """What plans the steps; to be touched on the compute thread, or while nothing runs."""
        return self._scheduler

    @property
    def counters(self) -> Counters:
        """Totals since the engine was opened."""
        return self._stepper.counters

    @property
    def kv_bytes_used(self) -> int:
        """Bytes of KV cache in use, kept prefixes included."""
        return self._pool.used_bytes

    # -- the protocol ---------------------------------------------------------------------

    async def generate(
        self, requests: Sequence[Request], on_delta: OnDelta | None = None
    ) -> list[Completion]:
        """See :meth:`shoal.core.protocols.Engine.generate`."""
        return await self._answer([Composition(request, ()) for request in requests], on_delta)

    async def compose(
        self, compositions: Sequence[Composition], on_delta: OnDelta | None = None
    ) -> list[Completion]:
        """Answer requests whose prompts are put together from pieces, some of them moved.

        A completion says in ``how`` and ``usage`` what was moved. One that cannot be composed (a
        piece of another model, an engine without sharing) fails alone.
        """
        return await self._answer(compositions, on_delta)

    async def capture(self, tokens: Sequence[int], start: int = 0, salt: str = "") -> KVSegment:
        """Keys and values of ``tokens[start:]`` in the context of those before; computed once.

        Raises :class:`EngineError` where the tokens do not fit.
        """
        cutter = _Cutter(self, start)
        request = Request((), Sampling(max_tokens=0), salt=salt)
        whole = (Piece(tuple(tokens)),)
        (done,) = await self.compose([Composition(request, whole, watch=cutter)])
        if cutter.segment is None:
            raise EngineError(done.error or "The tokens could not be computed.")
        return cutter.segment

    def cut(self, job: Generation, start: int, stop: int) -> KVSegment:
        """A copy of part of a job's cache, for a watch; on the compute thread."""
        assert job.end is not None
        path = job.end.path()
        slots = [slot for node in path for slot in range(node.start, node.start + node.filled)]
        return cut(
            self._pool,
            self.model.decoder,
            slots[start:stop],
            job.tokens[start:stop],
            start,
            self.model.fingerprint,
        )

    async def _answer(
        self, compositions: Sequence[Composition], on_delta: OnDelta | None
    ) -> list[Completion]:
        loop = asyncio.get_running_loop()
        answers: list[asyncio.Future[Completion]] = [loop.create_future() for _ in compositions]
        jobs: list[Job] = []
        for index, (each, answer) in enumerate(zip(compositions, answers, strict=True)):
            try:
                jobs.append(self._generation(index, each, answer, on_delta, loop))
            except ShoalError as error:
                kind: ErrorKind | None = "context" if isinstance(error, ContextOverflow) else None
                answer.set_result(Completion("", finish="error", error=str(error), error_kind=kind))
        await self._actor.run(jobs, answers)
        return [answer.result() for answer in answers]

    async def score(
        self,
        prefix: Prompt,
        candidates: Sequence[str],
        salt: str = "",
        *,
        adapter: str | None = None,
    ) -> list[Score]:
        """See :meth:`shoal.core.protocols.Engine.score`; through an adapter where one is named."""
        resident = None if adapter is None else self.adapters.find(adapter)
        tokenizer = self.model.tokenizer
        prompt = self._intake.encode(prefix, salt=salt)
        if not prompt:
            raise EngineError("A score needs a prefix of at least one token.")
        endings = [tokenizer.encode(text, special=False, salt=salt) for text in candidates]
        # The last prefix token is computed with the candidates: its state scores their first.
        suffixes = [[prompt[-1], *ending[:-1]] for ending in endings]
        states = await self._hidden(prompt[:-1], suffixes, salt, resident)

        def scores() -> list[Score]:
            parts = zip(candidates, endings, states, strict=True)
            return [self._score(text, ending, rows) for text, ending, rows in parts]

        return await asyncio.wrap_future(compute.future(scores))

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Mean of the final hidden states, normalised; for retrieval use an embedding model."""
        suffixes = [self.model.tokenizer.encode(text, special=False) or [0] for text in texts]
        states = await self._hidden((), suffixes, "")
        mean = torch.stack([rows.float().mean(0) for rows in states])
        vectors: NDArray[np.float32] = torch.nn.functional.normalize(mean, dim=-1).numpy()
        return vectors

    def count_tokens(self, prompt: Prompt) -> int:
        """Exact count, chat template included."""
        return len(self._intake.encode(prompt))

    def encode(
        self, prompt: Prompt, salt: str = "", *, tools: tuple[ToolSpec, ...] = ()
    ) -> list[int]:
        """See :meth:`shoal.core.protocols.TokenCodec.encode`; ``tools`` are part of a prompt."""
        return self._intake.encode(prompt, tools=tools, salt=salt)

    @property
    def token_bytes(self) -> int:
        """Bytes of cache that a token takes."""
        return self._pool.token_bytes

    def decode(self, tokens: Sequence[int]) -> str:
        """See :meth:`shoal.core.protocols.TokenCodec.decode`."""
        self._intake.check_tokens(tokens)
        return self.model.tokenizer.decode(tokens)

    async def close(self) -> None:
        """Give up requests under way and refuse new ones."""
        await self._actor.close()

    # -- from requests to jobs ------------------------------------------------------------

    def _generation(
        self,
        index: int,
        composition: Composition,
        answer: asyncio.Future[Completion],
        on_delta: OnDelta | None,
        loop: asyncio.AbstractEventLoop,
    ) -> Generation:
        request, pieces = composition.request, composition.pieces
        if pieces:
            self._intake.check_pieces(pieces)
            tokens = [token for piece in pieces for token in piece.tokens]
            if len(pieces) == 1:  # the last piece is private: it need not be the whole prompt
                pieces = (Piece(tuple(tokens[:-1])), Piece(tuple(tokens[-1:])))
        else:
            tokens = self._intake.encode(request.prompt, tools=request.tools, salt=request.salt)
        if not tokens:
            raise EngineError("The prompt is empty: give at least one token.")
        self._intake.check_tokens(tokens)
        resident = None if request.adapter is None else self.adapters.find(request.adapter)
        if resident is not None:
            if any(piece.segment is not None for piece in pieces):
                raise EngineError(
                    "Keys and values that were computed elsewhere are not the adapter's: send the "
                    f"prompt without moved pieces, or without the adapter {request.adapter!r}."
                )
            request = replace(request, salt=resident.scope(request.salt))
        room = self._intake.room(len(tokens))

        def on_text(piece: str, new: tuple[int, ...]) -> None:
            if on_delta is not None:
                call_on(loop, lambda: on_delta(Delta(index, piece, new)))

        job = Generation(
            request=request,
            prompt_tokens=len(tokens),
            tokens=tokens,
            max_new=min(request.sampling.max_tokens, room),
            stream=self.model.tokenizer.stream(),
            eos_ids=self.model.tokenizer.eos_ids,
            constraint=self._intake.constraint(request.grammar),
            on_text=on_text,
            on_done=lambda completion: call_on(
                loop, lambda: resolve(answer, self._told(completion))
            ),
            pieces=pieces,
            repair=composition.repair,
            watch=composition.watch,
            keep_states=composition.keep_states,
            adapter=None if resident is None else resident.adapter,
        )
        if self.reuse is not None and request.reuse != "exact" and not (pieces or resident):
            self.reuse.welcome(job)
        return job

    def _told(self, completion: Completion) -> Completion:
        """The completion with how it was computed."""
        usage, how = completion.usage, self._how
        if usage.approx_tokens or usage.repaired_tokens:
            moved = usage.approx_tokens + usage.repaired_tokens
            how = f"moved {moved} of {usage.prompt_tokens} prompt tokens"
            if usage.repaired_tokens:
                how += f", {usage.repaired_tokens} of them computed again"
        return replace(completion, how=how)

    async def _hidden(
        self,
        prefix: Sequence[int],
        suffixes: Sequence[Sequence[int]],
        salt: str,
        resident: Resident | None = None,
    ) -> list[torch.Tensor]:
        if not suffixes:
            return []
        for suffix in suffixes:
            self._intake.room(len(prefix) + len(suffix) - 1)
        if (need := len(prefix) + sum(map(len, suffixes))) > self._pool.slots.capacity:
            raise EngineError(
                f"Scoring {len(suffixes)} texts at once needs {need} cached tokens, but the KV "
                f"cache holds {self._pool.slots.capacity}: score fewer at a time."
            )
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[torch.Tensor]] = loop.create_future()
        job = HiddenStates(
            prefix,
            suffixes,
            salt if resident is None else resident.scope(salt),
            lambda states: call_on(loop, lambda: resolve(answer, states)),
            None if resident is None else resident.adapter,
        )
        await self._actor.run([job], [answer])
        return answer.result()

    @torch.inference_mode()
    def _score(self, text: str, ending: list[int], rows_TD: torch.Tensor) -> Score:
        parts: list[float] = []
        for first in range(0, len(ending), _SCORE_ROWS):
            rows = rows_TD[first : first + _SCORE_ROWS]
            logits = self.model.decoder.logits(rows, precise=True)
            chosen = torch.tensor(ending[first : first + _SCORE_ROWS])[:, None]
            logprobs = torch.log_softmax(logits[: len(chosen)], -1).gather(1, chosen)[:, 0]
            parts += logprobs.tolist()
        return Score(text, sum(parts), tuple(parts))


class _Cutter:
    """Cuts out the end of a prompt as soon as it is there."""

    def __init__(self, engine: LocalEngine, start: int) -> None:
        self._engine = engine
        self._start = start
        self.segment: KVSegment | None = None

    def prefilled(self, job: Generation) -> None:
        self.segment = self._engine.cut(job, self._start, job.prompt_tokens)

    def ending(self, job: Generation) -> None:
        """Nothing more is wanted."""
