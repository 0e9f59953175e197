"""GiGPO: credit for a step, from the other actions that were taken in the same state.

"Group-in-Group Policy Optimization for LLM Agent Training" (arXiv 2505.10978), equations 3 to 8:
A = A^E + ω A^S, where A^E compares an episode with its group, and A^S compares the discounted
returns of all visits to one state by the group's episodes ("anchor groups"). One pass over rows.

Departures: the state is what the environment says it is, not the text of the observation (text
that is similar may be matched by ``anchored``); A^E takes its statistics over episodes, as the
paper has it, not over rows, as its code does (``over="rows"``); a penalty for actions that were not
understood stays with their row, as in its code.

Shapes: R rows, G groups.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from shoal.training.advantage import (
    Advantages,
    Norm,
    Over,
    advantages,
    centred_by,
    episode_advantage,
    returns,
)
from shoal.training.rows import Batch, Floats, Row


def gigpo(
    batch: Batch,
    *,
    gamma: float = 0.95,
    omega: float = 1.0,
    scale: Norm = "std",
    over: Over = "episodes",
    invalid_penalty: float = 0.0,
    episode_level: bool = True,
) -> Advantages:
    """A^E + ω A^S of each row; ``scale`` is F_norm, "std" or "none", of both.

    Without ``episode_level`` A^E is left out; with ``omega`` 0 this is GRPO.
    """
    episode_R = (
        episode_advantage(batch, scale, over, invalid_penalty)
        if episode_level
        else np.zeros(batch.size)
    )
    step_R = omega * step_advantage(batch, gamma, scale, invalid_penalty)
    shares = np.abs(step_R).sum(), np.abs(episode_R).sum()
    return advantages(
        batch,
        episode_R + step_R,
        **anchor_stats(batch),
        **{"gigpo.step_share": float(shares[0] / (sum(shares) or 1.0))},
    )


def step_advantage(
    batch: Batch, gamma: float = 0.95, scale: Norm = "std", invalid_penalty: float = 0.0
) -> Floats:
    """A^S (equation 7), [R]: a visit's return minus its anchor group's mean; alone it is 0."""
    value_R = returns(batch, gamma) - invalid_penalty * ~batch.valid_R
    states = int(batch.state_R.max(initial=-1)) + 1
    return centred_by(batch.state_R, value_R, states, std=scale != "none")


def anchor_stats(batch: Batch) -> dict[str, float]:
    """Sizes of anchor groups: how many there are, share of singletons, share of ten and more."""
    size = np.bincount(batch.state_R)
    if not size.size:
        return {}
    return {
        "anchors.count": float(size.size),
        "anchors.singletons": float((size == 1).mean()),
        "anchors.ten_or_more": float((size >= 10).mean()),
        "anchors.mean_size": float(size.mean()),
    }


def anchored(
    rows: Sequence[Row], keys: Literal["state", "observation"], threshold: float | None = None
) -> Sequence[Row]:
    """Rows whose key is what anchors them: the state, what was seen, or what is similar to it.

    With a ``threshold``, for observations that hardly ever repeat (the paper's similarity mode),
    an observation is named by the first of its group with which difflib's ratio is at least that;
    quadratic in the number of different ones.
    """
    if keys == "state" and threshold is None:
        return rows
    if threshold is None:
        return [replace(row, state_key=row.observation) for row in rows]
    first: dict[tuple[str, str], list[str]] = {}
    found: dict[tuple[str, str, str], str] = {}
    for row in rows:
        key = (row.task, row.agent, row.observation)
        if key not in found:
            known = first.setdefault(key[:2], [])
            found[key] = _cluster(row.observation, known, threshold)
    return [replace(row, state_key=found[row.task, row.agent, row.observation]) for row in rows]


def _cluster(text: str, known: list[str], threshold: float) -> str:
    for representative in known:
        matcher = difflib.SequenceMatcher(None, representative, text, autojunk=False)
        if matcher.quick_ratio() >= threshold and matcher.ratio() >= threshold:
            return representative
    known.append(text)
    return text
