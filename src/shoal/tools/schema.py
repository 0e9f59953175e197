"""JSON schemas of arguments, with references put in place of their names, and bounded.

A schema that contains itself has no end, and one that branches has more nodes than a prompt can
hold: depth and nodes are limited, and where a limit cuts, what is left accepts anything of its
type and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from shoal.tools.text import brief, plain

DEEPEST = 5
MOST_NODES = 250
CUT = "(not shown further)"
ABOUT = 400
"""Characters kept of an argument's documentation."""

Resolve = Callable[[str], Mapping[str, Any]]

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


def about(documentation: object) -> str:
    """An argument's documentation as kept in a schema."""
    return brief(plain(documentation), ABOUT)


class Bounds:
    """How much of one tool's schema is still to be written."""

    def __init__(self, nodes: int = MOST_NODES) -> None:
        self.left = nodes

    def spend(self, depth: int) -> bool:
        """Whether one more node at this depth fits; if so it is counted."""
        if depth > DEEPEST or self.left <= 0:
            return False
        self.left -= 1
        return True


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
    if text := about(schema.get("description")):
        out["description"] = text

    def inner(one: Any) -> dict[str, Any]:
        return expanded(one, resolve, bounds, depth + 1) if isinstance(one, Mapping) else {}

    if isinstance(properties := schema.get("properties"), Mapping):
        out.setdefault("type", "object")
        shown = {str(key): inner(value) for key, value in properties.items() if bounds.left > 0}
        out["properties"] = shown
        if hidden := len(properties) - len(shown):
            out["description"] = f"{out.get('description', '')} ({hidden} more keys)".strip()
    if isinstance(items := schema.get("items"), Mapping):
        out["items"] = inner(items)
    if isinstance(extra := schema.get("additionalProperties"), Mapping):
        out["additionalProperties"] = inner(extra)
    elif extra is False:
        out["additionalProperties"] = len(out.get("properties", {})) < len(properties or {})
    for key in _MANY:
        if isinstance(options := schema.get(key), list):
            out[key] = [inner(one) for one in options[:_MOST_VALUES] if bounds.left > 0] or [{}]
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
