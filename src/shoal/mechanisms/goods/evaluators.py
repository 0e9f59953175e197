"""What a text contributes: whether its answer is right, and how near it brings a reader to it.

An evaluator is anchored to the known answer. The graded one adds how likely the right answer is to
a reader of the text, so that work which ends in no answer counts for something; the reader may be
the model that wrote it, as it judges nothing but what the text makes likely.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from shoal.core.protocols import Engine, Segment
from shoal.mechanisms.goods.tasks import Task, is_right

Evaluator = Callable[[Sequence[tuple[Task, str]]], Awaitable[list[float]]]
"""Scores of texts, each in [0.1, 1]."""

RIGHT, WRONG = 0.9, 0.1
LOW, HIGH = 0.1, 1.0


async def by_answer(said: Sequence[tuple[Task, str]]) -> list[float]:
    """0.9 for a right answer, 0.1 for any other and for none."""
    return [RIGHT if is_right(text, task) else WRONG for task, text in said]


@dataclass(slots=True)
class Graded:
    """A right answer for ``1 - share`` of the score, its likelihood to a reader for the rest.

    The likelihood is per token, the geometric mean over the tokens of " {answer}" after the
    question, the text without its answer line, and "Answer:".
    """

    engine: Engine
    share: float = 0.3
    _known: dict[tuple[str, str, str], float] = field(default_factory=dict)

    async def __call__(self, said: Sequence[tuple[Task, str]]) -> list[float]:
        """Scores in order; a text that was scored before is not read again."""
        new = {
            (task.question, task.answer, text): None
            for task, text in said
            if (task.question, task.answer, text) not in self._known
        }
        found = await asyncio.gather(*(self._likelihood(*one) for one in new))
        self._known.update(zip(new, found, strict=True))
        exact = await by_answer(said)
        graded = [
            (1 - self.share) * right + self.share * self._known[task.question, task.answer, text]
            for right, (task, text) in zip(exact, said, strict=True)
        ]
        return [min(max(score, LOW), HIGH) for score in graded]

    async def _likelihood(self, question: str, answer: str, text: str) -> float:
        work = text.rpartition("Answer:")[0] or text
        prefix = (Segment(f"Question: {question}\nSteps: {work.strip()}\nAnswer:"),)
        (score,) = await self.engine.score(prefix, [f" {answer}"])
        return math.exp(score.logprob / max(len(score.token_logprobs), 1))
