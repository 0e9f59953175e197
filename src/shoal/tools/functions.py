"""Python functions as tools: name, docstring and type hints become what a model sees."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model

from shoal.core.errors import ConfigError
from shoal.core.records import SideEffect, ToolSpec

KEY = "idempotency_key"
"""A parameter that models do not see: what a repeated call is known by."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function a model may call; ``arguments`` checks what the model wrote."""

    spec: ToolSpec
    fn: Callable[..., Any]
    arguments: type[BaseModel]
    keyed: bool = False

    @property
    def name(self) -> str:
        """What models call it."""
        return self.spec.name

    def __repr__(self) -> str:
        return f"Tool({self.name!r})"

    @property
    def repeatable(self) -> bool:
        """Whether a call may be made again after a crash."""
        return self.keyed or self.spec.side_effect == "read"


def from_function(
    fn: Callable[..., Any], *, side_effect: SideEffect = "read", name: str | None = None
) -> Tool:
    """A tool out of a function: its name, docstring and type hints are what a model sees.

    Raises :class:`ConfigError` for a parameter without a type hint.
    """
    name = name or fn.__name__
    hints = get_type_hints(fn)
    fields: dict[str, Any] = {}
    keyed = False
    for parameter in inspect.signature(fn).parameters.values():
        if parameter.name == KEY:
            keyed = True
            continue
        if parameter.name not in hints or parameter.kind is parameter.VAR_POSITIONAL:
            raise ConfigError(
                f"The tool {name!r} needs a type hint for its parameter {parameter.name!r}."
            )
        empty = parameter.default is parameter.empty
        fields[parameter.name] = (hints[parameter.name], ... if empty else parameter.default)
    config = ConfigDict(extra="forbid")
    model = create_model(name, __config__=config, **fields)
    schema = model.model_json_schema()
    about = inspect.getdoc(fn) or ""
    spec = ToolSpec(name, about, schema, side_effect, origin=f"python {fn.__module__}")
    return Tool(spec, fn, model, keyed)
