"""A team as an engine: one request is one run of the team, its answer the team's result.

So a team stands wherever a model does: behind the OpenAI-compatible server as ``team:NAME``, or as
the model of a member of another team.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.agents.library import load_team
from shoal.agents.outside import nobody
from shoal.agents.scheduler import run
from shoal.agents.team import Team
from shoal.core.errors import EngineError, ShoalError
from shoal.core.log import EventLog
from shoal.core.protocols import (
    Completion,
    Delta,
    Engine,
    EngineInfo,
    OnDelta,
    Prompt,
    Request,
    Score,
    Segment,
)
from shoal.core.records import Finish, Message
from shoal.engine.open import open_engine

PREFIX = "team:"
"""What the names of such models begin with."""
DEFAULT_MODEL = "smollm2-135m"
"""What a team runs on where no model is named."""


class TeamEngine:
    """Implements :class:`shoal.core.protocols.Engine` over a team on another engine.

    The last user message is the task and all before it the material. Usage is the sum over all
    turns, and an answer longer than asked for is cut at a word. A request that wants a grammar,
    tools or log-probabilities fails alone, as a team cannot promise them. Scores, embeddings and
    token counts are the engine's own.

    logs  opens the log of one request's run; in memory where left out
    """

    def __init__(
        self, team: Team, engine: Engine, *, logs: Callable[[Request], EventLog] | None = None
    ) -> None:
        self.team = team
        self.engine = engine
        self._logs = logs or (lambda request: EventLog())

    @property
    def info(self) -> EngineInfo:
        """The engine's, under the team's name."""
        info = self.engine.info
        details = {"team": self.team.name, "model": info.model}
        return EngineInfo(
            f"{PREFIX}{self.team.name}",
            info.kind,
            info.context_tokens,
            info.dtype,
            info.sharing,
            info.exact_counts,
            details,
        )

    async def generate(
        self, requests: Sequence[Request], on_delta: OnDelta | None = None
    ) -> list[Completion]:
        """See :meth:`shoal.core.protocols.Engine.generate`; the runs share the engine's cache."""
        completions = await asyncio.gather(*(self._answer(request) for request in requests))
        if on_delta is not None:
            for index, completion in enumerate(completions):
                if completion.text:
                    on_delta(Delta(index, completion.text))
        return list(completions)

    async def _answer(self, request: Request) -> Completion:
        refused = _refusal(request)
        if refused is not None:
            return Completion("", finish="error", error=refused)
        seed = request.sampling.seed
        try:
            task, material = _task_and_material(request.prompt)
            with self._logs(request) as log:
                result = await run(
                    self.team, task, material, engine=self.engine, log=log, seed=seed, ask=nobody
                )
        except ShoalError as error:
            return Completion("", finish="error", error=str(error))
        usage = result.episode.usage
        if result.result is None:
            why = f"Team {self.team.name!r} found no result: {result.why}."
            return Completion("", finish="error", usage=usage, error=why)
        text, cut = self._cut(result.result, request.sampling.max_tokens)
        finish: Finish = "length" if cut else "stop"
        if result.outcome == "budget_exhausted":
            finish = "budget"
        ways = [step.how for step in result.episode.steps if step.how != "exact"]
        how = ways[0] if ways else "exact"
        return Completion(text, finish=finish, usage=usage, how=how)

    def _cut(self, text: str, most: int) -> tuple[str, bool]:
        """The longest beginning of a text, up to the end of a word, within so many tokens."""

        def fits(end: int) -> bool:
            return self.engine.count_tokens((Segment(text[:end]),)) <= most

        if fits(len(text)):
            return text, False
        ends = [at for at in range(len(text)) if text[at].isspace()]
        low, high = 0, len(ends)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if fits(ends[middle]) else (low, middle)
        return text[: ends[low - 1]] if low else "", True

    async def score(self, prefix: Prompt, candidates: Sequence[str], salt: str = "") -> list[Score]:
        """See :meth:`shoal.core.protocols.Engine.score`."""
        return await self.engine.score(prefix, candidates, salt)

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See :meth:`shoal.core.protocols.Engine.embed`."""
        return await self.engine.embed(texts)

    def count_tokens(self, prompt: Prompt) -> int:
        """See :meth:`shoal.core.protocols.Engine.count_tokens`."""
        return self.engine.count_tokens(prompt)

    async def close(self) -> None:
        """Close the engine."""
        await self.engine.close()


def open_model_or_team(model: str, **options: Any) -> Engine:
    """As :func:`shoal.engine.open.open_engine`; ``team:NAME`` is a team on the usual model, and
    ``team:NAME@MODEL`` one on that model. NAME is a packaged team or the path of a file."""
    if not model.startswith(PREFIX):
        return open_engine(model, **options)
    name, _, inner = model.removeprefix(PREFIX).partition("@")
    team = load_team(name)
    return TeamEngine(team, open_engine(inner or DEFAULT_MODEL, **options))


def _refusal(request: Request) -> str | None:
    """Why a team cannot take this request."""
    wanted = (
        ("be held to a grammar", request.grammar is not None),
        ("call a client's tools", bool(request.tools)),
        ("tell log-probabilities", request.sampling.logprobs is not None),
    )
    for what, asked in wanted:
        if asked:
            return f"A team cannot {what}: leave that out, or ask a model."
    return None


def _task_and_material(prompt: Prompt) -> tuple[str, str]:
    """The last user message, and what stands before it."""
    parts = [p if isinstance(p, Message) else Message("user", p.text) for p in prompt]
    asked = [index for index, part in enumerate(parts) if part.role == "user"]
    if not asked or not parts[asked[-1]].content.strip():
        raise EngineError("A team needs a task: send a user message.")
    last = asked[-1]
    before = [part for index, part in enumerate(parts) if index != last]
    if len(before) == 1 and before[0].role == "system":
        return parts[last].content, before[0].content
    return parts[last].content, "\n\n".join(f"{part.role}: {part.content}" for part in before)
