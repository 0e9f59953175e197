"""Estimators by name, and what to do with groups that compare equal.

``keep`` leaves dead groups where they are, with advantage 0; ``filter`` leaves their rows out, of
the denominator too; ``resample`` does, and the rollout goes on until enough groups are alive (DAPO,
arXiv 2503.14476); ``global`` gives them COPO's advantage between prompts.

Shapes: R rows, C columns.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from shoal.core.errors import ConfigError, nearest
from shoal.training.advantage import (
    Advantages,
    gdpo,
    grpo,
    max_rl,
    reinforce,
    rloo,
    step_return,
)
from shoal.training.copo import copo, global_advantage
from shoal.training.gigpo import gigpo
from shoal.training.rows import Batch, Bools

Estimator = Callable[[Batch], Advantages]
Degenerate = Literal["keep", "filter", "resample", "global"]

ESTIMATORS: Mapping[str, Callable[..., Advantages]] = {
    "grpo": grpo,
    "rloo": rloo,
    "reinforce": reinforce,
    "max_rl": max_rl,
    "gdpo": gdpo,
    "gigpo": gigpo,
    "copo": copo,
    "step_return": step_return,
}


def estimator(name: str, options: Mapping[str, Any] | None = None) -> Estimator:
    """An estimator with its options set.

    Raises :class:`ConfigError`, naming the nearest, for a name or an option there is not.
    """
    if name not in ESTIMATORS:
        raise ConfigError(
            f"There is no algorithm {name!r}: take one of {', '.join(ESTIMATORS)}."
            f"{nearest(name, ESTIMATORS)}"
        )
    function, given = ESTIMATORS[name], dict(options or {})
    known = list(inspect.signature(function).parameters)[1:]
    if wrong := sorted(given.keys() - set(known)):
        raise ConfigError(
            f"The algorithm {name} has no option {wrong[0]!r}.{nearest(wrong[0], known)}"
        )

    def estimate(batch: Batch) -> Advantages:
        return function(batch, **given)

    return estimate


def settle_degenerate(
    batch: Batch, found: Advantages, policy: Degenerate
) -> tuple[Advantages, Bools]:
    """Advantages after the policy, and which rows are trained on, [R].

    A group that is dead by its returns but has a signal all the same (from states, or from other
    prompts) is never left out.
    """
    if policy == "keep":
        return found, np.ones(batch.size, dtype=np.bool_)
    silent_R = found.dead_R & found.silent
    if policy != "global":
        return found, ~silent_R
    between_R = global_advantage(batch)[batch.group_R]
    column_R = np.where(silent_R, between_R, 0.0)
    filled = Advantages(
        np.vstack([found.columns_CR, column_R]),
        np.vstack([found.weights_CR, np.ones(batch.size)]),
        found.dead_R,
        found.stats,
    )
    return filled, np.ones(batch.size, dtype=np.bool_)
