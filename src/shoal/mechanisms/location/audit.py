"""Tries to break a rule that sets one number: lies, coalitions, unfair outcomes.

Every profile on a grid of ideal points, with every lie and every coalition on it, then random
profiles with extremes, ties and lies off the grid. The grid costs one call of the rule a profile:
what a coalition S can reach by lying is the row of outcomes at the others' reports, and all of S
gain exactly where y' lies in the intersection of the open intervals |y' - x_i| < |y - x_i|.

Lotteries are held to the truthfulness of each draw and to fairness in expectation.
Legend: B profiles, n agents, K draws, g grid points; S members of a coalition, R other profiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from shoal.core.errors import ConfigError, InputError
from shoal.core.rng import generator
from shoal.mechanisms.location.rules import PROMISES, Floats, Promise, Rule, proportional_slack
from shoal.mechanisms.protocol import Audit, Counterexample

Written = Callable[[Floats], float]
"""A rule somebody wrote: reports [n] in [0, 1] to a number in [0, 1]."""

GRID = {1: 101, 2: 41, 3: 21, 4: 11, 5: 7, 6: 5, 7: 4}
"""Grid points by size of the group, so that an audit of a plain function takes below a second."""

TOLERANCE = 1e-12


def audit(
    rule: Rule | Written, n: int, *, grid: int | None = None, trials: int = 2_000, seed: int = 0
) -> Audit:
    """The worst counterexample to each promise that the rule breaks in groups of ``n``.

    grid    points on [0, 1] from which all profiles are made, by default as :data:`GRID` says
    trials  random profiles, at least 1, each with a random lie of a random coalition

    Raises :class:`ConfigError` for a group too large to try all, and :class:`InputError` for a
    rule whose outcome is no number in [0, 1], naming the reports.
    """
    if n not in GRID:
        raise ConfigError(f"Audits try groups of 1 to {max(GRID)} agents, not {n}.")
    points = np.linspace(0.0, 1.0, grid or GRID[n])
    x_Bn = points[np.indices((len(points),) * n).reshape(n, -1).T]
    y_KB = outcomes(rule, x_Bn)
    rng = generator(seed, "audit", n)
    drawn_Bn, lies_Bn, members_Bn = _trials(rng, trials, n)
    drawn_KB = outcomes(rule, drawn_Bn)
    found = [
        *_unfair(x_Bn, y_KB),
        *_unfair(drawn_Bn, drawn_KB),
        *_swapped(points, y_KB, n),
        *_grid_lies(points, y_KB, n),
        *_random_lies(drawn_Bn, drawn_KB, lies_Bn, members_Bn, outcomes(rule, lies_Bn)),
    ]
    worst = [max(same, key=lambda one: one.shortfall) for same in _by_promise(found)]
    name = rule.name if isinstance(rule, Rule) else getattr(rule, "__name__", "rule")
    cases: dict[str, int] = dict.fromkeys(PROMISES, len(x_Bn) + trials)
    return Audit(name, cases, tuple(worst), exhaustive=False)


def outcomes(rule: Rule | Written, x_Bn: Floats) -> Floats:
    """Outcomes [K, B] of profiles; K is 1 but for lotteries. Raises as :func:`audit` does."""
    if isinstance(rule, Rule):
        y_KB = np.stack([draw(x_Bn) for draw in rule.draws(x_Bn.shape[1])])
    else:
        y_KB = np.array([[float(rule(x_n)) for x_n in x_Bn.copy()]])
    wrong = ~((y_KB >= -TOLERANCE) & (y_KB <= 1 + TOLERANCE)).all(axis=0)
    if wrong.any():
        at = int(wrong.argmax())
        raise InputError(
            f"For the reports {x_Bn[at].tolist()} the rule gives {y_KB[:, at].tolist()}, "
            "but an outcome is a number in [0, 1]."
        )
    return y_KB


def _by_promise(found: Iterable[Counterexample]) -> Iterator[list[Counterexample]]:
    broken = list(found)
    for promise in PROMISES:
        same = [one for one in broken if one.promise == promise]
        if same:
            yield same


def shortfalls(x_Bn: Floats, y_KB: Floats) -> dict[Promise, Floats]:
    """By how much each fairness promise fails, [B]; at most 0 where it holds.

    Promises about some profiles only are -1 at all others.
    """
    n = x_Bn.shape[1]
    x_Bn = np.sort(x_Bn, axis=1)[:, ::-1]
    distance_Bn = np.abs(y_KB[:, :, None] - x_Bn).mean(axis=0)
    same_Bn = (x_Bn[:, :, None] == x_Bn[:, None, :]).sum(axis=2)
    alike_B = x_Bn[:, 0] == x_Bn[:, -1]
    extreme_B = ((x_Bn == 0) | (x_Bn == 1)).all(axis=1)
    share_n = np.arange(1, n + 1) / n
    return {
        "unanimous": np.where(alike_B, np.abs(y_KB - x_Bn[:, 0]).max(axis=0), -1.0),
        "proportional": np.where(extreme_B, np.abs(y_KB.mean(axis=0) - x_Bn.mean(axis=1)), -1.0),
        "individual fair share": distance_Bn.max(axis=1) + 1 / n - 1,
        "unanimous fair share": (distance_Bn + same_Bn / n).max(axis=1) - 1,
        "proportional fairness": -proportional_slack(
            x_Bn, distance_Bn, np.broadcast_to(share_n, x_Bn.shape)
        ),
    }


def _unfair(x_Bn: Floats, y_KB: Floats) -> Iterator[Counterexample]:
    for promise, short_B in shortfalls(x_Bn, y_KB).items():
        at = int(short_B.argmax())
        if short_B[at] > TOLERANCE:
            x, y = x_Bn[at].tolist(), float(y_KB[:, at].mean())
            yield Counterexample(
                promise,
                float(short_B[at]),
                f"Reports {_row(x)} give {y:.4g}, which is {short_B[at]:.4g} short of {promise}.",
                {"reports": x, "outcome": y},
            )


def _swapped(points: Floats, y_KB: Floats, n: int) -> Iterator[Counterexample]:
    """Profiles whose outcome changes when two neighbours change places."""
    g = len(points)
    for y_B in y_KB:
        table = y_B.reshape((g,) * n)
        for i in range(n - 1):
            change = np.abs(table - np.swapaxes(table, i, i + 1))
            place = np.unravel_index(int(change.argmax()), change.shape)
            if change[place] > TOLERANCE:
                x = points[list(place)].tolist()
                yield Counterexample(
                    "anonymous",
                    float(change[place]),
                    f"Reports {_row(x)} give {table[place]:.4g}, and {change[place]:.4g} more or "
                    f"less when agents {i} and {i + 1} change places.",
                    {"reports": x, "outcome": float(table[place])},
                )


@dataclass(frozen=True, slots=True)
class _Lie:
    """Members report ``lie`` instead of ``truth``, and each gains at least ``gain``."""

    members: Sequence[int]
    truth: Floats
    lie: Floats
    before: float
    after: float
    gain: float

    def counterexample(self) -> Counterexample:
        alone = len(self.members) == 1
        who = f"agent {self.members[0]} gains" if alone else f"agents {_row(self.members)} gain"
        return Counterexample(
            "strategyproof" if alone else "group-strategyproof",
            self.gain,
            f"With ideal points {_row(self.truth)}, {who} {self.gain:.4g} by reporting "
            f"{_row(self.lie[list(self.members)])}: the outcome moves from {self.before:.4g} to "
            f"{self.after:.4g}.",
            {
                "reports": self.truth.tolist(),
                "members": [int(member) for member in self.members],
                "lies": self.lie.tolist(),
                "outcome": self.before,
                "after": self.after,
            },
        )


def _grid_lies(points: Floats, y_KB: Floats, n: int) -> Iterator[Counterexample]:
    for y_B in y_KB:
        for size in range(1, n + 1):
            for members in combinations(range(n), size):
                lie = _best_lie(points, y_B, n, members)
                if lie.gain > TOLERANCE:
                    yield lie.counterexample()


def _best_lie(points: Floats, y_B: Floats, n: int, members: tuple[int, ...]) -> _Lie:
    """The lie of a coalition that serves its least served member best, over the whole grid.

    min_i (|y - x_i| - |y' - x_i|) = half - |y' - middle| of the interval (low, high) in which all
    gain: the best y' is the reachable one nearest to the middle.
    """
    g, s = len(points), len(members)
    others = tuple(i for i in range(n) if i not in members)
    y_RS = y_B.reshape((g,) * n).transpose(*others, *members).reshape(-1, g**s)
    x_sS = points[np.indices((g,) * s).reshape(s, -1)]
    distance_sRS = np.abs(y_RS - x_sS[:, None, :])
    low_RS = (x_sS[:, None, :] - distance_sRS).max(axis=0)
    high_RS = (x_sS[:, None, :] + distance_sRS).min(axis=0)
    middle_RS, half_RS = (low_RS + high_RS) / 2, (high_RS - low_RS) / 2
    order_RS = np.argsort(y_RS, axis=1)
    reach_RS = np.take_along_axis(y_RS, order_RS, axis=1)
    right_RS = _searchsorted_rows(reach_RS, middle_RS)
    left_RS = np.maximum(right_RS - 1, 0)
    right_RS = np.minimum(right_RS, g**s - 1)
    to_left_RS = np.abs(np.take_along_axis(reach_RS, left_RS, axis=1) - middle_RS)
    to_right_RS = np.abs(np.take_along_axis(reach_RS, right_RS, axis=1) - middle_RS)
    gain_RS = half_RS - np.minimum(to_left_RS, to_right_RS)
    r, t = np.unravel_index(int(gain_RS.argmax()), gain_RS.shape)
    nearest = left_RS if to_left_RS[r, t] <= to_right_RS[r, t] else right_RS
    lie = int(order_RS[r, nearest[r, t]])
    truth_n = np.empty(n)
    truth_n[list(others)] = points[list(np.unravel_index(r, (g,) * len(others)))]
    truth_n[list(members)] = x_sS[:, t]
    lie_n = truth_n.copy()
    lie_n[list(members)] = x_sS[:, lie]
    before, after = float(y_RS[r, t]), float(y_RS[r, lie])
    return _Lie(members, truth_n, lie_n, before, after, float(gain_RS[r, t]))


def _searchsorted_rows(sorted_RS: Floats, values_RS: Floats) -> Any:
    """``np.searchsorted`` of each row of values in [0, 1] in its own row, [R, S]."""
    rows, width = sorted_RS.shape
    shift_R1 = 4.0 * np.arange(rows)[:, None]  # further apart than any two values
    flat = np.searchsorted(
        (sorted_RS + shift_R1).ravel(), (np.clip(values_RS, 0, 1) + shift_R1).ravel()
    )
    return flat.reshape(rows, -1) - width * np.arange(rows)[:, None]


def _trials(rng: np.random.Generator, trials: int, n: int) -> tuple[Floats, Floats, Any]:
    """Profiles, the same with lies, and who lies, [trials, n] each; half of the lies are lone."""
    x_Bn, other_Bn = _profiles(rng, trials, n), _profiles(rng, trials, n)
    members_Bn = rng.random((trials, n)) < 0.5
    lone_B = rng.random(trials) < 0.5
    members_Bn[lone_B] = False
    members_Bn[np.arange(trials), rng.integers(0, n, trials)] = True
    return x_Bn, np.where(members_Bn, other_Bn, x_Bn), members_Bn


def _profiles(rng: np.random.Generator, trials: int, n: int) -> Floats:
    """Half of the points anywhere; the others at 0, at 1, or tied at one of two places."""
    pool_B4 = np.concatenate(
        (np.broadcast_to([0.0, 1.0], (trials, 2)), rng.random((trials, 2))), axis=1
    )
    choice_Bn = rng.integers(0, 8, (trials, n))
    tied_Bn = np.take_along_axis(pool_B4, np.minimum(choice_Bn, 3), axis=1)
    return np.where(choice_Bn < 4, tied_Bn, rng.random((trials, n)))


def _random_lies(
    x_Bn: Floats, y_KB: Floats, lies_Bn: Floats, members_Bn: Any, after_KB: Floats
) -> Iterator[Counterexample]:
    size_B = members_Bn.sum(axis=1)
    for before_B, after_B in zip(y_KB, after_KB, strict=True):
        gain_Bn = np.abs(before_B[:, None] - x_Bn) - np.abs(after_B[:, None] - x_Bn)
        gain_B = np.where(members_Bn, gain_Bn, np.inf).min(axis=1)
        for some_B in (size_B == 1, size_B > 1):
            if not some_B.any():
                continue
            at = int(np.where(some_B, gain_B, -np.inf).argmax())
            if gain_B[at] > TOLERANCE:
                members = np.flatnonzero(members_Bn[at]).tolist()
                ends = float(before_B[at]), float(after_B[at])
                lie = _Lie(members, x_Bn[at], lies_Bn[at], *ends, float(gain_B[at]))
                yield lie.counterexample()


def _row(values: Iterable[float]) -> str:
    return f"({', '.join(f'{value:.4g}' for value in values)})"
