"""Files of reports: TOML, JSON or CSV to a settled round.

    low = 0                       # the interval, agreed before anybody reports
    high = 100
    rule = "uniform-phantom"      # or another name of location.rules, or "independent-markets"
    [reports]
    anna = 10
    ben = 40                      # null in JSON, an empty cell in CSV: absent, not counted
    [weights]                     # where they are not all 1
    anna = 2

CSV has the columns ``agent``, ``report`` and, where wanted, ``weight``. A split of a budget names
its ``alternatives`` and reports a list of shares each.
"""

from __future__ import annotations

import csv
import io
import json
import tomllib
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shoal.core.errors import ConfigError, InputError
from shoal.mechanisms.location.facility_location import FacilityLocation
from shoal.mechanisms.location.independent_markets import IndependentMarkets
from shoal.mechanisms.location.rules import find_rule
from shoal.mechanisms.protocol import Mechanism, Settlement
from shoal.mechanisms.round import Round

Format = Literal["toml", "json", "csv"]
MARKETS = "independent-markets"


class Sheet(BaseModel):
    """One file of reports; what a report may be, the mechanism checks."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    reports: dict[str, Any] = Field(min_length=1)
    weights: dict[str, float] = {}
    low: float = 0.0
    high: float = 1.0
    rule: str = "uniform-phantom"
    alternatives: tuple[str, ...] = ()
    seed: int = 0

    def mechanism(self) -> Mechanism:
        """The mechanism of its rule; raises :class:`ConfigError` for an unknown one."""
        return find_mechanism(self.rule, self.low, self.high, self.alternatives)


def find_mechanism(
    rule: str, low: float = 0.0, high: float = 1.0, alternatives: tuple[str, ...] = ()
) -> Mechanism:
    """The mechanism of a rule's name; raises :class:`ConfigError` for an unknown one."""
    if rule == MARKETS:
        return IndependentMarkets(alternatives)
    if alternatives:
        raise ConfigError(f"Only the rule {MARKETS!r} has alternatives, not {rule!r}.")
    return FacilityLocation(find_rule(rule), low, high)


def settle_sheet(sheet: Sheet) -> Settlement:
    """Settle the reports of a sheet; raises as :class:`~shoal.mechanisms.round.Round` does."""
    mechanism = sheet.mechanism()
    round = Round(mechanism, list(sheet.reports), weights=sheet.weights, seed=sheet.seed)
    for agent, value in sheet.reports.items():
        if value is not None:
            round.report(agent, value)
    return round.settle()


def guess_format(name: str, text: str) -> Format:
    """By the file's ending, else by how the text begins."""
    for ending in ("toml", "json", "csv"):
        if name.endswith(f".{ending}"):
            return ending
    first = text.lstrip()
    if first.startswith("{"):
        return "json"
    return "csv" if first.partition("\n")[0].startswith("agent,") else "toml"


def parse_sheet(text: str, name: str, **options: Any) -> Sheet:
    """Read a sheet; ``options`` replace what the file says, and ``name`` is for errors.

    Raises :class:`InputError`, naming the place, for a file that is none.
    """
    try:
        match guess_format(name, text):
            case "json":
                fields = json.loads(text, object_pairs_hook=_once)
            case "toml":
                fields = tomllib.loads(text)
            case "csv":
                fields = _from_csv(text)
        return Sheet.model_validate({**fields, **options})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(f"{name} has a wrong {place}: {first['msg']}.") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{name} cannot be read: {error}.") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is there twice")
    return found


def _from_csv(text: str) -> dict[str, Any]:
    rows = list(csv.DictReader(io.StringIO(text), strict=True))
    known = {"agent", "report", "weight"}
    if not rows or not all({"agent", "report"} <= set(row) <= known for row in rows):
        raise ValueError("it needs the columns agent, report and perhaps weight, and rows")
    reports = _once([(row["agent"], _cell(row, "report")) for row in rows])
    weights = {row["agent"]: weight for row in rows if (weight := _cell(row, "weight")) is not None}
    return {"reports": reports, "weights": weights}


def _cell(row: dict[str, str], column: str) -> float | None:
    text = (row.get(column) or "").strip()
    try:
        return float(text) if text else None
    except ValueError as error:
        raise ValueError(f"the {column} of {row['agent']!r} is {text!r}, not a number") from error
