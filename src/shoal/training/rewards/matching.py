"""Which predicted call is held against which wanted one.

``greedy`` is ToolRL's: each wanted call in turn takes the best one that is left. ``optimal`` is the
assignment with the largest sum (the Hungarian method), which greedy may miss where calls of one
tool differ only in part. Both match equal names only.

Shapes: G wanted calls, P predicted ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

Scores = Sequence[Sequence[Fraction | None]]
"""[G][P]: what a pair is worth, at least 0; None where it cannot be one."""
Matcher = Callable[[Scores], list[int | None]]
"""For every wanted call the predicted one, or None."""


def greedy(scores: Scores) -> list[int | None]:
    """The best unused one for each in turn; of equal ones the first, and none that is worth 0."""
    used: set[int] = set()
    found: list[int | None] = []
    for row in scores:
        best: int | None = None
        worth = Fraction(0)
        for place, value in enumerate(row):
            if value is not None and value > worth and place not in used:
                best, worth = place, value
        found.append(best)
        if best is not None:
            used.add(best)
    return found


def optimal(scores: Scores) -> list[int | None]:
    """The matching with the largest sum, by the Hungarian method; O(G² (G + P)).

    Each row gets a column of its own that stands for no match and is worth nothing.
    """
    G = len(scores)
    P = len(scores[0]) if G else 0
    never = 1.0 + sum(float(value) for row in scores for value in row if value is not None)
    costs = [
        [never if value is None else -float(value) for value in row]
        + [0.0 if place == own else never for own in range(G)]
        for place, row in enumerate(scores)
    ]
    return [column if column < P else None for column in _cheapest(costs)]


def _cheapest(costs: Sequence[Sequence[float]]) -> list[int]:
    """A column for each row, all different, at the least cost; there are enough columns.

    Rows join one by one. Each joins along the path of least reduced cost from itself, over columns
    that are taken and the rows that hold them, to a column that is free.
    """
    columns = len(costs[0]) if costs else 0
    row_price, price = [0.0] * len(costs), [0.0] * columns
    holder: list[int] = [-1] * columns
    for joining in range(len(costs)):
        slack, came = [math.inf] * columns, [-1] * columns
        seen: list[int] = []
        row, at = joining, -1
        while True:
            for column in range(columns):
                reduced = costs[row][column] - row_price[row] - price[column]
                if column not in seen and reduced < slack[column]:
                    slack[column], came[column] = reduced, at
            at = min((c for c in range(columns) if c not in seen), key=slack.__getitem__)
            step = slack[at]
            row_price[joining] += step
            for column in seen:
                row_price[holder[column]] += step
                price[column] -= step
            slack = [value - step if c not in seen else value for c, value in enumerate(slack)]
            if holder[at] < 0:
                break
            seen.append(at)
            row = holder[at]
        while at >= 0:
            holder[at] = joining if came[at] < 0 else holder[came[at]]
            at = came[at]
    place = {row: column for column, row in enumerate(holder) if row >= 0}
    return [place[row] for row in range(len(costs))]


MATCHERS: Mapping[str, Matcher] = {"greedy": greedy, "optimal": optimal}
