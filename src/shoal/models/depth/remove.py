"""Which blocks to remove by measured loss: the plain search that rankings are held against.

Every block is left out alone, the one whose absence costs least is removed, and the best of the
rest are measured again without it. Unlike gates it sees what is really lost, and unlike a score of
single blocks it sees how they depend on each other, but only one step ahead.
"""

from __future__ import annotations

from collections.abc import Collection

import torch

from shoal.models.decoder import Decoder
from shoal.models.depth.fold import SHORTLIST
from shoal.models.depth.plan import DepthPlan
from shoal.models.depth.trials import OnTrial, trial_losses


def remove_measured(
    decoder: Decoder,
    count: int,
    ids_NS: torch.Tensor,
    *,
    protect: Collection[int] = (),
    shortlist: int = SHORTLIST,
    on_trial: OnTrial | None = None,
) -> list[int]:
    """The blocks to remove, in order. The first block always stays."""
    plan = DepthPlan.whole(decoder.config.layers)
    free = [index for index in range(1, plan.layers) if index not in protect]
    removed: list[int] = []
    for _ in range(count):
        losses = trial_losses(
            decoder, plan, [plan.without([index]) for index in free], ids_NS, on_trial=on_trial
        )
        order = [index for _, index in sorted(zip(losses, free, strict=True))]
        if not removed:
            ranked = order
        removed.append(order[0])
        plan = plan.without(order[:1])
        left = [index for index in ranked if index not in removed]
        free = [*order[1:], *(index for index in left if index not in order)][:shortlist]
    return removed
