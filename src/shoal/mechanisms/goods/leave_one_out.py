"""What each agent's text was worth to the group's answer: the task played again without it.

An evaluator may be fooled, and a score says nothing about use. The marginal contribution of agent i
is the score of the last text after the full history, less its score when i had said nothing and
those behind it answer anew, with the settings they had.

Beyond "Everyone Contributes!" (arXiv 2508.02076), which scores texts alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shoal.core.protocols import Sampling
from shoal.mechanisms.goods.features import State
from shoal.mechanisms.goods.sequence import Group, Play, play


async def marginals(group: Group, plays: Sequence[Play]) -> NDArray[np.float64]:
    """By how much each agent raised the last score, [B, n], with the plays' own seeds.

    The last agent's own is its score less that of the text before it. Not a number where the last
    score is none.
    """
    tasks = [one.task for one in plays]
    seeds = [one.turns[0].sampling.seed // len(group.agents) for one in plays]
    last = np.array([_last(one) for one in plays])

    def as_before(place: int, states: Sequence[State]) -> list[Sampling]:
        return [one.turns[place].sampling for one in plays]

    places = range(len(group.agents))
    again = await asyncio.gather(
        *(play(group, tasks, as_before, seeds=seeds, without=place) for place in places)
    )
    lost = [last - np.array([_last(one) for one in without]) for without in again]
    return np.stack(lost, axis=1)


def rank_correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Spearman's, with ties at their mean rank; 0 where one side does not vary."""
    ranks = [_ranks(np.asarray(side, dtype=np.float64).ravel()) for side in (x, y)]
    spread = [float(rank.std()) for rank in ranks]
    if min(spread) == 0:
        return 0.0
    centred = [rank - rank.mean() for rank in ranks]
    return float((centred[0] * centred[1]).mean() / (spread[0] * spread[1]))


def _last(one: Play) -> float:
    """The score of the last text there is."""
    said = [turn.score for turn in one.turns if not turn.skipped]
    return said[-1] if said else float("nan")


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    mean_rank: NDArray[np.float64] = (ends - (counts - 1) / 2)[inverse]
    return mean_rank
