"""Which calls were wanted: the ground truth of a request, checked when it is loaded.

Every argument has a set of values that are right, as BFCL has it; a plain truth has sets of one. An
argument that may be left out is optional: leaving it out is as good as giving a right value.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from shoal.core.errors import ShoalError
from shoal.core.records import ToolSpec
from shoal.envs.calls.answers import Answer, Call
from shoal.envs.calls.values import Equality, Fields, equal, plain


class BadTruth(ShoalError):
    """A ground truth that cannot be one; names the example."""


@dataclass(frozen=True, slots=True)
class WantedCall:
    """One call that is wanted.

    accepted  right values of each argument
    optional  arguments that may be left out
    schema    JSON schema of the tool's parameters
    """

    name: str
    accepted: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    schema: Mapping[str, Any] = field(default_factory=dict)

    def of(self, argument: str) -> Mapping[str, Any]:
        """Schema of one argument; empty where there is none."""
        found: Mapping[str, Any] = self.schema.get("properties", {}).get(argument, {})
        return found

    def right(self, argument: str, value: Any, how: Equality = "schema") -> bool:
        """Whether a value is one of an argument's right ones."""
        schema = self.of(argument)
        return any(equal(value, one, schema, how) for one in self.accepted.get(argument, ()))

    def keys(self, given: Collection[str]) -> frozenset[str]:
        """Arguments that count, beside those that were given: all but the optional left out."""
        return frozenset(self.accepted.keys() - (self.optional - set(given)))

    def superfluous(self, given: Mapping[str, Any], how: Equality = "schema") -> frozenset[str]:
        """Arguments that were given and not wanted.

        With "schema" one that says what the tool would take anyway, its default, is not.
        """
        extra = given.keys() - self.accepted.keys()
        if how == "json":
            return frozenset(extra)
        return frozenset(
            name
            for name in extra
            if "default" not in self.of(name)
            or not equal(given[name], self.of(name)["default"], self.of(name), how)
        )

    def matches(self, call: Call, how: Equality = "schema") -> bool:
        """Whether a call is exactly this one."""
        return (
            call.name == self.name
            and not self.superfluous(call.arguments, how)
            and all(
                key in call.arguments and self.right(key, call.arguments[key], how)
                for key in self.keys(call.arguments)
            )
        )

    def example(self) -> Call:
        """The call with the first right value of every argument that may not be left out."""
        return Call(
            self.name,
            {
                key: plain(self.accepted[key][0])
                for key in self.accepted
                if key not in self.optional
            },
        )


@dataclass(frozen=True)
class Wanted:
    """What a request wants: calls, or an answer in words, or both.

    id        of the example, for errors
    calls     in no order; empty where no tool fits
    response  whether an answer in words is wanted too; without calls it always is
    """

    id: str
    calls: tuple[WantedCall, ...] = ()
    response: bool = False

    @cached_property
    def blocks(self) -> tuple[str, ...]:
        """Parts of a well-formed answer, thinking aside."""
        return ("calls",) * bool(self.calls) + ("response",) * (self.response or not self.calls)

    @cached_property
    def arguments(self) -> int:
        """How many arguments are wanted, optional ones included."""
        return sum(len(call.accepted) for call in self.calls)

    def example(self) -> Answer:
        """One right answer, without words."""
        return Answer(tuple(call.example() for call in self.calls), self.blocks)


def wanted(
    id: str,
    calls: Iterable[tuple[str, Mapping[str, Sequence[Any]]]],
    tools: Iterable[ToolSpec],
    *,
    optional: Sequence[Collection[str]] = (),
    response: bool = False,
) -> Wanted:
    """A ground truth, checked against the tools it calls.

    calls     name and right values by argument of each call
    optional  arguments that may be left out, of each call

    Raises :class:`BadTruth`, naming the example, for a tool that is not offered, an argument the
    tool does not have or one without right values, and values that are no JSON.
    """
    offered = {tool.name: tool for tool in tools}
    found = []
    for place, (name, accepted) in enumerate(calls):
        if name not in offered:
            raise BadTruth(f"Example {id} wants {name!r} called, which is not among its tools.")
        schema = offered[name].parameters
        known = schema.get("properties", {})
        for argument, values in accepted.items():
            if argument not in known:
                raise BadTruth(f"Example {id}: {name!r} has no parameter {argument!r}.")
            if not isinstance(values, Sequence) or isinstance(values, str) or not values:
                raise BadTruth(f"Example {id}: no right values for {argument!r} of {name!r}.")
            for value in values:
                _check(value, f"Example {id}: {argument!r} of {name!r}")
        free = frozenset(optional[place]) if optional else frozenset()
        if missing := sorted(set(schema.get("required", ())) - accepted.keys() - free):
            raise BadTruth(f"Example {id}: {name!r} needs {missing[0]!r}, and no value is right.")
        frozen = {argument: tuple(values) for argument, values in accepted.items()}
        found.append(WantedCall(name, frozen, free, schema))
    return Wanted(id, tuple(found), response)


def _check(value: Any, where: str) -> None:
    if isinstance(value, Fields):
        _check(list(value.accepted.values()), where)
    elif isinstance(value, Mapping):
        _check(list(value.values()), where)
    elif isinstance(value, list | tuple):
        for part in value:
            _check(part, where)
    elif isinstance(value, float) and not math.isfinite(value):
        raise BadTruth(f"{where} would be {value}, which is no JSON number.")
    elif value is not None and not isinstance(value, str | int | float):
        raise BadTruth(f"{where} would be a {type(value).__name__}, which is no JSON.")
