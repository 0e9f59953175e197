"""What variants of a plan would lose, measured: each computes only what lies behind its change.

Shapes: N rows, S tokens of a row, T tokens of a batch, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest

import torch
from torch.nn import functional as F

from shoal.models.decoder import Decoder
from shoal.models.depth.arrange import arrange
from shoal.models.depth.plan import DepthPlan
from shoal.models.depth.stack import batches, next_logits, next_targets, resume, run

OnTrial = Callable[[int, int], None]
"""Called with the trials done and all there are."""


@torch.inference_mode()
def trial_losses(
    decoder: Decoder,
    plan: DepthPlan,
    variants: Sequence[DepthPlan],
    ids_NS: torch.Tensor,
    *,
    batch: int = 2,
    on_trial: OnTrial | None = None,
) -> list[float]:
    """Nats a token of every variant of ``plan``, which must begin with the same block as it.

    What goes into the first changed block is computed once a batch for all variants, and kept for
    that long: 4 T D bytes for each block of the plan.
    """
    changes = [_first_change(plan, variant) for variant in variants]
    assert all(changes), "the first block stays as it is"
    current = arrange(decoder, plan)
    changed = [arrange(decoder, variant) for variant in variants]
    total = [0.0] * len(variants)
    parts = batches(ids_NS, batch)
    for number, ids_BS in enumerate(parts):
        shape_BS = (ids_BS.shape[0], ids_BS.shape[1])
        _, after = run(current, ids_BS, keep=range(len(plan.steps)))
        for index, (trial, first) in enumerate(zip(changed, changes, strict=True)):
            x_TD = resume(trial, after[first - 1], shape_BS, first)
            logits = next_logits(trial, x_TD, shape_BS)
            total[index] += float(F.cross_entropy(logits, next_targets(ids_BS))) * len(ids_BS)
            if on_trial:
                on_trial(number * len(variants) + index + 1, len(parts) * len(variants))
    return [loss / len(ids_NS) for loss in total]


def _first_change(plan: DepthPlan, variant: DepthPlan) -> int:
    """The first place where two plans part; the plan's length where they do not."""
    for place, (one, other) in enumerate(zip_longest(plan.steps, variant.steps)):
        if one != other:
            return place
    return len(plan.steps)
