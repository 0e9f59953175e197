"""Independent Markets: a budget split over m alternatives that nobody can gain by misreporting.

"Truthful aggregation of budget proposals" (Freeman, Pennock, Peters, Vaughan, arXiv 1905.00457):
each alternative is a market of its own with the phantoms min(k t, 1), k = 0..n, and t is where
the shares add up to 1. Truthful where an agent's loss is the l1 distance of the split from its
proposal; where every agent wants one alternative only, each gets the share of its supporters.
With two alternatives it is the Uniform Phantom.

In the closed form of :mod:`shoal.mechanisms.location.rules`, y_j(t) = max_i min(x_(i)j, t n C_i)
with the reports on j in descending order and C_i their share of weight; t n is called ``t`` here,
so that t = 1 is the Uniform Phantom in every market.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from shoal.core.errors import ConfigError
from shoal.core.rng import generator
from shoal.mechanisms.location.rules import Floats, descending
from shoal.mechanisms.protocol import (
    Audit,
    Counterexample,
    Decision,
    Opening,
    Report,
    ReportError,
)

TOLERANCE = 1e-9
"""By how much a proposal's sum may differ from 1, and a lie may pay by rounding."""

ASSUMES = (
    "Every agent's loss is the l1 distance between the split and the one it wants.",
    "Weights were fixed before the reports, and not by the agents.",
)


def independent_markets(proposals: ArrayLike, *, weights: ArrayLike | None = None) -> Floats:
    """The split [m] that follows from proposals [n, m], each row >= 0 with sum 1.

    Raises :class:`ReportError` for a row that is none, naming it, and :class:`ConfigError` for
    weights [n] that are negative, not finite or all zero.
    """
    x_nm = np.asarray(proposals, dtype=np.float64)
    if x_nm.ndim != 2 or x_nm.size == 0:
        raise ReportError(f"Proposals are rows of shares, not an array of shape {x_nm.shape}.")
    for at, row in enumerate(x_nm):
        _check_split(f"Agent {at}", row)
    w_n = np.ones(len(x_nm)) if weights is None else np.asarray(weights, dtype=np.float64)
    if w_n.shape != x_nm.shape[:1] or not (np.isfinite(w_n) & (w_n >= 0)).all() or not w_n.any():
        raise ConfigError(
            f"{len(x_nm)} proposals need as many weights, finite, >= 0 and not all 0, "
            f"unlike {w_n.tolist()}."
        )
    x_mn, c_mn = descending(x_nm[w_n > 0].T, w_n[w_n > 0])
    low, high = 0.0, 1 / float(c_mn.min())  # every phantom is at 0, or at 1 and the sum >= 1
    for _ in range(100):
        t = (low + high) / 2
        below = np.minimum(x_mn, t * c_mn).max(axis=1).sum() < 1
        low, high = (t, high) if below else (low, t)
    split_m: Floats = np.minimum(x_mn, high * c_mn).max(axis=1)
    return split_m


def _check_split(agent: str, row: Floats) -> None:
    if not ((row >= 0).all() and abs(row.sum() - 1) <= TOLERANCE):
        raise ReportError(f"{agent} proposes {row.tolist()}, but shares are >= 0 and add up to 1.")


@dataclass(frozen=True)
class IndependentMarkets:
    """A round in which a group splits a budget over named alternatives; nothing is paid."""

    alternatives: tuple[str, ...]
    guarantees: frozenset[str] = field(
        default=frozenset({"strategyproof", "proportional"}), init=False
    )
    assumes: tuple[str, ...] = field(default=ASSUMES, init=False)
    most_paid: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        if len(set(self.alternatives)) < max(2, len(self.alternatives)):
            raise ConfigError(f"A budget is split over two or more names, not {self.alternatives}.")

    @property
    def name(self) -> str:
        return f"independent_markets({', '.join(self.alternatives)})"

    def message(self, opening: Opening, agent: str, earlier: Sequence[Report]) -> None:
        """Nothing: what others propose stays sealed."""

    def check(self, opening: Opening, agent: str, value: Any) -> list[float]:
        """A share of each alternative, in their order."""
        try:
            row = np.array(value, dtype=np.float64)
        except (TypeError, ValueError):
            row = np.array([])
        if row.shape != (len(self.alternatives),):
            raise ReportError(
                f"{agent!r} proposes {value!r}, but the split needs a share of each of "
                f"{', '.join(self.alternatives)}."
            )
        _check_split(repr(agent), row)
        shares: list[float] = row.tolist()
        return shares

    def settle(self, opening: Opening, reports: Sequence[Report], observed: Any = None) -> Decision:
        """The split; utilities are 1 - half the l1 distance, so that they lie in [0, 1]."""
        if not reports:
            raise ReportError("Settling needs at least one proposal.")
        agents = [report.agent for report in reports]
        x_nm = np.array([report.value for report in reports])
        weights = [opening.weight(agent) for agent in agents]
        split_m = independent_markets(x_nm, weights=weights)
        utilities = 1 - np.abs(x_nm - split_m).sum(axis=1) / 2
        return Decision(
            dict(zip(self.alternatives, split_m.tolist(), strict=True)),
            utilities=dict(zip(agents, utilities.tolist(), strict=True)),
            how="independent markets, t by bisection to rounding",
        )

    def audit(self, agents: int) -> Audit:
        """Random and single-minded profiles, each with a random or an extreme lie."""
        return audit_markets(agents, len(self.alternatives))


def audit_markets(n: int, m: int, *, trials: int = 300, seed: int = 0) -> Audit:
    """Look for lies that pay in l1, and for single-minded groups that get another share."""
    rng = generator(seed, "audit markets", n, m)
    corners = np.eye(m)
    found: list[Counterexample] = []
    for trial in range(trials):
        x_nm = rng.dirichlet(np.ones(m), n)
        if trial % 2:
            x_nm = np.where(rng.random((n, 1)) < 0.5, corners[rng.integers(0, m, n)], x_nm)
        lie_nm = x_nm.copy()
        lie_nm[0] = corners[rng.integers(m)] if trial % 3 else rng.dirichlet(np.ones(m))
        losses = [np.abs(independent_markets(r) - x_nm[0]).sum() / 2 for r in (x_nm, lie_nm)]
        wants_n = rng.integers(0, m, n)
        split_m = independent_markets(corners[wants_n])
        share_m = np.bincount(wants_n, minlength=m) / n
        found += _broken("strategyproof", losses[0] - losses[1], x_nm)
        found += _broken("proportional", float(np.abs(split_m - share_m).max()), corners[wants_n])
    worst = {one.promise: one for one in sorted(found, key=lambda one: one.shortfall)}
    cases = {"strategyproof": trials, "proportional": trials}
    return Audit(f"independent_markets of {m}", cases, tuple(worst.values()), exhaustive=False)


def _broken(promise: str, shortfall: float, x_nm: Floats) -> list[Counterexample]:
    if shortfall <= TOLERANCE:
        return []
    sentence = f"Proposals {x_nm.tolist()} are {shortfall:.4g} short of {promise}."
    return [Counterexample(promise, float(shortfall), sentence, {"reports": x_nm.tolist()})]
