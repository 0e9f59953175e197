"""Ways to run a job on the engine, and texts to make jobs of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shoal.core.protocols import Completion, Request
from shoal.engine.batch.planned import Planned
from shoal.engine.local import LocalEngine
from shoal.engine.policies import ArrivalOrder, LongestPrefix, Policy
from shoal.engine.scheduler import Meter
from shoal.models.loading import Model

Answers = list[Completion]

SOURCES = Path(__file__).parents[2] / "examples" / "documents"


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to run a job on the engine."""

    policy: Callable[[], Policy]
    sharing: bool = True


ARMS: Mapping[str, Arm] = {
    "no sharing": Arm(ArrivalOrder, sharing=False),
    "LRU radix, first come": Arm(ArrivalOrder),
    "LRU radix, longest prefix": Arm(LongestPrefix),
    "planned, single level": Arm(lambda: Planned(level="single")),
    "planned, multi-level": Arm(Planned),
}
NONE, LRU, LPM, SINGLE, MULTI = ARMS


def texts(model: Model, count: int, length: int) -> Iterator[list[int]]:
    """Stretches of the example documents, each of so many tokens."""
    tokens: list[int] = []
    for path in sorted(SOURCES.rglob("*.md")):
        tokens += model.tokenizer.encode(path.read_text(encoding="utf-8"))
    assert len(tokens) >= count * length, "the example documents are long enough"
    for place in range(count):
        yield tokens[place * length : (place + 1) * length]


def answered(
    model: Model, arm: Arm, requests: Sequence[Request], slots: int
) -> tuple[Answers, Meter]:
    """Run a job to its end in a fresh engine whose cache holds ``slots`` tokens."""

    async def work() -> tuple[Answers, Meter]:
        config = model.config
        token_bytes = 2 * config.layers * config.kv_heads * config.head_dim * model.dtype.itemsize
        engine = LocalEngine(model, sharing=arm.sharing, kv_bytes=slots * token_bytes)
        engine.scheduler.waiting = arm.policy()
        answers = await engine.generate(requests)
        meter = engine.scheduler.meter
        planned = meter.prefill_tokens + meter.repeated_tokens + meter.decode_tokens
        assert engine.counters.tokens_computed == planned, "counted at the first layer"
        await engine.close()
        return answers, meter

    return asyncio.run(work())


def rows_a_step(meter: Meter) -> float:
    """Rows of a forward pass, on average."""
    return sum(rows * count for rows, count in meter.steps.items()) / meter.steps.total()
