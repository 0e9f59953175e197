"""What a job will take, said before it runs: tokens, memory and time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from shoal.core.protocols import Engine, Request, Sampling, Segment
from shoal.core.rng import generator
from shoal.engine.batch.jobs import Scored, Task
from shoal.engine.batch.order import Order
from shoal.engine.batch.plan import Group, Level, Plan, plan
from shoal.engine.batch.planned import Planned
from shoal.engine.batch.runner import OnProgress, prepare, scheduled_by
from shoal.engine.local import LocalEngine
from shoal.engine.upstream_format import BYTES_PER_TOKEN, text_of

PROBE_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Speed:
    """A step's cost is linear in its rows: ``step`` seconds and ``row`` seconds for each."""

    step: float
    row: float


@dataclass(frozen=True, slots=True)
class Outlook:
    """A job's plan in numbers. Answers count with their limits; times and, where ``exact`` is
    false, tokens are estimates."""

    lines: int
    prompts: int
    prompt_tokens: int
    computed_tokens: int
    answer_tokens: int
    saving: float
    groups: tuple[Group, ...]
    planner_seconds: float
    exact: bool
    failing: int = 0
    peak_kv_bytes: int | None = None
    seconds: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def sentences(self) -> list[str]:
        """For people."""
        about = "" if self.exact else "about "
        found = [
            f"{self.lines:,} lines ask for {about}{self.prompt_tokens:,} prompt tokens; "
            f"{about}{self.computed_tokens:,} would be computed ({self.saving:.1f} % saved).",
            f"Answers have at most {self.answer_tokens:,} tokens. "
            f"Planned in {self.planner_seconds:.2f} s.",
        ]
        if self.failing:
            found.append(f"{self.failing:,} lines cannot be answered and would fail alone.")
        if self.peak_kv_bytes is not None:
            found.append(f"KV cache at most: {self.peak_kv_bytes / 2**20:.1f} MiB.")
        if self.seconds is not None:
            found.append(f"Time, if answers go to their limits: about {self.seconds:,.0f} s.")
        return found


async def look_ahead(
    tasks: Sequence[Task],
    engine: Engine,
    *,
    level: Level = "multi",
    order: Order = "ratio",
    on_progress: OnProgress = lambda what, done, total: None,
) -> Outlook:
    """Plan a job and run nothing of it (a local engine is timed on two small probes)."""
    if not isinstance(engine, LocalEngine):
        return await asyncio.to_thread(lambda: _by_text(tasks, level, order))
    prepared = await prepare(tasks, engine, on_progress=on_progress)
    found = await asyncio.to_thread(lambda: prepared.plan(level=level, order=order, engine=engine))
    speed = await measure(engine)
    return _outlook(
        tasks,
        found,
        answer_tokens=sum(prepared.answers),
        failing=len(tasks) - len(set(prepared.owner)),
        peak_kv_bytes=found.forecast.peak_tokens * engine.token_bytes,
        seconds=speed.step * found.forecast.steps + speed.row * found.forecast.rows,
    )


def _outlook(
    tasks: Sequence[Task], found: Plan, *, exact: bool = True, per_token: float = 1.0, **more: Any
) -> Outlook:
    """The numbers of a plan whose tokens are tokens, or pieces of which ``per_token`` make one."""

    def tokens(count: int) -> int:
        return round(count / per_token)

    groups = (
        replace(
            group, tokens=tokens(group.tokens), own=tokens(group.own), ratio=group.ratio * per_token
        )
        for group in found.groups
    )
    return Outlook(
        lines=len(tasks),
        prompts=len(found.order_P),
        prompt_tokens=tokens(found.logical_tokens),
        computed_tokens=tokens(found.processed_tokens),
        saving=found.saving,
        groups=tuple(groups),
        planner_seconds=found.planner_seconds,
        exact=exact,
        **more,
    )


def _by_text(tasks: Sequence[Task], level: Level, order: Order) -> Outlook:
    """By bytes of text, as the tokens of a remote model are unknown."""
    texts: list[bytes] = []
    scopes: list[str] = []
    answers: list[int] = []
    for task in tasks:
        if isinstance(task.work, Scored):
            texts.append(text_of(Request(task.work.prefix)))
            scopes.append(task.work.salt)
            answers.append(0)
        for request in task.requests:
            texts.append(text_of(request))
            scopes.append(request.salt)
            answers.append(request.sampling.max_tokens)
    found = plan(
        [np.frombuffer(text, dtype=np.uint8) for text in texts],
        answers,
        scopes=scopes,
        level=level,
        order=order,
        capacity=1 << 40,
    )
    return _outlook(
        tasks, found, answer_tokens=sum(answers), exact=False, per_token=BYTES_PER_TOKEN
    )


async def measure(engine: LocalEngine) -> Speed:
    """Time one prefill and some single steps on random tokens, which share nothing."""
    draw = generator("probe", time.time_ns())
    vocabulary = engine.model.config.vocab

    async def seconds(tokens: int, new: int) -> float:
        prompt = (Segment(tokens=tuple(draw.integers(0, vocabulary, tokens).tolist())),)
        request = Request(prompt, Sampling(max_tokens=new, ignore_eos=True), salt="probe")
        begun = time.perf_counter()
        await engine.generate([request])
        return time.perf_counter() - begun

    async with scheduled_by(Planned(), engine):  # which keeps nothing of the probes
        await seconds(8, 1)
        single = await seconds(1, 9) / 9
        many = await seconds(PROBE_TOKENS, 1)
    row = max(0.0, many - single) / (PROBE_TOKENS - 1)
    return Speed(max(0.0, single - row), row)
