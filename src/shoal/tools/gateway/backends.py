"""Who answers calls: a function, a service, another server. Faults come typed."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from pydantic import ValidationError

from shoal.core.records import ToolSpec
from shoal.tools.functions import KEY, Tool
from shoal.tools.gateway.records import FaultKind


class BackendFault(Exception):
    """A call that its service did not answer well.

    ``sent`` says whether the service may have seen it; ``kind`` as in
    :class:`~shoal.tools.gateway.records.Fault`.
    """

    def __init__(self, kind: FaultKind, message: str, *, sent: bool = True) -> None:
        super().__init__(message)
        self.kind: FaultKind = kind
        self.sent = sent


class Backend(Protocol):
    """Answers calls of some tools.

    keyed  whether a call that is repeated under its key has no second effect
    """

    keyed: bool

    async def call(self, spec: ToolSpec, arguments: Mapping[str, Any], key: str) -> str:
        """The result as text; raises :class:`BackendFault`."""
        ...


class Functions:
    """Python functions as a backend; synchronous ones run in a thread."""

    keyed = False

    def __init__(self, tools: Iterable[Tool]) -> None:
        self.tools = {tool.name: tool for tool in tools}
        self.keyed = all(tool.keyed for tool in self.tools.values())

    async def call(self, spec: ToolSpec, arguments: Mapping[str, Any], key: str) -> str:
        """Call the function of this name."""
        tool = self.tools.get(spec.name)
        if tool is None:
            raise BackendFault("gone", f"There is no function {spec.name!r} any more.", sent=False)
        try:
            checked = tool.arguments.model_validate(dict(arguments))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise BackendFault("bad_arguments", f"{where}: {first['msg']}", sent=False) from error
        given = {name: getattr(checked, name) for name in tool.arguments.model_fields}
        if tool.keyed:
            given[KEY] = key
        try:
            if inspect.iscoroutinefunction(tool.fn):
                value = await tool.fn(**given)
            else:
                value = await asyncio.to_thread(tool.fn, **given)
        except Exception as error:  # what failed is the agent's to know
            raise BackendFault("failed", f"{type(error).__name__}: {error}") from error
        return value if isinstance(value, str) else json.dumps(value, default=str)
