"""A model for claims in tests: it reads the sum it is asked for, and errs now and then."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.core.protocols import Completion, OnDelta, Request, Segment
from shoal.core.records import Usage
from shoal.core.rng import uniform
from shoal.engine.scripted import ScriptedEngine


@dataclass(slots=True)
class SolvingModel(ScriptedEngine):
    """Answers the last "Question: a + b + c", in steps where it is asked for them."""

    right: float = 0.7

    async def generate(
        self, requests: Sequence[Request], on_delta: OnDelta | None = None
    ) -> list[Completion]:
        """One answer a request, cut at its limit."""
        return [self._solve(request) for request in requests]

    def _solve(self, request: Request) -> Completion:
        text = "".join(part.text for part in request.prompt if isinstance(part, Segment))
        question = text.rpartition("Question: ")[2].partition("\n")[0]
        a, b, c = (int(term) for term in re.findall(r"\d+", question))
        err = uniform(question, request.sampling) > self.right
        steps = f" {a} + {b} = {a + b}, {a + b} + {c} = {a + b + c}. "
        said = f"{steps if text.endswith('Steps:') else ''}\nAnswer: {a + b + c + err}"
        kept = said.split(" ")[: request.sampling.max_tokens]
        usage = Usage(prompt_tokens=len(text.split()), decoded_tokens=len(kept))
        return Completion(" ".join(kept), usage=usage)
