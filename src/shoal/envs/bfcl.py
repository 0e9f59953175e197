"""The Berkeley Function-Calling Leaderboard's items, out of the package that carries them.

Only the data of ``bfcl-eval`` (Apache-2.0) is read: what it depends on is heavy and pinned to old
versions, so it is installed without its dependencies and never imported. Python categories only:
an item has one turn, tools with JSON schemas, and for every argument the set of values that are
right. An empty text among these says that an argument may be left out.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.core.errors import ConfigError, InputError, ShoalError, nearest
from shoal.core.records import ToolSpec
from shoal.envs.calls.task import CallTask
from shoal.envs.calls.values import Fields
from shoal.envs.calls.wanted import BadTruth, Wanted, wanted

logger = logging.getLogger(__name__)

PACKAGE = "bfcl-eval==2026.3.23"
CATEGORIES = (
    "simple_python",
    "multiple",
    "parallel",
    "parallel_multiple",
    "live_simple",
    "live_multiple",
    "live_parallel",
    "live_parallel_multiple",
    "irrelevance",
    "live_irrelevance",
)
"""Single turns in Python's types; in the irrelevance ones no call is wanted."""
HELD_OUT = 1_000_000
"""Seeds from here on count the items that are never trained on."""
_TYPES = {
    "dict": "object",
    "float": "number",
    "double": "number",
    "tuple": "array",
    "list": "array",
    "bool": "boolean",
    "int": "integer",
    "String": "string",
}
_PLAIN = ("object", "array", "string", "integer", "number", "boolean")


class MissingData(ShoalError):
    """BFCL's data is not installed."""


@dataclass(frozen=True, slots=True)
class Item:
    """One request of BFCL."""

    id: str
    request: str
    tools: tuple[ToolSpec, ...]
    wanted: Wanted


@dataclass(frozen=True, slots=True)
class Rejected:
    """An item that cannot be used, and why."""

    id: str
    reason: str


class Bfcl(CallTask):
    """Items of some categories; every ``apart``-th is held out, and a seed counts the others.

    categories  see :data:`CATEGORIES`
    longest     characters of tools and request at most, so that prompts stay short
    """

    def __init__(
        self,
        categories: Sequence[str] = ("simple_python",),
        dialect: str = "hermes",
        longest: int | None = None,
        apart: int = 5,
        folder: str | None = None,
    ) -> None:
        super().__init__(dialect)
        if apart < 2:
            raise ConfigError(f"Every {apart}th item held out leaves none to train on: give 2.")
        self.name = f"bfcl {'+'.join(categories)}"
        place = Path(folder) if folder else data_folder()
        self.rejected: tuple[Rejected, ...] = ()
        items: list[Item] = []
        for category in categories:
            found, rejected = read_items(place, category)
            items += found
            self.rejected += rejected
        short = [one for one in items if longest is None or self._size(one) <= longest]
        self.held_out = tuple(short[::apart])
        self.train = tuple(one for at, one in enumerate(short) if at % apart)
        if not self.train or not self.held_out:
            raise ConfigError(
                f"Of {len(items)} items of {self.name} only {len(short)} have at most {longest} "
                "characters: raise longest."
            )

    def ask(self, seed: int) -> tuple[tuple[ToolSpec, ...], str, Wanted]:
        """Tools and request of an item; a seed beyond the items starts over."""
        items = self.held_out if seed >= HELD_OUT else self.train
        item = items[(seed - HELD_OUT if seed >= HELD_OUT else seed) % len(items)]
        return item.tools, item.request, item.wanted

    def _size(self, item: Item) -> int:
        return len(self.described(item.tools)) + len(item.request)


def data_folder() -> Path:
    """Where bfcl-eval's data is; it is not imported. Raises :class:`MissingData`."""
    spec = importlib.util.find_spec("bfcl_eval")
    if spec is None or not spec.submodule_search_locations:
        raise MissingData(
            "BFCL's items need the data of bfcl-eval, which is installed without what it depends "
            f"on: pip install --no-deps {PACKAGE}."
        )
    return Path(spec.submodule_search_locations[0], "data")


def read_items(folder: Path, category: str) -> tuple[list[Item], tuple[Rejected, ...]]:
    """Items of a category, and those that were rejected, each with its id.

    Raises :class:`ConfigError` for another category and :class:`InputError` for files that cannot
    be read.
    """
    if category not in CATEGORIES:
        raise ConfigError(
            f"There is no category {category!r}: take some of {', '.join(CATEGORIES)}."
            f"{nearest(category, CATEGORIES)}"
        )
    truths: dict[str, Any] = {}
    if "irrelevance" not in category:
        lines = _lines(folder / "possible_answer" / f"BFCL_v4_{category}.json")
        truths = {line["id"]: line["ground_truth"] for line in lines}
    items, rejected = [], []
    for line in _lines(folder / f"BFCL_v4_{category}.json"):
        try:
            items.append(_item(line, truths))
        except BadTruth as error:
            rejected.append(Rejected(line["id"], str(error)))
    if rejected:
        names = ", ".join(one.id for one in rejected)
        logger.info("%d items of %s have no usable truth: %s", len(rejected), category, names)
    return items, tuple(rejected)


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read BFCL's file {path}: {error}.") from error


def _item(line: Mapping[str, Any], truths: Mapping[str, Any]) -> Item:
    """Raises :class:`BadTruth` for an item without a truth that its tools can meet."""
    id_ = str(line["id"])
    tools = tuple(
        ToolSpec(one["name"], one.get("description", ""), _schema(one["parameters"]))
        for one in line["function"]
    )
    request = "\n".join(message["content"] for message in line["question"][0])
    if not truths:
        return Item(id_, request, tools, Wanted(id_))
    if id_ not in truths:
        raise BadTruth(f"Example {id_} has no ground truth.")
    calls, optional = [], []
    for one in truths[id_]:
        if not isinstance(one, dict) or len(one) != 1:
            raise BadTruth(f"Example {id_}: a wanted call is one name with its arguments.")
        ((name, arguments),) = one.items()
        if not isinstance(arguments, dict):
            raise BadTruth(f"Example {id_}: the arguments of {name!r} are no object.")
        calls.append((name, {key: _accepted(id_, key, v) for key, v in arguments.items()}))
        optional.append(frozenset(key for key, values in arguments.items() if "" in values))
    return Item(id_, request, tools, wanted(id_, calls, tools, optional=optional))


def _accepted(id_: str, key: str, values: Any) -> list[Any]:
    """Right values of an argument; an empty text stands for none, and comes last."""
    if not isinstance(values, list):
        raise BadTruth(f"Example {id_}: the right values of {key!r} are no list.")
    given = [_value(id_, one) for one in values if one != ""]
    return given + [""] * (len(given) < len(values))


def _value(id_: str, value: Any) -> Any:
    """A right value: fields of objects have sets of right values of their own."""
    if isinstance(value, dict):
        return Fields(
            {key: tuple(_accepted(id_, key, values)) for key, values in value.items()},
            frozenset(key for key, values in value.items() if "" in values),
        )
    if isinstance(value, list):
        return [_value(id_, one) for one in value]
    return value


def _schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON schema out of BFCL's, which names types as Python does."""
    found = dict(schema)
    kind = found.get("type")
    kind = _TYPES.get(str(kind), kind)
    if kind in _PLAIN:
        found["type"] = kind
    else:
        found.pop("type", None)  # "any"
    found.pop("optional", None)
    if isinstance(found.get("properties"), dict):
        found["properties"] = {key: _schema(one) for key, one in found["properties"].items()}
    if isinstance(found.get("items"), dict):
        found["items"] = _schema(found["items"])
    return found
