"""What is read off a request while its cache is there: a distribution, or anchors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from shoal.engine.generation import Generation
from shoal.engine.kvcomm.anchors import Anchor, difference
from shoal.engine.kvcomm.policy import Known
from shoal.engine.kvcomm.templates import Template
from shoal.engine.local import LocalEngine
from shoal.engine.segments import KVSegment


class Glance:
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


class Learn:
    """Makes anchors of an exact prompt; they are added when no call is under way."""

    def __init__(
        self,
        engine: LocalEngine,
        template: Template,
        known: Known,
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
