"""AWS operations out of the service models that botocore carries.

Only the JSON documents are read, from an installed package, a wheel or a folder: botocore itself
is not imported. Each service is a folder with one folder a version, of which the newest counts.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib.resources.abc import Traversable
from typing import Any

from shoal.core.errors import InputError
from shoal.core.records import ToolSpec
from shoal.tools.schema import Bounds, about, cut, object_of
from shoal.tools.side_effects import side_effect_of
from shoal.tools.text import plain

_TYPES = {
    "structure": "object",
    "map": "object",
    "list": "array",
    "integer": "integer",
    "long": "integer",
    "double": "number",
    "float": "number",
    "boolean": "boolean",
}
_FORMATS = {"timestamp": "date-time", "blob": "byte"}
_LIMITS = {"string": ("minLength", "maxLength"), "list": ("minItems", "maxItems")}
_NUMBERS = ("integer", "long", "double", "float")


def from_botocore(
    data: Traversable,
    *,
    origin: str = "botocore",
    services: Collection[str] | None = None,
    served: Callable[[str], bool] = lambda name: False,
) -> Iterator[ToolSpec]:
    """Tools ``aws.SERVICE.Operation`` of all services, or of those named.

    data    the folder with one folder a service
    served  whether a tool can be called here, by its qualified name

    Raises :class:`InputError` for a document that is none.
    """
    for folder in sorted(data.iterdir(), key=lambda place: place.name):
        if not folder.is_dir() or (services is not None and folder.name not in services):
            continue
        document = newest(folder, "service-2.json")
        if document is not None:
            yield from _operations(document, folder.name, origin, served)


def newest(folder: Traversable, file: str) -> dict[str, Any] | None:
    """A document of the newest version of a service; None where it has none of this name."""
    for version in sorted((x for x in folder.iterdir() if x.is_dir()), key=lambda x: x.name)[::-1]:
        for name in (file, f"{file}.gz"):
            place = version / name
            if place.is_file():
                return _read(place)
    return None


def _read(place: Traversable) -> dict[str, Any]:
    try:
        content = place.read_bytes()
        text = gzip.decompress(content) if place.name.endswith(".gz") else content
        document = json.loads(text)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{place} is no service model ({error}).") from error
    if not isinstance(document, dict):
        raise InputError(f"{place} is no service model: it holds no object.")
    return document


def _operations(
    document: Mapping[str, Any], service: str, origin: str, served: Callable[[str], bool]
) -> Iterator[ToolSpec]:
    shapes: Mapping[str, Any] = document.get("shapes", {})
    title = document.get("metadata", {}).get("serviceFullName", service)
    for operation, facts in document.get("operations", {}).items():
        name = f"aws.{service}.{operation}"
        method = facts.get("http", {}).get("method", "")
        yield ToolSpec(
            name=name,
            description=plain(facts.get("documentation")),
            parameters=_arguments(facts.get("input", {}).get("shape"), shapes),
            side_effect=side_effect_of(operation, method, readonly=bool(facts.get("readonly"))),
            origin=origin,
            service=title,
            served=served(name),
        )


def _arguments(shape: str | None, shapes: Mapping[str, Any]) -> dict[str, Any]:
    if shape is None or shape not in shapes:
        return object_of({}, [])
    schema = _schema(shape, shapes, Bounds(), 0)
    schema.pop("description", None)
    return schema


def _schema(shape: str, shapes: Mapping[str, Any], bounds: Bounds, depth: int) -> dict[str, Any]:
    facts = shapes.get(shape, {})
    kind = facts.get("type", "string")
    named = _TYPES.get(kind, "string")
    if not bounds.spend(depth):
        return cut(named)
    out: dict[str, Any] = {"type": named}
    if kind in _FORMATS:
        out["format"] = _FORMATS[kind]
    low, high = _LIMITS.get(kind, ("minimum", "maximum") if kind in _NUMBERS else ("", ""))
    if low and "min" in facts:
        out[low] = facts["min"]
    if high and "max" in facts:
        out[high] = facts["max"]
    if "enum" in facts:
        out["enum"] = facts["enum"]
    if kind == "structure":
        members: Mapping[str, Any] = facts.get("members", {})
        shown = {
            name: _member(member, shapes, own, depth + 1)
            for name, member, own in bounds.shared(members)
        }
        out["properties"] = shown
        if required := [name for name in facts.get("required", ()) if name in members]:
            out["required"] = required
        if hidden := len(members) - len(shown):
            out["description"] = f"({hidden} more keys)"
    elif kind == "list":
        out["items"] = _member(facts.get("member", {}), shapes, bounds, depth + 1)
    elif kind == "map":
        value = facts.get("value", {})
        out["additionalProperties"] = _member(value, shapes, bounds, depth + 1)
    return out


def _member(
    member: Mapping[str, Any], shapes: Mapping[str, Any], bounds: Bounds, depth: int
) -> dict[str, Any]:
    name = member.get("shape", "")
    schema = _schema(name, shapes, bounds, depth)
    said = member.get("documentation") or shapes.get(name, {}).get("documentation")
    if said and (text := about(said, depth)):
        schema["description"] = f"{text} {schema.get('description', '')}".strip()
    return schema
