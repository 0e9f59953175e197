"""JSON schemas of arguments, with references put in place of their names, and bounded.

A schema that contains itself has no end, and one that branches has more nodes than a prompt can
hold: depth and nodes are limited, and where a limit cuts, what is left accepts anything of its
type and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from shoal.tools.text import brief, plain

DEEPEST = 5
MOST_NODES = 250
CUT = "(not shown further)"
ABOUT = (400, 160)
"""Characters kept of the documentation of an argument, and of what is inside an argument."""

Resolve = Callable[[str], Mapping[str, Any]]
K = TypeVar("K")
V = TypeVar("V")

_KEPT = [
    "type",
    "enum",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "pattern",
    "format",
    "default",
    "minItems",
    "maxItems",
    "uniqueItems",
    "required",
    "nullable",
    "deprecated",
]
_MANY = ("oneOf", "anyOf", "allOf")
_MOST_VALUES = 200


def about(documentation: object, depth: int = 0) -> str:
    """An argument's documentation as kept in a schema."""
    return brief(plain(documentation), ABOUT[depth > 1])


class Bounds:
    """How many nodes of one tool's schema may still be written."""

    def __init__(self, nodes: int = MOST_NODES) -> None:
        self.left = nodes

    def spend(self, depth: int) -> bool:
        """Count one more node; false where it is to be cut."""
        whole = depth <= DEEPEST and self.left > 0
        self.left -= 1
        return whole

    def shared(self, parts: Mapping[K, V]) -> Iterator[tuple[K, V, Bounds]]:
        """Parts of a node, each with an equal part of what is left; none where nothing is.

        What a part does not use goes to those after it, so that a large first argument does not
        hide the others.
        """
        for number, (key, part) in enumerate(parts.items()):
            if self.left <= 0:
                return
            own = Bounds(max(1, self.left // (len(parts) - number)))
            given = own.left
            yield key, part, own
            self.left -= given - own.left


def cut(kind: object = "object") -> dict[str, Any]:
    """What stands where a limit cuts."""
    return {"type": kind, "description": CUT} if kind else {"description": CUT}


def expanded(
    schema: Mapping[str, Any], resolve: Resolve, bounds: Bounds, depth: int = 0
) -> dict[str, Any]:
    """A JSON schema without ``$ref``, within ``bounds``.

    ``resolve`` returns what a reference stands for and raises ``KeyError`` where it cannot.
    """
    schema = _followed(schema, resolve)
    if not bounds.spend(depth):
        return cut(schema.get("type"))
    out = {key: schema[key] for key in _KEPT if key in schema}
    if isinstance(out.get("enum"), list):
        out["enum"] = out["enum"][:_MOST_VALUES]
    if not isinstance(out.get("required", []), list):  # discovery documents put a boolean there
        del out["required"]
    if text := about(schema.get("description"), depth):
        out["description"] = text

    def inner(one: Any, own: Bounds) -> dict[str, Any]:
        return expanded(one, resolve, own, depth + 1) if isinstance(one, Mapping) else {}

    properties = schema.get("properties")
    if isinstance(properties, Mapping):
        out.setdefault("type", "object")
        shared = bounds.shared(properties)
        out["properties"] = {str(key): inner(value, own) for key, value, own in shared}
        if hidden := len(properties) - len(out["properties"]):
            out["description"] = f"{out.get('description', '')} ({hidden} more keys)".strip()
    if isinstance(items := schema.get("items"), Mapping):
        out["items"] = inner(items, bounds)
    if isinstance(extra := schema.get("additionalProperties"), Mapping):
        out["additionalProperties"] = inner(extra, bounds)
    elif extra is False and isinstance(properties, Mapping):
        out["additionalProperties"] = len(out["properties"]) < len(properties)
    for key in _MANY:
        if isinstance(options := schema.get(key), list):
            shared = bounds.shared(dict(enumerate(options)))
            out[key] = [inner(one, own) for _, one, own in shared] or [{}]
    return out


def _followed(schema: Mapping[str, Any], resolve: Resolve) -> Mapping[str, Any]:
    """What a chain of references ends in; {} for one that goes in a circle or nowhere."""
    seen: set[str] = set()
    given = schema
    while isinstance(name := schema.get("$ref"), str):
        if name in seen:
            return {"description": CUT}
        seen.add(name)
        try:
            schema = resolve(name)
        except (KeyError, TypeError, IndexError, ValueError):
            return {"description": f"(refers to {name[:80]}, which does not exist)"}
    if schema is not given and given.get("description"):
        return {**schema, "description": given["description"]}
    return schema


def object_of(properties: Mapping[str, Any], required: list[str]) -> dict[str, Any]:
    """The schema of a tool's arguments."""
    schema: dict[str, Any] = {"type": "object", "properties": dict(properties)}
    if required:
        schema["required"] = required
    return schema
