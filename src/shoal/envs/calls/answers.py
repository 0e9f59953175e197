"""Answers that may call tools, and the JSON in them, read strictly.

Nothing is repaired here: an answer that has to be mended before it can be read is one that a
program could not have used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

LONGEST = 1 << 20
"""Characters of JSON that are looked at."""
_DIGITS = 400
_DEPTH = 64


class Unreadable(ValueError):
    """An answer whose calls cannot be read; says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a tool; ``arguments`` are JSON values by name."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """What an answer says.

    calls    the calls that could be read
    blocks   what the whole text is made of, in order: "think", "calls", "response"; empty where
             there is something else in between
    thought, response  the texts of these blocks
    error    why the calls cannot be read, if so; ``calls`` is then empty
    """

    calls: tuple[Call, ...] = ()
    blocks: tuple[str, ...] = ()
    thought: str = ""
    response: str = ""
    error: str = ""

    @property
    def final(self) -> tuple[str, ...] | None:
        """The calls as texts in no order, for comparing answers; None where it cannot be read."""
        if self.error or not self.blocks:
            return None
        texts = (json.dumps([one.name, dict(one.arguments)], sort_keys=True) for one in self.calls)
        return tuple(sorted(texts))


def strict_json(text: str) -> Any:
    """A JSON value.

    Raises :class:`Unreadable` for what JSON does not allow, and for what it allows but nobody can
    rely on: names given twice, NaN and Infinity, numbers beyond a double, very deep nesting.
    """
    if len(text) > LONGEST:
        raise Unreadable(f"{len(text)} characters of JSON are too many.")
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_float=_float,
            parse_int=_integer,
        )
    except RecursionError as error:
        raise Unreadable("The JSON is nested too deeply.") from error
    except json.JSONDecodeError as error:
        raise Unreadable(f"No valid JSON: {error}.") from error
    _check_depth(value, _DEPTH)
    return value


def call_of(value: Any, arguments: str) -> Call:
    """A call from an object with ``name`` and its arguments under the given key.

    Raises :class:`Unreadable` where one of them is missing or is something else.
    """
    if not isinstance(value, dict):
        raise Unreadable(f"A call is an object, not {_kind(value)}.")
    name, given = value.get("name"), value.get(arguments)
    if not isinstance(name, str) or not name:
        raise Unreadable("A call has no name.")
    if not isinstance(given, dict):
        raise Unreadable(f"The {arguments} of {name} are {_kind(given)} instead of an object.")
    return Call(name, given)


def _kind(value: Any) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Unreadable(f"The name {twice!r} is given twice.")
    return found


def _constant(text: str) -> NoReturn:
    raise Unreadable(f"{text} is no JSON number.")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Unreadable(f"The number {text[:20]} is too large.")
    return value


def _integer(text: str) -> int:
    if len(text) > _DIGITS:
        raise Unreadable(f"A number of {len(text)} digits is too large.")
    return int(text)


def _check_depth(value: Any, left: int) -> None:
    if not left:
        raise Unreadable(f"The JSON is nested more than {_DEPTH} deep.")
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in inner:
        _check_depth(part, left - 1)
