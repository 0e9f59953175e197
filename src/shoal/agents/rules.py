"""Rules by name: a small call grammar and the registries that give its names a meaning.

``judge(editor)``, ``any(rounds(3), consensus(0.8))`` or plain ``all`` are the same in Python and
in a team file. A call is data: it can be compared, stored and printed; a registry turns it into
the function that the scheduler uses. In TOML a rule may also be a table: its first key is the
rule, that key's value the first argument, the other keys are options, and a table inside stands
for numbers by name: ``{vote = "weighted", weights = {ann = 3}}`` is
``vote(weighted, weights=by(ann=3))``.

Other distributions add rules through entry points (``shoal.turns``, ``shoal.reducers``, ...),
each naming a factory like those registered here.

    value = number | true | false | name | 'text' | "text" | [value, ...] | call
    call  = name [ "(" [argument {"," argument}] ")" ]      argument = [name "="] value
"""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType, SimpleNamespace
from typing import Annotated, Any, Generic, TypeVar, Union, get_type_hints

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from shoal.core.errors import ConfigError, nearest

Value = Union[str, int, float, bool, "Call", tuple["Value", ...]]

_NAME = re.compile(r"[^\W\d][\w.-]*")
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)(?![\w.])
      | (?P<name>[^\W\d][\w.-]*)
      | (?P<string>"(?:[^"\\]|\\.)*"|'[^']*')
      | (?P<sign>[()\[\],=])
    )""",
    re.VERBOSE,
)
_DEEPEST = 20


@dataclass(frozen=True, slots=True)
class Call:
    """A rule and its arguments, as written: ``judge(editor)`` is ``Call("judge", ("editor",))``."""

    name: str
    args: tuple[Value, ...] = ()
    options: tuple[tuple[str, Value], ...] = ()

    def __str__(self) -> str:
        inside = [_written(value) for value in self.args]
        inside += [f"{name}={_written(value)}" for name, value in self.options]
        return f"{self.name}({', '.join(inside)})" if inside else self.name


def _written(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{', '.join(_written(one) for one in value)}]"
    if isinstance(value, Call):
        return str(value) if value.args or value.options else f"{value}()"
    if isinstance(value, str) and not (_NAME.fullmatch(value) and value not in ("true", "false")):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


@functools.lru_cache(maxsize=1024)
def parse(text: str) -> Call:
    """The call a text stands for; raises :class:`ConfigError` naming what cannot be read."""
    reader = _Reader(text)
    value = reader.value(0)
    reader.end()
    if isinstance(value, str):
        return Call(value)
    if not isinstance(value, Call):
        raise ConfigError(f"{text!r} is not a rule: write a name such as 'all' or 'rounds(2)'.")
    return Call(value.name, value.args, value.options)


def from_table(table: Mapping[str, Any]) -> Call:
    """The call that a table in a team file stands for; raises :class:`ConfigError`."""
    if not table:
        raise ConfigError("A rule cannot be an empty table: name it, such as {rounds = 2}.")
    (name, first), *rest = table.items()
    args = () if first is True else (_from_toml(name, first),)
    return Call(name, args, tuple((key, _from_toml(key, value)) for key, value in rest))


def _from_toml(key: str, value: Any) -> Value:
    if isinstance(value, Mapping):
        return Call("by", (), tuple((str(k), _from_toml(str(k), v)) for k, v in value.items()))
    if isinstance(value, list):
        return tuple(_from_toml(key, one) for one in value)
    if not isinstance(value, str | int | float):
        raise ConfigError(f"The value {value!r} of {key!r} cannot be part of a rule.")
    return value


class _Reader:
    """Recursive descent over the tokens of one rule."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(self._split(text))
        self._at = 0

    def _split(self, text: str) -> Iterator[tuple[str, str]]:
        at, end = 0, len(text.rstrip())
        while at < end:
            match = _TOKEN.match(text, at)
            if match is None or match.lastgroup is None:
                raise ConfigError(
                    f"The rule {text!r} cannot be read from {text[at:].strip()!r} on."
                )
            yield match.lastgroup, match[match.lastgroup]
            at = match.end()

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("end", "")

    def _take(self, sign: str) -> bool:
        found = self._peek() == ("sign", sign)
        self._at += found
        return found

    def _fail(self, wanted: str) -> ConfigError:
        kind, text = self._peek()
        got = "its end" if kind == "end" else repr(text)
        return ConfigError(f"The rule {self._text!r} has {got} where {wanted} should be.")

    def end(self) -> None:
        if self._peek()[0] != "end":
            raise self._fail("its end")

    def value(self, depth: int) -> Value:
        kind, text = self._peek()
        if depth > _DEEPEST:
            raise ConfigError(f"A rule may nest {_DEEPEST} deep, not deeper.")
        if self._take("["):
            return self._list(depth)
        if kind not in ("number", "name", "string"):
            raise self._fail("a name or a value")
        self._at += 1
        if kind == "number":
            return int(text) if re.fullmatch(r"-?\d+", text) else float(text)
        if kind == "string":
            return self._string(text)
        if self._take("("):
            return self._call(text, depth)
        return text == "true" if text in ("true", "false") else text

    def _string(self, text: str) -> str:
        if text.startswith("'"):
            return text[1:-1]
        try:
            return str(json.loads(text))
        except ValueError as error:
            raise ConfigError(f"The text {text} in {self._text!r} cannot be read.") from error

    def _list(self, depth: int) -> tuple[Value, ...]:
        values: list[Value] = []
        while not self._take("]"):
            values.append(self.value(depth + 1))
            if not self._take(",") and self._peek() != ("sign", "]"):
                raise self._fail("',' or ']'")
        return tuple(values)

    def _call(self, name: str, depth: int) -> Call:
        args: list[Value] = []
        options: dict[str, Value] = {}
        while not self._take(")"):
            value = self.value(depth + 1)
            if isinstance(value, str) and self._take("="):
                if value in options:
                    raise ConfigError(f"The rule {self._text!r} gives {value!r} twice.")
                options[value] = self.value(depth + 1)
            elif options:
                raise self._fail("a named argument (unnamed ones come first)")
            else:
                args.append(value)
            if not self._take(",") and self._peek() != ("sign", ")"):
                raise self._fail("',' or ')'")
        return Call(name, tuple(args), tuple(options.items()))


@dataclass(frozen=True, slots=True)
class _MemberMark:
    """Marks parameters that must name members; ``single``: one that has no copies."""

    single: bool


class _RuleMark:
    """Marks parameters that are rules of the same family."""


def _as_mapping(value: object) -> object:
    if not isinstance(value, Call) or value.name != "by" or value.args:
        raise ValueError(f"Input should be by(name=number, ...), not {value!s}")
    return dict(value.options)


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _is_rule(value: object) -> object:
    if not isinstance(value, str | Call):
        raise ValueError(f"Input should be a rule, not {value!r}")
    return value


Member = Annotated[str, _MemberMark(single=True)]
"""A parameter that names one member, of whom there is only one."""

Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
"""A parameter that is one word or a list of them."""

Members = Annotated[tuple[str, ...], BeforeValidator(_as_tuple), _MemberMark(single=False)]
"""A parameter that names one member or a list of them."""

Shares = Annotated[dict[str, float], BeforeValidator(_as_mapping), _MemberMark(single=False)]
"""A parameter that gives numbers to members, written ``by(ann=3, bob=1)``."""

Numbers = Annotated[dict[str, float], BeforeValidator(_as_mapping)]
"""A parameter that gives numbers to names, written ``by(first=3, second=1)``."""

Rule = Annotated[Any, BeforeValidator(_is_rule)]
"""A parameter that is a rule of another family."""

Inner = Annotated[Any, _RuleMark()]
"""A parameter that is a rule of the same family, or a function of its type."""

NOBODY: Mapping[str, float] = MappingProxyType({})
"""The default of a parameter that gives numbers to names: none."""

F = TypeVar("F")
Factory = TypeVar("Factory", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class _Entry(Generic[F]):
    """A factory, its signature, and what its parameters accept."""

    factory: Callable[..., F]
    signature: inspect.Signature
    hints: dict[str, Any]
    checks: dict[str, TypeAdapter[Any]]

    def form(self) -> str:
        """The parameters as one would write them."""
        shown = []
        for name, parameter in self.signature.parameters.items():
            if parameter.kind is parameter.VAR_POSITIONAL:
                shown.append(f"{name}, ...")
            elif parameter.default is parameter.empty:
                shown.append(name)
            elif isinstance(parameter.default, Mapping):
                shown.append(f"{name}=by()")
            else:
                shown.append(f"{name}={_written(parameter.default)}")
        return f"({', '.join(shown)})"


class Registry(Generic[F]):
    """The rules of one family by name; each is made by a factory from a call's arguments.

    ``group`` names the entry points through which other distributions add rules; they are
    looked up when a name is not known here, and cannot replace one that is.
    """

    def __init__(self, family: str, group: str = "") -> None:
        self.family = family
        self.group = group
        self._factories: dict[str, Callable[..., F]] = {}
        self._entries: dict[str, _Entry[F]] = {}

    def register(self, name: str) -> Callable[[Factory], Factory]:
        """Decorator: make a factory known under ``name``; its hints say what it accepts."""

        def add(factory: Factory) -> Factory:
            self._factories[name] = factory
            return factory

        return add

    def names(self) -> tuple[str, ...]:
        """All known rules, sorted."""
        return tuple(sorted({*self._factories, *self._offered()}))

    def _offered(self) -> dict[str, EntryPoint]:
        """What other distributions offer, by name."""
        if not self.group:
            return {}
        return {point.name: point for point in entry_points(group=self.group)}

    def _load(self, name: str) -> bool:
        """Register the rule that an entry point of this name offers; false where none does."""
        point = self._offered().get(name)
        if point is None:
            return False
        try:
            self._factories[name] = point.load()
        except Exception as error:
            raise ConfigError(
                f"The {self.family} rule {name!r} of {point.value!r} cannot be loaded: "
                f"{type(error).__name__}: {error}."
            ) from error
        return True

    def make(self, rule: Call | str | F) -> F:
        """The function a rule stands for; a function stands for itself.

        Raises :class:`ConfigError` for an unknown rule (naming the nearest) or a wrong argument.
        """
        if not isinstance(rule, Call | str):
            return rule
        call = parse(rule) if isinstance(rule, str) else rule
        entry = self._entry(call)
        bound = self._bind(call, entry)
        for name, value in bound.arguments.items():
            try:
                bound.arguments[name] = entry.checks[name].validate_python(value)
            except ValidationError as error:
                raise ConfigError(
                    f"The {self.family} rule {str(call)!r} has a wrong {name}: "
                    f"{error.errors()[0]['msg']}; its form is {call.name}{entry.form()}."
                ) from error
        return entry.factory(*bound.args, **bound.kwargs)

    def members_of(self, rule: Call | str | F, *, single: bool = False) -> tuple[str, ...]:
        """The members that a well-formed rule and the rules inside it name; with ``single`` only
        those of whom there must be one."""
        if not isinstance(rule, Call | str):
            return ()
        call = parse(rule) if isinstance(rule, str) else rule
        entry = self._entry(call)
        named: list[str] = []
        for parameter, value in self._bind(call, entry).arguments.items():
            values: tuple[Any, ...] = value if isinstance(value, tuple) else (value,)
            if isinstance(value, Call) and value.name == "by":
                values = tuple(name for name, _ in value.options)
            for mark in getattr(entry.hints[parameter], "__metadata__", ()):
                if isinstance(mark, _MemberMark) and mark.single >= single:
                    named += values
                elif isinstance(mark, _RuleMark):
                    for inner in values:
                        named += self.members_of(inner, single=single)
        return tuple(named)

    def _bind(self, call: Call, entry: _Entry[F]) -> inspect.BoundArguments:
        try:
            return entry.signature.bind(*call.args, **dict(call.options))
        except TypeError as error:
            raise ConfigError(
                f"The {self.family} rule {str(call)!r} does not fit its form "
                f"{call.name}{entry.form()}: {error}."
            ) from error

    def _entry(self, call: Call) -> _Entry[F]:
        if call.name not in self._factories and not self._load(call.name):
            raise ConfigError(
                f"There is no {self.family} rule {call.name!r}."
                f"{nearest(call.name, self.names())} Known: {', '.join(self.names())}."
            )
        if call.name not in self._entries:
            factory = self._factories[call.name]
            signature = inspect.signature(factory)
            asked = {name: p.annotation for name, p in signature.parameters.items()}
            hints = get_type_hints(
                SimpleNamespace(__annotations__=asked),
                globalns=getattr(factory, "__globals__", {}),
                include_extras=True,
            )
            checks = {
                name: TypeAdapter[Any](_many(hint) if _variadic(signature, name) else hint)
                for name, hint in hints.items()
            }
            self._entries[call.name] = _Entry(factory, signature, hints, checks)
        return self._entries[call.name]


def _variadic(signature: inspect.Signature, name: str) -> bool:
    return signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL


def _many(hint: Any) -> Any:
    return tuple[hint, ...]
