"""What a model still knows: choices by likelihood, and the likelihood of worked answers."""

from __future__ import annotations

import asyncio

from shoal.core.claims.items import Choice, choices, items
from shoal.core.protocols import Segment
from shoal.core.stats import Interval, mean_interval, wilson_interval
from shoal.engine.local import LocalEngine


def accuracy(engine: LocalEngine, asked: list[Choice]) -> Interval:
    """Share of choices whose right ending has the highest likelihood a character."""

    async def right(item: Choice) -> bool:
        scores = await engine.score((Segment(item.beginning),), item.endings)
        rated = [score.logprob / len(score.text) for score in scores]
        return max(range(len(rated)), key=rated.__getitem__) == item.right

    async def all_of() -> list[bool]:
        return [await right(item) for item in asked]

    found = asyncio.run(all_of())
    return wilson_interval(sum(found), len(found))


def worked_loss(engine: LocalEngine, count: int, seed: int) -> Interval:
    """Nats a token of GSM8K's worked answers behind their questions."""

    async def loss(question: str, answer: str) -> float:
        (score,) = await engine.score((Segment(f"{question}\n"),), [answer])
        return -score.logprob / len(score.token_logprobs)

    async def all_of() -> list[float]:
        return [await loss(item.question, item.worked) for item in items("gsm8k")[:count]]

    return mean_interval(asyncio.run(all_of()), seed=seed)


def knowledge(engine: LocalEngine, count: int, seed: int) -> dict[str, Interval]:
    """All three, over the first ``count`` items of each."""
    return {
        "hellaswag_accuracy": accuracy(engine, choices("hellaswag")[:count]),
        "truthfulqa_accuracy": accuracy(engine, choices("truthfulqa")[:count]),
        "gsm8k_nats_a_token": worked_loss(engine, count, seed),
    }
