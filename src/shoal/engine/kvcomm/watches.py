"""What is read off a request while its cache is there: a distribution, or anchors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import torch

from shoal.core.errors import EngineError
from shoal.engine.generation import Generation
from shoal.engine.grammar import Constraint
from shoal.engine.kvcomm.anchors import Anchor, difference
from shoal.engine.kvcomm.policy import Bases, Known
from shoal.engine.kvcomm.templates import Template
from shoal.engine.local import LocalEngine


class Glance:
    """Keeps the distribution of the first token and, of a choice, how near its tokens were.

    ``margin`` is the smallest difference of log-probabilities between the first and the second
    token that the grammar allowed. Where it falls below ``sure`` the answer is given up, and
    ``unsure`` says so.
    """

    def __init__(self, engine: LocalEngine, *, sure: float | None = None) -> None:
        self._engine = engine
        self._sure = sure
        self.logprobs: torch.Tensor | None = None
        self.margin = math.inf
        self.unsure = False

    def prefilled(self, job: Generation) -> None:
        if self.logprobs is not None:
            return  # an answer that lost its memory and begins again
        self.logprobs = torch.log_softmax(self._logits(job), -1)
        if self._sure is not None and job.constraint is not None:
            job.constraint = _Weighed(job.constraint, lambda mask_V: self._weigh(job, mask_V))

    def ending(self, job: Generation) -> None:
        """Nothing more is wanted."""

    def _logits(self, job: Generation) -> torch.Tensor:
        assert job.end is not None and job.end.last_hidden is not None
        return self._engine.model.decoder.logits(job.end.last_hidden[None], precise=True)[0]

    def _weigh(self, job: Generation, mask_V: torch.Tensor) -> None:
        assert self._sure is not None
        ids = mask_V.nonzero()[:, 0]
        if len(ids) > 1:
            first, second = self._logits(job)[ids].topk(2).values.tolist()
            self.margin = min(self.margin, first - second)
        if self.margin < self._sure:
            self.unsure = True
            raise EngineError("Two answers are too near to each other to trust a moved cache.")


class _Weighed(Constraint):
    """A grammar that shows what it allows before the next token is chosen."""

    def __init__(self, inner: Constraint, weigh: Callable[[torch.Tensor], None]) -> None:
        self._inner = inner
        self._weigh = weigh

    def allowed(self) -> torch.Tensor:
        mask_V = self._inner.allowed()
        self._weigh(mask_V)
        return mask_V

    def accept(self, token: int) -> None:
        self._inner.accept(token)

    @property
    def finished(self) -> bool:
        return self._inner.finished


class Learn:
    """Makes anchors of an exact prompt; they are added when no call is under way.

    A ``glance`` sees the prompt as well.
    """

    def __init__(
        self,
        engine: LocalEngine,
        template: Template,
        known: Known,
        bases: Bases,
        commits: list[Callable[[], None]],
        glance: Glance | None = None,
    ) -> None:
        self._engine = engine
        self._template = template
        self._known = known
        self._bases = bases
        self._commits = commits
        self._glance = glance

    def prefilled(self, job: Generation) -> None:
        if job.preempted:
            return  # learned when the prompt was complete for the first time
        if self._glance is not None:
            self._glance.prefilled(job)
        first, *rest = (len(part.tokens) for part in self._template.parts)
        real = self._engine.cut(job, first, job.prompt_tokens)
        ends = list(itertools.accumulate(rest, initial=0))
        for index, (base, pool) in enumerate(zip(self._bases, self._known.pools, strict=True)):
            if base is None:
                continue
            start, middle, end = ends[2 * index : 2 * index + 3]
            text, after = real.slice(start, middle), real.slice(middle, end)
            kept = replace(base, keys_LTKd=base.keys_LTKd.to(base.values_LTKd.dtype))
            anchor = Anchor(
                kept, difference(text, base), difference(after, self._known.fixed[index])
            )
            self._commits.append(lambda pool=pool, anchor=anchor: pool.add(anchor))  # type: ignore[misc]

    def ending(self, job: Generation) -> None:
        """Nothing more is wanted."""
