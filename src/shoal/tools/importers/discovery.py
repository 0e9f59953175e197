"""Methods of Google's APIs out of their discovery documents.

The documents are JSON files ``NAME.VERSION.json`` in one folder, in a wheel or elsewhere; no
client library is imported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from importlib.resources.abc import Traversable
from typing import Any

from shoal.core.errors import InputError
from shoal.core.records import ToolSpec
from shoal.tools.schema import Bounds, expanded, object_of
from shoal.tools.side_effects import side_effect_of
from shoal.tools.text import plain

_VERSION = re.compile(r"v(\d+)(?:p(\d+))?(?:(alpha|beta)(\d*))?")
_DEEPEST = 12
"""Levels of resources in one document."""


def from_discovery(document: Mapping[str, Any], *, origin: str = "") -> Iterator[ToolSpec]:
    """Tools ``google.API.VERSION.resource.method`` of one discovery document.

    Raises :class:`InputError` for a document without a name and version.
    """
    for _, spec in _named(document, origin):
        yield spec


def from_discovery_folder(folder: Traversable, *, origin: str = "") -> Iterator[ToolSpec]:
    """Every method of every API in a folder of documents, each in its ripest, newest version.

    A method that only a preview has is taken from the preview.
    """
    found: dict[str, list[tuple[tuple[int, ...], str]]] = {}
    for place in folder.iterdir():
        api, _, version = place.name.removesuffix(".json").partition(".")
        if place.name.endswith(".json") and version:
            found.setdefault(api, []).append((_age(version), place.name))
    for _, versions in sorted(found.items()):
        seen: set[str] = set()
        for _, name in sorted(versions, reverse=True):
            known = frozenset(seen)
            for short, spec in _named(_read(folder / name), origin):
                if short not in known:
                    seen.add(short)
                    yield spec


def _read(place: Traversable) -> Mapping[str, Any]:
    try:
        document = json.loads(place.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{place} is no discovery document ({error}).") from error
    if not isinstance(document, dict):
        raise InputError(f"{place} is no discovery document: it holds no object.")
    return document


def _named(document: Mapping[str, Any], origin: str) -> Iterator[tuple[str, ToolSpec]]:
    """Tools with their names inside the API, which versions have in common."""
    api, version = document.get("name"), document.get("version")
    if not isinstance(api, str) or not isinstance(version, str):
        raise InputError("A discovery document has a name and a version; this one has not.")
    title = str(document.get("canonicalName") or document.get("title") or api)
    schemas = document.get("schemas", {})
    revision = f"discovery {api} {version} {document.get('revision', '')}".strip()
    for name, method in _methods(document, 0):
        short = str(method.get("id", name)).removeprefix(f"{api}.")
        spec = ToolSpec(
            name=f"google.{api}.{version}.{short}",
            description=plain(method.get("description")),
            parameters=_arguments(method, schemas),
            side_effect=side_effect_of(name, str(method.get("httpMethod", ""))),
            origin=origin or revision,
            service=title,
            served=False,
        )
        yield short, spec


def _age(version: str) -> tuple[int, ...]:
    """A key that sorts versions: v1alpha < v2beta1 < v1 < v2."""
    match = _VERSION.search(version)
    if match is None:
        return (0, 0, 0, 0)
    major, point, stage, number = match.groups()
    ripe = {"alpha": 1, "beta": 2, None: 3}[stage]
    return (ripe, int(major), int(point or 0), int(number or 0))


def _methods(part: Mapping[str, Any], depth: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield from part.get("methods", {}).items()
    if depth < _DEEPEST:
        for inner in part.get("resources", {}).values():
            yield from _methods(inner, depth + 1)


def _arguments(method: Mapping[str, Any], schemas: Mapping[str, Any]) -> dict[str, Any]:
    bounds = Bounds()
    properties: dict[str, Any] = {}
    required: list[str] = []
    for name, facts in method.get("parameters", {}).items():
        schema = expanded(facts, schemas.__getitem__, bounds, 1)
        properties[name] = {"type": "array", "items": schema} if facts.get("repeated") else schema
        if facts.get("required") is True:
            required.append(name)
    body = method.get("request", {})
    if "$ref" in body:
        name = "body" if body.get("parameterName", "body") not in properties else "request_body"
        properties[name] = expanded(body, schemas.__getitem__, bounds, 1)
    return object_of(properties, required)
