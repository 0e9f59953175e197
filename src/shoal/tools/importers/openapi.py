"""Operations out of an OpenAPI description, 3.x or 2.0 (Swagger).

Arguments of path, query and header stand beside the properties of a JSON body, as one flat
object; a property of the body that has the name of another argument moves into ``body``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from shoal.core.errors import InputError
from shoal.core.records import ToolSpec
from shoal.tools.schema import Bounds, Resolve, expanded, object_of
from shoal.tools.side_effects import side_effect_of
from shoal.tools.text import plain

_METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
_BODIES = ("application/json", "application/x-www-form-urlencoded", "multipart/form-data")
_LARGEST = 200 << 20
"""Bytes of a description that are fetched."""
_SIGNS = re.compile(r"[^\w-]+")


def from_openapi(
    document: Mapping[str, Any], *, name: str, origin: str = "", served: bool = False
) -> Iterator[ToolSpec]:
    """Tools ``NAME.operation`` of one description; an operation without an id is named by its
    method and path.

    Raises :class:`InputError` for a document without paths.
    """
    paths = document.get("paths")
    if not isinstance(paths, Mapping):
        raise InputError(f"The OpenAPI document of {name!r} has no object 'paths'.")
    about = document.get("info", {})
    title = str(about.get("title", name)) if isinstance(about, Mapping) else name
    version = about.get("version", "") if isinstance(about, Mapping) else ""
    origin = origin or f"openapi {name} {version}".strip()
    resolve = _resolver(document)
    for path, item in paths.items():
        item = _followed(item, resolve)
        for method in _METHODS:
            facts = item.get(method)
            if not isinstance(facts, Mapping):
                continue
            operation = str(facts.get("operationId") or f"{method} {path}")
            said = [plain(facts.get("summary")), plain(facts.get("description"))]
            tags = [tag for tag in facts.get("tags", ()) if isinstance(tag, str)]
            yield ToolSpec(
                name=f"{name}.{_SIGNS.sub('.', operation).strip('.')}",
                description=_joined(said),
                parameters=_arguments(item, facts, resolve),
                side_effect=side_effect_of(operation.rsplit("/", 1)[-1], method),
                origin=origin,
                service=" ".join([title, *tags[:1]]),
                served=served,
            )


def read(place: str) -> dict[str, Any]:
    """The document behind a path or URL, JSON or YAML.

    Raises :class:`InputError` where it cannot be had or is not a description.
    """
    content = _fetched(place) if place.startswith(("http://", "https://")) else _file(place)
    try:
        document = json.loads(content)
    except ValueError:
        document = _yaml(content, place)
    if not isinstance(document, dict):
        raise InputError(f"{place} is no OpenAPI document: it holds no object.")
    return document


def _file(place: str) -> bytes:
    try:
        return Path(place).expanduser().read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read {place}: {error.strerror}.") from error


def _fetched(place: str) -> bytes:
    content = bytearray()
    try:
        with httpx.stream("GET", place, follow_redirects=True, timeout=60) as answer:
            answer.raise_for_status()
            for piece in answer.iter_bytes():
                content += piece
                if len(content) > _LARGEST:
                    raise InputError(f"{place} is larger than {_LARGEST >> 20} MB: save a part.")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise InputError(f"Cannot fetch {place}: {error}.") from error
    return bytes(content)


def _yaml(content: bytes, place: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"{place} is neither JSON nor YAML ({first}).") from error


def _resolver(document: Mapping[str, Any]) -> Resolve:
    def resolve(name: str) -> Mapping[str, Any]:
        if not name.startswith("#/"):
            raise KeyError(name)
        found: Any = document
        for part in name[2:].split("/"):
            found = found[part.replace("~1", "/").replace("~0", "~")]
        if not isinstance(found, Mapping):
            raise KeyError(name)
        return found

    return resolve


def _followed(part: Any, resolve: Resolve) -> Mapping[str, Any]:
    for _ in range(20):
        if not isinstance(part, Mapping):
            return {}
        if "$ref" not in part:
            return part
        try:
            part = resolve(part["$ref"])
        except (KeyError, TypeError):
            return {}
    return {}


def _joined(said: list[str]) -> str:
    summary, text = said
    if not summary or text.startswith(summary):
        return text
    return f"{summary.rstrip('.')}. {text}".strip() if text else summary


def _arguments(
    item: Mapping[str, Any], facts: Mapping[str, Any], resolve: Resolve
) -> dict[str, Any]:
    bounds = Bounds()
    properties: dict[str, Any] = {}
    required: list[str] = []
    body: Mapping[str, Any] = {}
    for given in (*item.get("parameters", ()), *facts.get("parameters", ())):
        one = _followed(given, resolve)
        name, where = one.get("name"), one.get("in")
        if where == "body":  # 2.0
            body = one.get("schema", {})
            continue
        if not isinstance(name, str):
            continue
        inner = one.get("schema")
        schema: Mapping[str, Any] = inner if isinstance(inner, Mapping) else one
        about = {"description": one["description"]} if one.get("description") else {}
        properties[name] = expanded({**schema, **about}, resolve, bounds, 1)
        if one.get("required") is True and name not in required:
            required.append(name)
    request = _followed(facts.get("requestBody", {}), resolve)
    content = request.get("content", {})
    for kind in (*_BODIES, *content):
        if kind in content:
            body = content[kind].get("schema", {})
            break
    _add_body(body, properties, required, resolve, bounds)
    if "body" in properties and request.get("required") is True:
        required.append("body")
    return object_of(properties, required)


def _add_body(
    body: Mapping[str, Any],
    properties: dict[str, Any],
    required: list[str],
    resolve: Resolve,
    bounds: Bounds,
) -> None:
    if not body:
        return
    schema = expanded(body, resolve, bounds, 0)
    inside = schema.get("properties")
    if not isinstance(inside, dict) or set(inside) & set(properties):
        properties["body"] = schema
        return
    properties.update(inside)
    required += [name for name in schema.get("required", ()) if name in inside]
