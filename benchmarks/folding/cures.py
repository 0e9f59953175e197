"""Plans under the same cure, and what is left of the difference to the original."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from folding.beds import Bed, Losses, both, perplexity
from shoal.core.claims import Bench
from shoal.core.stats import Interval, bootstrap, difference_interval
from shoal.models.decoder import Decoder
from shoal.models.depth.cure import Cure, CureOptions
from shoal.models.depth.plan import DepthPlan
from shoal.models.depth.teacher import Teacher


@dataclass(frozen=True, slots=True, eq=False)
class Treated:
    """A plan with the held-out losses of its rows before and after the cure."""

    plan: DepthPlan
    before: Mapping[str, Losses]
    after: Mapping[str, Losses]
    decoder: Decoder
    cure: Cure

    def metrics(self) -> dict[str, float]:
        """Perplexities by domain, before the cure and after it."""
        told = {}
        for when, losses in (("raw", self.before), ("cured", self.after)):
            for domain, rows in losses.items():
                told[f"{when}_perplexity_{domain}"] = perplexity(rows)
        return told


@dataclass(slots=True)
class Ward:
    """Cures plans of one bed, each only once, with lessons that are computed once for all."""

    bed: Bed
    options: CureOptions
    blocks: frozenset[int]
    _teacher: Teacher | None = None
    _known: dict[tuple[str, float, float], Treated] = field(default_factory=dict)

    def treat(
        self, plan: DepthPlan, *, distil: float | None = None, tail: float | None = None
    ) -> Treated:
        """The plan, cured; ``distil`` and ``tail`` in place of the options' own."""
        options = replace(
            self.options,
            distil=self.options.distil if distil is None else distil,
            tail=self.options.tail if tail is None else tail,
        )
        key = (plan.key, options.distil, options.tail)
        if key not in self._known:
            if self._teacher is None:
                self._teacher = Teacher(
                    self.bed.decoder, self.blocks, temperature=options.temperature, keep=True
                )
            cure = Cure(self.bed.decoder, plan, self.bed.fitted_NS, options, self._teacher)
            cure.run()
            after = self.bed.losses(cure.decoder)
            before = self.bed.plan_losses(plan)
            self._known[key] = Treated(plan, before, after, cure.decoder, cure)
        return self._known[key]


def tail_of(plans: Mapping[str, DepthPlan], blocks: int = 3) -> frozenset[int]:
    """The blocks of the original that any of these plans is compared with."""
    return frozenset(i for plan in plans.values() for i in plan.kept[-blocks:])


def difference(one: Mapping[str, Losses], other: Mapping[str, Losses], bench: Bench) -> Interval:
    """Nats a token of one above the other, paired by row, over both domains."""
    return difference_interval(both(one), both(other), paired=True, seed=bench.seed)


def recovered(treated: Treated, original: Mapping[str, Losses], bench: Bench) -> Interval:
    """Which part of the loss that the plan added the cure took away."""
    gained = both(treated.before) - both(treated.after)
    lost = both(treated.before) - both(original)
    rows = np.stack([gained, lost], axis=1)
    return bootstrap([rows], lambda m: m[..., 0] / m[..., 1], seed=bench.seed)
