"""Arguments against a tool's schema: the first fault, with its place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from shoal.core.errors import MissingExtra
from shoal.core.records import ToolSpec
from shoal.tools.gateway.records import Fault


def fault_in(spec: ToolSpec, arguments: Any) -> Fault | None:
    """What is wrong with the arguments of a call, or None.

    Raises :class:`MissingExtra` where the validator is not installed.
    """
    if not isinstance(arguments, Mapping):
        kind = type(arguments).__name__
        return Fault("bad_arguments", f"Arguments are an object, not {kind}.", "$")
    try:
        json.dumps(arguments)
    except (TypeError, ValueError, RecursionError) as error:
        return Fault("bad_arguments", f"Arguments are JSON, and not too deep: {error}.", "$")
    try:
        import jsonschema
    except ImportError as error:
        raise MissingExtra("A gateway", "mcp") from error
    try:
        validator = _validator(json.dumps(spec.parameters, default=dict))
        found = jsonschema.exceptions.best_match(validator.iter_errors(arguments))
    except jsonschema.SchemaError as error:
        sentence = f"The schema of {spec.name} is no JSON schema: {error.message[:200]}."
        return Fault("bad_schema", sentence)
    except RecursionError:
        return Fault("bad_schema", f"The schema of {spec.name}, or an argument, nests too deep.")
    if found is None:
        return None
    return Fault("bad_arguments", f"{found.json_path}: {_said(found)}", found.json_path)


@lru_cache(maxsize=512)
def _validator(schema: str) -> Any:
    import jsonschema

    read = json.loads(schema) or {"type": "object"}
    jsonschema.Draft202012Validator.check_schema(read)
    return jsonschema.Draft202012Validator(read)


def _said(error: Any) -> str:
    """The validator's sentence, without repeating a long argument."""
    message = str(error.message)
    return message if len(message) <= 300 else f"{message[:120]} … {message[-160:]}"
