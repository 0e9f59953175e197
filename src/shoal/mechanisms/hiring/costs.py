"""What efforts cost an agent, found by offering it mixtures of two known rules.

"Online Information Acquisition: Hiring Multiple Agents" (arXiv 2307.06210): between the rule for b
and the rule for b' lies a mixture at which the agent changes its mind, and there the difference of
costs is the difference of expected pay. Binary search; a third effort in between splits the search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from shoal.mechanisms.hiring.oracle import Rules
from shoal.mechanisms.hiring.problem import Floats


@dataclass(frozen=True, slots=True)
class Search:
    """Agent's switch from effort ``left`` to ``right`` on the way from one rule to another.

    rules  the efforts whose rules are mixed; ``low`` and ``high`` bound the second one's share
    """

    agent: int
    rules: tuple[int, int]
    left: int
    right: int
    low: float = 0.0
    high: float = 1.0
    steps: int = 0

    @property
    def share(self) -> float:
        """The mixture to offer next, and in the end the one at which the agent switches."""
        return (self.low + self.high) / 2

    def offer(self, rules: Rules) -> Floats:
        """That mixture's payments, [s_i, T]."""
        first, second = (rules[self.agent][effort] for effort in self.rules)
        return (1 - self.share) * first + self.share * second

    def step(self, seen: int) -> tuple[Search, ...]:
        """What is left to search once the agent answered the offer by an effort."""
        lower = replace(self, low=self.share, steps=self.steps + 1)
        upper = replace(self, high=self.share, steps=self.steps + 1)
        if seen == self.left:
            return (lower,)
        if seen == self.right:
            return (upper,)
        return replace(upper, right=seen), replace(lower, left=seen)


def searches(efforts: Sequence[int]) -> tuple[Search, ...]:
    """One search for each pair of neighbouring efforts; their differences add up to all."""
    return tuple(
        Search(i, (b, b + 1), b, b + 1) for i, count in enumerate(efforts) for b in range(count - 1)
    )


def cost_differences(
    found: Sequence[Search], own: Sequence[Floats], rules: Rules, efforts: Sequence[int]
) -> tuple[Floats, ...]:
    """C_i(b, b') = c_i(b) - c_i(b') out of finished searches, antisymmetric and additive.

    ``own`` is what each agent's efforts say about its signal and the state, n of [b_i, s_i, T].
    """
    differences = []
    for i, count in enumerate(efforts):
        mine = [search for search in found if search.agent == i]
        edges, gaps = np.zeros((len(mine), count)), np.zeros(len(mine))
        for row, search in enumerate(mine):
            offer = search.offer(rules)
            pay_b = np.einsum("bst,rt->bsr", own[i], offer).max(axis=2).sum(axis=1)
            edges[row, search.left], edges[row, search.right] = 1, -1
            gaps[row] = pay_b[search.left] - pay_b[search.right]
        cost = np.linalg.lstsq(edges, gaps, rcond=None)[0] if mine else np.zeros(count)
        differences.append(cost[:, None] - cost)
    return tuple(differences)
