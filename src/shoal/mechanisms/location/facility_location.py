"""One number for a group whose members each want another: the Uniform Phantom and its rivals.

"Strategyproof and Proportionally Fair Facility Location" (arXiv 2111.01566): exactly one
strategyproof rule treats groups in proportion to their size. The rules themselves are in
:mod:`shoal.mechanisms.location.rules`; here reports become a decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from shoal.core.errors import ConfigError
from shoal.core.rng import uniform
from shoal.mechanisms.location.audit import audit
from shoal.mechanisms.location.rules import (
    Floats,
    Rule,
    UniformPhantom,
    descending,
    proportional_slack,
)
from shoal.mechanisms.protocol import Audit, Decision, Opening, Report, ReportError

ASSUMES = (
    "Every agent has one ideal point and likes outcomes less the farther they are from it.",
    "Nothing is paid, and nobody cares about the others' utility.",
    "Weights and the interval were fixed before the reports, and not by the agents.",
    "A language model reports what its prompt makes it report: the guarantee is that no lie "
    "would serve it, not that it tells none.",
)


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """A decision about one number.

    value             y, on the scale of the reports
    pivots            places of the reports that are y; none where a phantom or a mean decided
    utilities         1 - |y - x_i| / (high - low) of each report, [n]
    fair_share_slack  how much more than its fair share the worst-off group gets
    """

    value: float
    pivots: tuple[int, ...]
    utilities: Floats
    fair_share_slack: float


def settle(
    reports: ArrayLike,
    low: float = 0.0,
    high: float = 1.0,
    *,
    weights: ArrayLike | None = None,
    rule: Rule = UniformPhantom(),
    seed: int = 0,
) -> Outcome:
    """Decide on one number in [low, high] from reports [n] with weights [n].

    An absent agent is left out, not counted as 0. Raises :class:`ReportError` for no reports, or
    one that is no number within the interval, and :class:`ConfigError` for an empty interval or
    weights that are negative, not finite or all zero.
    """
    _check_interval(low, high)
    raw = np.asarray(reports, dtype=np.float64)
    if raw.ndim != 1 or raw.size == 0:
        raise ReportError(f"Settling needs at least one report in a row, not shape {raw.shape}.")
    wrong = ~((raw >= low) & (raw <= high))
    if wrong.any():
        at = int(wrong.argmax())
        raise ReportError(f"Agent {at} reports {raw[at]}, which is not within [{low}, {high}].")
    w = None if weights is None else _weights(weights, raw)
    x = (raw - low) / (high - low)
    ordered, c = descending(x, w)
    placed = rule.drawn(uniform(seed, "facility location")).place(ordered, c)
    pivots = np.flatnonzero(x == placed)
    slack = proportional_slack(ordered, np.abs(ordered - placed), c)
    value = float(raw[pivots[0]]) if pivots.size else low + float(placed) * (high - low)
    return Outcome(value, tuple(pivots.tolist()), 1 - np.abs(x - placed), float(slack))


def _check_interval(low: float, high: float) -> None:
    if not (np.isfinite(high) and np.isfinite(high - low) and low < high):
        raise ConfigError(f"[{low}, {high}] is no interval: give a low end below the high end.")


def _weights(weights: ArrayLike, reports: Floats) -> Floats:
    w = np.asarray(weights, dtype=np.float64)
    if w.shape != reports.shape:
        raise ConfigError(f"{reports.size} reports need as many weights, not shape {w.shape}.")
    wrong = ~((w >= 0) & np.isfinite(w))
    if wrong.any():
        at = int(wrong.argmax())
        raise ConfigError(f"The weight of agent {at} is {w[at]}, but must be finite and >= 0.")
    if not w.any():
        raise ConfigError("All weights are 0: at least one must be positive.")
    return w


@dataclass(frozen=True)
class FacilityLocation:
    """A round in which a group sets one number in [low, high]; nothing is paid."""

    rule: Rule = UniformPhantom()
    low: float = 0.0
    high: float = 1.0
    most_paid: float = field(default=0.0, init=False)
    assumes: tuple[str, ...] = field(default=ASSUMES, init=False)

    def __post_init__(self) -> None:
        _check_interval(self.low, self.high)

    @property
    def name(self) -> str:
        return f"facility_location({self.rule.name}, {self.low:g}, {self.high:g})"

    @property
    def guarantees(self) -> frozenset[str]:
        return frozenset(self.rule.guarantees)

    def message(self, opening: Opening, agent: str, earlier: Sequence[Report]) -> None:
        """Nothing: what others report stays sealed."""

    def check(self, opening: Opening, agent: str, value: Any) -> float:
        """A number within the interval."""
        known = isinstance(value, int | float) and not isinstance(value, bool)
        if not (known and self.low <= value <= self.high):
            raise ReportError(
                f"{agent!r} reports {value!r}, which is not a number within "
                f"[{self.low:g}, {self.high:g}]."
            )
        return float(value)

    def settle(self, opening: Opening, reports: Sequence[Report], observed: Any = None) -> Decision:
        """The number; utilities are on [0, 1], the pivots and the slack are in the details."""
        agents = [report.agent for report in reports]
        found = settle(
            [report.value for report in reports],
            self.low,
            self.high,
            weights=[opening.weight(agent) for agent in agents] if opening.weights else None,
            rule=self.rule,
            seed=opening.seed,
        )
        return Decision(
            found.value,
            utilities=dict(zip(agents, found.utilities.tolist(), strict=True)),
            how=f"{self.rule.name}, exact",
            details={
                "pivots": [agents[place] for place in found.pivots],
                "fair_share_slack": found.fair_share_slack,
            },
        )

    def audit(self, agents: int) -> Audit:
        """Try to break the rule's guarantees in groups of that many agents."""
        return audit(self.rule, agents)
