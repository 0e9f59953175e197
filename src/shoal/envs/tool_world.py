"""A world of typed tools, made by rules: requests that want one to three of them called.

A tool does one thing (a verb) and takes one to three parameters out of a few types. Names of tools
and parameters are drawn anew for every request, so what a call must say stands in the prompt's
schema and nowhere else; within a request a type has one name, as in the interface of one house.
For small policies a tool can be called what it does and a number, which is drawn anew, and
parameters keep their names: what is looked up then stands behind what it is looked up by, in the
answer as in the schema. A fifth of the requests want what no tool offered does.

Seeds from ``HELD_OUT`` on have tools that are never seen in training: verbs that are known, with
parameters that none of them had there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Literal, get_args

import numpy as np

from shoal.core.errors import ConfigError, nearest
from shoal.core.records import ToolSpec
from shoal.core.rng import generator
from shoal.envs.calls.answers import Answer, Call
from shoal.envs.calls.task import CallTask
from shoal.envs.calls.wanted import Wanted, wanted

HELD_OUT = 1_000_000
"""Seeds from here on are requests for tools that are never trained on."""

VERBS = (
    "book", "find", "send", "paint", "clean", "count",
    "move", "rent", "sell", "open", "lock", "wash",
)  # fmt: skip
KINDS: Mapping[str, tuple[Any, ...]] = {
    "city": ("rome", "paris", "oslo", "lima", "cairo", "tokyo"),
    "colour": ("red", "green", "blue", "white", "black"),
    "day": ("monday", "tuesday", "friday", "sunday"),
    "size": ("small", "medium", "large"),
    "number": tuple(range(1, 10)),
    "fast": (True, False),
}
"""Types of parameters and their values."""
MOST_OFFERED = 8
"""Tools of a request; some verbs are left over for what none of them does."""
_SYLLABLES = ("ba", "de", "ki", "mo")
TOOL_NAMES = tuple(f"{first}{second}" for first in _SYLLABLES for second in _SYLLABLES)
PARAMETER_NAMES = tuple(f"{name}n" for name in TOOL_NAMES)
"""What tools and parameters are called: it means nothing."""
NUMBERS = tuple(range(10, 26))
"""What stands behind a verb in a tool's name, where only that is drawn."""

Masked = Literal["all", "numbers"]
SLIPS = ("name", "parameter", "value", "call")
"""What demonstrations can get wrong."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a tool is, whatever it is called."""

    verb: str
    parameters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rules:
    """What requests are made by; see :class:`ToolWorld`."""

    offered: int
    calls: tuple[int, int]
    parameters: tuple[int, int]
    irrelevant: float
    masked: Masked
    world: int


class ToolWorld(CallTask):
    """Requests for tools.

    offered     tools a request shows, all of different verbs
    calls       least and most calls of a request
    parameters  least and most parameters of a tool
    irrelevant  share of requests that no tool offered fits
    masked      what is drawn anew: names of tools and parameters ("all"), or the number in
                a tool's name ("numbers")
    slips       how often a demonstration says any name, any parameter, any value of a type in place
                of the right one, or calls where nothing should be called: one share for all, or
                one each for some of :data:`SLIPS`
    world       which tools there are: 36 to train on and 12 held out, one of each verb
    """

    name = "tool-world"

    def __init__(
        self,
        offered: int = 3,
        calls: tuple[int, int] | list[int] = (1, 3),
        parameters: tuple[int, int] | list[int] = (1, 3),
        irrelevant: float = 0.2,
        masked: Masked = "all",
        slips: float | Mapping[str, float] = 0.0,
        dialect: str = "words",
        world: int = 0,
    ) -> None:
        super().__init__(dialect)
        least, most = calls
        if not 1 <= least <= most <= 3:
            raise ConfigError(f"A request wants 1 to 3 calls, not {least} to {most}.")
        fewest, many = parameters
        if not 1 <= fewest <= many <= 3:
            raise ConfigError(f"A tool takes 1 to 3 parameters, not {fewest} to {many}.")
        if not 1 <= offered <= MOST_OFFERED:
            raise ConfigError(f"A request offers 1 to {MOST_OFFERED} tools, not {offered}.")
        if masked not in get_args(Masked):
            raise ConfigError(f"What is masked is 'all' or 'numbers', not {masked!r}.")
        self._rules = Rules(offered, (least, most), (fewest, many), irrelevant, masked, world)
        self._slips = _shares(slips)

    def words(self) -> tuple[str, ...]:
        """All it says and understands.

        Raises :class:`ConfigError` in other dialects than that of words, which have no end of them.
        """
        if self.dialect.name != "words":
            raise ConfigError(
                f"A policy of words cannot write {self.dialect.name}: give tool-world the dialect "
                "'words', or the policy a model."
            )
        values = [str(value).lower() for kind in KINDS.values() for value in kind]
        names = (*TOOL_NAMES, *PARAMETER_NAMES)
        if self._rules.masked == "numbers":
            names = tuple(f"{VERBS[0]}{number}" for number in NUMBERS)
        return (*VERBS, *KINDS, *values, *names, "tool", "ask", "and", "call", "none")

    def ask(self, seed: int) -> tuple[tuple[ToolSpec, ...], str, Wanted]:
        """Tools under names of their own, and a request."""
        return request(self._rules, seed)

    def described(self, tools: Sequence[ToolSpec]) -> str:
        """The tools; for policies of words in few of them."""
        if self.dialect.name != "words":
            return super().described(tools)
        told = self._rules.masked == "all"  # otherwise the name itself says what a tool does
        return " ".join(
            " ".join(
                [
                    "tool",
                    *([tool.description] if told else []),
                    tool.name,
                    *(
                        " ".join(dict.fromkeys((schema["description"], name)))
                        for name, schema in tool.parameters["properties"].items()
                    ),
                ]
            )
            for tool in tools
        )

    def expert_action(self) -> str:
        """The right answer, or with slips one that is nearly right, always the same."""
        rng = generator("slips", self._seed)
        wanted = self.wanted.example()
        if not wanted.calls and rng.random() < self._slips["call"]:
            tool = _drawn(rng, self.tools)
            properties = tool.parameters["properties"].items()
            given = {key: _drawn(rng, KINDS[one["description"]]) for key, one in properties}
            return self.dialect.write(Answer((Call(tool.name, given),), ("calls",)))
        calls = [self._slipped(call, rng) for call in wanted.calls]
        return self.dialect.write(Answer(tuple(calls), wanted.blocks))

    def _slipped(self, call: Call, rng: np.random.Generator) -> Call:
        schema = {tool.name: tool.parameters["properties"] for tool in self.tools}
        types = {key: one["description"] for key, one in schema[call.name].items()}
        keys = PARAMETER_NAMES if self._rules.masked == "all" else tuple(KINDS)
        given = {}
        for key, value in call.arguments.items():
            if rng.random() < self._slips["value"]:
                value = _drawn(rng, KINDS[types[key]])
            if rng.random() < self._slips["parameter"]:
                key = _drawn(rng, keys)
            given[key] = value
        slipped = rng.random() < self._slips["name"]
        return Call(_drawn(rng, tuple(schema)) if slipped else call.name, given)


@lru_cache(maxsize=16_384)  # episodes of a group, and all measurements, ask for the same
def request(rules: Rules, seed: int) -> tuple[tuple[ToolSpec, ...], str, Wanted]:
    """Tools under names of their own, a request, and what it wants."""
    rng = generator("request", seed)
    train, held_out = _kinds(rules.world, *rules.parameters)
    kinds = held_out if seed >= HELD_OUT else train
    verbs = [VERBS[at] for at in rng.choice(len(VERBS), rules.offered + 1, replace=False)]
    *shown, missing = (_drawn(rng, kinds[verb]) for verb in verbs)
    drawn = rng.permutation(len(TOOL_NAMES))
    draws = rng.permutation(len(PARAMETER_NAMES))[: len(KINDS)]
    if rules.masked == "numbers":
        names = [f"{kind.verb}{NUMBERS[at]}" for kind, at in zip(shown, drawn, strict=False)]
        called = {kind: kind for kind in KINDS}
    else:
        names = [TOOL_NAMES[at] for at in drawn]
        called = {kind: PARAMETER_NAMES[at] for kind, at in zip(KINDS, draws, strict=True)}
    tools = tuple(_spec(kind, name, called) for kind, name in zip(shown, names, strict=False))
    if rng.random() < rules.irrelevant:
        said = _said(missing, _values(missing, rng))
        return tools, f"ask {said}", Wanted(f"request {seed}")
    count = int(rng.integers(rules.calls[0], rules.calls[1] + 1))
    parts, calls = [], []
    for at in rng.integers(0, len(shown), count):
        values = _values(shown[at], rng)
        keys = tools[at].parameters["properties"]
        parts.append(_said(shown[at], values))
        calls.append((tools[at].name, {key: (one,) for key, one in zip(keys, values, strict=True)}))
    return tools, f"ask {' and '.join(parts)}", wanted(f"request {seed}", calls, tools)


def _shares(slips: float | Mapping[str, float]) -> dict[str, float]:
    """How often each part slips."""
    if not isinstance(slips, Mapping):
        return dict.fromkeys(SLIPS, slips)
    for part in slips:
        if part not in SLIPS:
            raise ConfigError(
                f"There is no slip {part!r}: take {', '.join(SLIPS)}.{nearest(part, SLIPS)}"
            )
    return {part: slips.get(part, 0.0) for part in SLIPS}


@cache
def _kinds(
    world: int, fewest: int, most: int
) -> tuple[dict[str, list[Kind]], dict[str, list[Kind]]]:
    """Tools to train on and held-out ones by verb; no two of a verb take the same parameters."""
    train, held_out = {}, {}
    for verb in VERBS:
        rng = generator("tool world", world, verb)
        found: list[Kind] = []
        while len(found) < 4:
            count = int(rng.integers(fewest, most + 1))
            types = [list(KINDS)[one] for one in rng.choice(len(KINDS), count, replace=False)]
            if not any(set(types) == set(one.parameters) for one in found):
                found.append(Kind(verb, tuple(types)))
        train[verb], held_out[verb] = found[:-1], found[-1:]
    return train, held_out


def _spec(kind: Kind, name: str, called: Mapping[str, str]) -> ToolSpec:
    """A tool under a name, its parameters under those of their types."""
    properties = {called[type_]: _schema(type_) for type_ in kind.parameters}
    return ToolSpec(
        name,
        kind.verb,
        {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        },
    )


def _schema(kind: str) -> dict[str, Any]:
    values = KINDS[kind]
    if isinstance(values[0], bool):
        return {"type": "boolean", "description": kind}
    if isinstance(values[0], int):
        return {
            "type": "integer",
            "minimum": values[0],
            "maximum": values[-1],
            "description": kind,
        }
    return {"type": "string", "enum": list(values), "description": kind}


def _values(kind: Kind, rng: np.random.Generator) -> list[Any]:
    return [_drawn(rng, KINDS[type_]) for type_ in kind.parameters]


def _drawn(rng: np.random.Generator, values: Sequence[Any]) -> Any:
    return values[int(rng.integers(len(values)))]


def _said(kind: Kind, values: Sequence[Any]) -> str:
    told = (
        f"{name} {str(value).lower()}" for name, value in zip(kind.parameters, values, strict=True)
    )
    return " ".join([kind.verb, *told])
