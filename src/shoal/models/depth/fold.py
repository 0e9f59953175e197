"""Which neighbouring blocks should share weights: a greedy search by measured loss.

FoldGPT (arXiv 2407.00928) shares parameters within groups of neighbouring blocks that are alike.
Likeness does not say which blocks may share: on SmolLM2-135M one bad pair among four raises
perplexity ten thousand times. So every merge of two neighbouring groups is tried alone, the one
with the least loss is made, and the best of the rest are measured again on top of it.

A trial computes only the blocks behind the merge: what goes into it is the same as before.

Shapes: N rows, S tokens of a row, T tokens of a batch, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch.nn import functional as F

from shoal.core.errors import ConfigError
from shoal.models.decoder import Decoder
from shoal.models.depth.arrange import arrange, compatible
from shoal.models.depth.plan import DepthPlan
from shoal.models.depth.stack import next_logits, next_targets, resume, run

Parents = Literal["first", "either"]


@dataclass(frozen=True, slots=True)
class Trial:
    """A merge of the group that begins at place ``left`` of the base with the one behind it.

    block  whose weights both then execute
    loss   nats a token on the calibration text
    """

    left: int
    right: int
    block: int
    loss: float


@dataclass(frozen=True, slots=True)
class Folding:
    """A plan, the merges that made it, and everything that was tried for each."""

    plan: DepthPlan
    merges: tuple[Trial, ...]
    tried: tuple[tuple[Trial, ...], ...]


@torch.inference_mode()
def fold(
    decoder: Decoder,
    plan: DepthPlan,
    count: int,
    ids_NS: torch.Tensor,
    *,
    parents: Parents = "first",
    shortlist: int = 6,
    batch: int = 2,
    on_trial: Callable[[int, int], None] | None = None,
) -> Folding:
    """Merge neighbours until ``count`` fewer blocks are stored.

    Only the first round measures every pair; later ones measure the ``shortlist`` best of them
    again, because what a merge costs depends on those already made. The first and the last block
    stay single. ``parents`` says whose weights a merged group takes: its first member's, or
    whichever measures better. Raises :class:`ConfigError` where there are not enough pairs.
    """
    merges: list[Trial] = []
    tried: list[tuple[Trial, ...]] = []
    known: dict[tuple[int, int], float] = {}  # places between groups -> last measured loss
    for done in range(count):
        candidates = _candidates(decoder, plan)
        if not candidates:
            raise ConfigError(
                f"Only {done} of {count} blocks can be folded away: no two neighbours that are "
                "left may share weights."
            )
        if known:
            fresh = [pair for pair in candidates if pair not in known]
            best = sorted((p for p in candidates if p in known), key=lambda p: known[p])
            candidates = fresh + best[: max(shortlist - len(fresh), 1)]
        trials = _measure(decoder, plan, candidates, ids_NS, parents, batch, on_trial)
        for trial in trials:
            pair = (trial.left, trial.right)
            known[pair] = trial.loss
        best_trial = min(trials, key=lambda trial: trial.loss)
        plan = plan.merged(_index(plan, best_trial.left), best_trial.block)
        known.pop((best_trial.left, best_trial.right), None)
        merges.append(best_trial)
        tried.append(tuple(sorted(trials, key=lambda trial: trial.loss)))
    return Folding(plan, tuple(merges), tuple(tried))


def _candidates(decoder: Decoder, plan: DepthPlan) -> list[tuple[int, int]]:
    """First places of all neighbouring groups that may be merged."""
    inner = plan.groups[1:-1]
    return [
        (left[0].origin, right[0].origin)
        for left, right in pairwise(inner)
        if compatible(decoder, left[0].block, right[0].block)
    ]


def _index(plan: DepthPlan, place: int) -> int:
    return next(i for i, group in enumerate(plan.groups) if group[0].origin == place)


def _measure(
    decoder: Decoder,
    plan: DepthPlan,
    candidates: Sequence[tuple[int, int]],
    ids_NS: torch.Tensor,
    parents: Parents,
    batch: int,
    on_trial: Callable[[int, int], None] | None,
) -> list[Trial]:
    """The loss of each merge, one batch of rows at a time for all of them."""
    options = []
    for left, right in candidates:
        first = _index(plan, left)
        blocks = [plan.groups[first][0].block]
        if parents == "either":
            blocks.append(plan.groups[first + 1][0].block)
        for block in blocks:
            merged = plan.merged(first, block)
            changed = next(
                i for i, (a, b) in enumerate(zip(plan.steps, merged.steps, strict=True)) if a != b
            )
            options.append((left, right, block, changed, arrange(decoder, merged)))
    current = arrange(decoder, plan)
    losses = torch.zeros(len(options), dtype=torch.float64)
    batches = ids_NS.split(batch)
    for number, ids_BS in enumerate(batches):
        shape_BS = (ids_BS.shape[0], ids_BS.shape[1])
        _, after = run(current, ids_BS, keep=range(len(plan.steps)))
        for index, (_, _, _, changed, trial) in enumerate(options):
            x_TD = resume(trial, after[changed - 1], shape_BS, changed)
            logits = next_logits(trial, x_TD, shape_BS)
            loss = F.cross_entropy(logits, next_targets(ids_BS))
            losses[index] += float(loss) * len(ids_BS)
            if on_trial:
                on_trial(number * len(options) + index + 1, len(batches) * len(options))
    return [
        Trial(left, right, block, float(loss) / len(ids_NS))
        for (left, right, block, _, _), loss in zip(options, losses, strict=True)
    ]
