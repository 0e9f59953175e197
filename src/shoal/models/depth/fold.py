"""Which neighbouring blocks should share weights: a greedy search by measured loss.

FoldGPT (arXiv 2407.00928) shares parameters within groups of neighbouring blocks that are alike.
Likeness does not say which blocks may share: on SmolLM2-135M one bad pair among four raises
perplexity ten thousand times. So every merge of two neighbouring groups is tried alone, the one
with the least loss is made, and the best of the rest are measured again on top of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch

from shoal.core.errors import ConfigError
from shoal.models.decoder import Decoder
from shoal.models.depth.arrange import compatible
from shoal.models.depth.plan import DepthPlan
from shoal.models.depth.trials import OnTrial, trial_losses

Parents = Literal["first", "either"]
SHORTLIST = 6
"""How many of the best trials are measured again in later rounds."""


@dataclass(frozen=True, slots=True)
class Merge:
    """The group that begins at place ``left`` of the base with the one that begins at ``right``.

    block  whose weights both then execute
    loss   nats a token on the calibration text
    """

    left: int
    right: int
    block: int
    loss: float


@dataclass(frozen=True, slots=True)
class Folding:
    """A plan, the merges that made it, and everything that was tried for each, best first."""

    plan: DepthPlan
    merges: tuple[Merge, ...]
    tried: tuple[tuple[Merge, ...], ...]


def fold(
    decoder: Decoder,
    plan: DepthPlan,
    count: int,
    ids_NS: torch.Tensor,
    *,
    parents: Parents = "first",
    shortlist: int = SHORTLIST,
    on_trial: OnTrial | None = None,
) -> Folding:
    """Merge neighbours until ``count`` fewer blocks are stored.

    Only the first round measures every pair; later ones measure the ``shortlist`` best of them
    again, because what a merge costs depends on those already made. The first and the last block
    stay single. ``parents`` says whose weights a merged group takes: its first member's, or
    whichever measures better. Raises :class:`ConfigError` where there are not enough pairs.
    """
    merges: list[Merge] = []
    tried: list[tuple[Merge, ...]] = []
    known: dict[tuple[int, int], float] = {}  # pairs of groups -> loss when last measured
    for done in range(count):
        pairs = _pairs(decoder, plan)
        if not pairs:
            raise ConfigError(
                f"Only {done} of {count} blocks can be folded away: no two neighbours that are "
                "left may share weights."
            )
        fresh = [pair for pair in pairs if pair not in known]
        best = sorted((pair for pair in pairs if pair in known), key=known.__getitem__)
        candidates = fresh + best[: max(shortlist - len(fresh), 1)] if known else pairs
        options = [
            (left, right, block, plan.merged(_index(plan, left), block))
            for left, right in candidates
            for block in _parents(plan, left, parents)
        ]
        losses = trial_losses(
            decoder, plan, [variant for *_, variant in options], ids_NS, on_trial=on_trial
        )
        trials = sorted(
            (Merge(left, right, block, loss)
             for (left, right, block, _), loss in zip(options, losses, strict=True)),
            key=lambda trial: trial.loss,
        )  # fmt: skip
        for trial in reversed(trials):
            known[trial.left, trial.right] = trial.loss
        made = trials[0]
        known.pop((made.left, made.right))
        plan = plan.merged(_index(plan, made.left), made.block)
        merges.append(made)
        tried.append(tuple(trials))
    return Folding(plan, tuple(merges), tuple(tried))


def _pairs(decoder: Decoder, plan: DepthPlan) -> list[tuple[int, int]]:
    """First places of all neighbouring groups that may be merged."""
    return [
        (left[0].origin, right[0].origin)
        for left, right in pairwise(plan.groups[1:-1])
        if compatible(decoder, left[0].block, right[0].block)
    ]


def _parents(plan: DepthPlan, left: int, parents: Parents) -> list[int]:
    first = _index(plan, left)
    blocks = [plan.groups[first][0].block, plan.groups[first + 1][0].block]
    return blocks if parents == "either" else blocks[:1]


def _index(plan: DepthPlan, place: int) -> int:
    return next(i for i, group in enumerate(plan.groups) if group[0].origin == place)
