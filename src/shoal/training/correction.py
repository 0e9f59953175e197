"""What to do where the sampler is not quite the policy that learns: weights, masks, staleness.

Importance weights from sampler to trainer per token or per sequence, cut off or left out where
they are extreme: truncated importance sampling (arXiv 2510.18927 and earlier) and sequence masks.
They are exact only for log-probabilities after temperature and before truncation.

Shapes: A action tokens, R rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from shoal.training.loss import kl_terms
from shoal.training.rows import Row

Mode = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


@dataclass(frozen=True, slots=True)
class Correction:
    """Which weights, and their bounds.

    geometric  a sequence's weight is the geometric mean of its tokens' instead of their product
    """

    mode: Mode = "sequence_mask"
    low: float = 0.0
    high: float = 3.0
    geometric: bool = False


def importance(
    trainer_A: torch.Tensor, sampler_A: torch.Tensor, row_A: torch.Tensor, setting: Correction
) -> tuple[torch.Tensor, dict[str, float]]:
    """The weight of each token, without gradient, and how far the two are apart."""
    apart_A = trainer_A.double() - sampler_A.double()
    log_A = apart_A
    if setting.mode.startswith("sequence") and len(row_A):
        rows = int(row_A.max()) + 1
        sum_R = torch.zeros(rows, dtype=torch.float64).index_add(0, row_A, apart_A)
        if setting.geometric:
            sum_R /= torch.bincount(row_A, minlength=rows).clamp_min(1)
        log_A = sum_R[row_A]
    ratio_A = log_A.exp()
    outside_A = (ratio_A > setting.high) | (ratio_A < setting.low)
    if setting.mode == "none":
        weight_A = torch.ones_like(ratio_A)
    elif setting.mode.endswith("truncate"):
        weight_A = ratio_A.clamp(setting.low, setting.high)
    else:
        weight_A = torch.where(outside_A, 0.0, ratio_A)
    if not len(ratio_A):
        return weight_A, {}
    masked = outside_A.double().mean() if setting.mode.endswith("mask") else torch.tensor(0.0)
    return weight_A, {
        "mismatch.kl": float(kl_terms(sampler_A.double(), trainer_A.double(), "k3").mean()),
        "mismatch.ratio_p99": float(ratio_A.quantile(0.99)),
        "mismatch.masked": float(masked),
    }


def fresh(
    rows: Sequence[Row], version: int, max_lag: int | None
) -> tuple[list[Row], dict[str, float]]:
    """Rows whose weights are no more than ``max_lag`` updates old; how many were dropped.

    Whole episodes go where one of their steps is too old, because returns need all steps.
    """
    stale = {
        (row.task, row.agent, row.episode)
        for row in rows
        if max_lag is not None and version - row.version > max_lag
    }
    kept = [row for row in rows if (row.task, row.agent, row.episode) not in stale]
    lags = Counter(version - row.version for row in rows)
    told = {f"lag.{lag}": float(count) for lag, count in sorted(lags.items())}
    return kept, told | {"lag.dropped": float(len(rows) - len(kept))}
