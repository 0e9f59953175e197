"""Mechanisms as reducers of a team: the members' last words are their sealed reports.

    Protocol(turn="all", until="rounds(1)", reduce=settle(low=0, high=100))

Reports are sealed where no channel carries them before the end: ``channels="none"``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from shoal.agents.reducers import Reducer, Reduction
from shoal.agents.state import State
from shoal.agents.votes import ballot
from shoal.core.records import to_json
from shoal.mechanisms.location.facility_location import FacilityLocation
from shoal.mechanisms.location.rules import Rule, UniformPhantom
from shoal.mechanisms.protocol import ReportError
from shoal.mechanisms.round import Round

_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


def settle(
    rule: Rule = UniformPhantom(),
    *,
    low: float = 0.0,
    high: float = 1.0,
    weights: Mapping[str, float] | None = None,
) -> Reducer:
    """One number in [low, high] out of the last number in each member's last answer.

    ``weights`` are by member and come from a ledger. A member whose answer holds no number, or
    one outside the interval, is absent, and the reduction's data say why. No result where all
    are. Raises :class:`~shoal.core.errors.ConfigError` for an empty interval.
    """
    mechanism = FacilityLocation(rule, low, high)

    def reduce(state: State) -> Reduction:
        proposals = state.proposals()
        names = [step.member for step in proposals]
        known = {name: weight for name, weight in (weights or {}).items() if name in names}
        if not names:
            return Reduction(None)
        refused: dict[str, str] = {}
        with Round(mechanism, names, weights=known, seed=state.seed) as round:
            for step in proposals:
                try:
                    round.report(step.member, number_in(step.output))
                except ReportError as error:
                    refused[step.member] = str(error)
            if not round.seals:
                return Reduction(None, {"refused": refused})
            settlement = round.settle()
        data = {"settlement": json.loads(to_json(settlement)), "refused": refused}
        return Reduction(f"{settlement.decision.outcome:g}", data)

    return reduce


def number_in(text: str) -> float | str:
    """The last number in what a text answers, or the text where there is none."""
    found = _NUMBER.findall(ballot(text).replace(",", ""))
    return float(found[-1]) if found else text
