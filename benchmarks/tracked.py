"""Comparisons of training runs whose progress a claim shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from shoal.core.claims import Bench
from shoal.training.compare import Comparison, Start, compare
from shoal.training.config import RunConfig


def compared(
    bench: Bench,
    base: RunConfig,
    arms: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    label: str,
    starts: Sequence[Start] = (),
    **more: Any,
) -> Comparison:
    """All arms on all seeds, as many at once as there are threads, two at most.

    See :func:`shoal.training.compare.compare`, also for ``more``.
    """
    steps = iter(bench.track(range(len(arms) * len(seeds) + len(seeds) - len(starts)), label))
    return compare(
        base,
        arms,
        seeds,
        workers=min(2, torch.get_num_threads()),
        on_done=lambda *_: next(steps, None),
        starts=starts,
        **more,
    )
