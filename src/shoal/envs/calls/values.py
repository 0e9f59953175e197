"""When two values of an argument mean the same, given the argument's JSON schema.

"json" compares values as JSON does: 1 is 1.0 and not "1", the order of a list counts. "schema" asks
what the parameter is: one of an enumeration is compared to the letter, a whole number exactly, any
other number within a tolerance, free text as BFCL does (case, blanks and some signs aside), lists
and objects by their parts.

Departure: true and 1 are never equal, which they are in Python.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Equality = Literal["json", "schema"]
TOLERANCE = 1e-6
_IGNORED = str.maketrans("", "", " ,./-_*^")


@dataclass(frozen=True, slots=True)
class Fields:
    """An object whose fields have sets of right values of their own; some may be left out."""

    accepted: Mapping[str, tuple[Any, ...]]
    optional: frozenset[str] = frozenset()

    def example(self) -> dict[str, Any]:
        """The object with the first right value of every field."""
        return {name: plain(values[0]) for name, values in self.accepted.items() if values}


def plain(value: Any) -> Any:
    """A value as JSON has it: of fields with several right values the first."""
    if isinstance(value, Fields):
        return value.example()
    return [plain(part) for part in value] if _is_list(value) else value


def equal(given: Any, wanted: Any, schema: Mapping[str, Any], how: Equality) -> bool:
    """Whether a given value means the wanted one."""
    if how == "json":
        return _same(given, wanted)
    return _means(given, wanted, schema)


def _same(given: Any, wanted: Any) -> bool:
    if isinstance(wanted, Fields):
        return _fits(given, wanted, {}, "json")
    if isinstance(given, bool) or isinstance(wanted, bool):
        return given is wanted
    if isinstance(given, Mapping) and isinstance(wanted, Mapping):
        return given.keys() == wanted.keys() and all(
            _same(given[name], wanted[name]) for name in wanted
        )
    if _is_list(given) and _is_list(wanted):
        return len(given) == len(wanted) and all(map(_same, given, wanted))
    return bool(given == wanted)


def _means(given: Any, wanted: Any, schema: Mapping[str, Any]) -> bool:
    if isinstance(wanted, Fields):
        return _fits(given, wanted, schema, "schema")
    if "enum" in schema or isinstance(given, bool) or isinstance(wanted, bool):
        return _same(given, wanted)
    if isinstance(given, str) and isinstance(wanted, str):
        return standard(given) == standard(wanted)
    if _is_number(given) and _is_number(wanted):
        return _close(given, wanted, schema.get("type"))
    if isinstance(given, Mapping) and isinstance(wanted, Mapping):
        inner = schema.get("properties", {})
        return given.keys() == wanted.keys() and all(
            _means(given[name], wanted[name], inner.get(name, {})) for name in wanted
        )
    if _is_list(given) and _is_list(wanted):
        items = schema.get("items", {})
        return len(given) == len(wanted) and all(
            _means(ours, theirs, items) for ours, theirs in zip(given, wanted, strict=True)
        )
    return bool(given == wanted)


def _fits(given: Any, wanted: Fields, schema: Mapping[str, Any], how: Equality) -> bool:
    if not isinstance(given, Mapping) or given.keys() - wanted.accepted.keys():
        return False
    inner = schema.get("properties", {})
    return all(
        any(equal(given[name], one, inner.get(name, {}), how) for one in values)
        if name in given
        else name in wanted.optional
        for name, values in wanted.accepted.items()
    )


def standard(text: str) -> str:
    """A text without what BFCL's checker ignores: case, blanks, and the signs ``,./-_*^``."""
    return text.translate(_IGNORED).lower().replace("'", '"')


def _close(given: float, wanted: float, kind: Any) -> bool:
    if kind == "integer":
        return given == wanted
    try:
        return math.isclose(given, wanted, rel_tol=TOLERANCE, abs_tol=TOLERANCE * 1e-3)
    except OverflowError:  # a whole number beyond a double
        return given == wanted


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
