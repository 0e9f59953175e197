"""Other people's MCP servers as tools: listed page by page, called with limits, never trusted.

A server may hang, answer without end, list the same page for ever, or describe tools in ways that
are no schema. None of that stops a gateway: what cannot be used is left out and named.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from shoal.core.errors import InputError, MissingExtra
from shoal.core.records import SideEffect, ToolSpec
from shoal.tools.gateway.backends import BackendFault
from shoal.tools.gateway.shelf import Shelf
from shoal.tools.mcp.http import bounded_client
from shoal.tools.mcp.stdio import MOST, bounded_stdio

PAGES = 1000
"""Pages of a listing that are read at most."""

_NAME = re.compile(r"[\w./:-]{1,128}", re.ASCII)
"""Names that are shown as they are."""

LONGEST_TEXT = 20_000
"""Characters kept of a tool's documentation."""

Where = str | Sequence[str] | Any
"""A URL, a command and its arguments, or an MCP server in this process."""


@dataclass(slots=True)
class Remote:
    """A connected server as a backend. ``left_out`` says which of its tools cannot be used, and
    why; ``tools`` holds the others under ``PREFIX.name``."""

    name: str
    client: Any
    timeout: float
    tools: Shelf = field(default_factory=Shelf)
    left_out: list[str] = field(default_factory=list)
    keyed: bool = False
    _theirs: dict[str, str] = field(default_factory=dict)

    async def refresh(self) -> None:
        """Read the server's listing again; raises :class:`InputError` where it does not answer."""
        import anyio

        self.left_out.clear()
        now: dict[str, ToolSpec] = {}
        cursor, seen = None, set()
        try:
            with anyio.fail_after(self.timeout):
                for _ in range(PAGES):
                    page = await self.client.list_tools(cursor=cursor, cache_mode="bypass")
                    for tool in page.tools:
                        self._take(tool, now)
                    cursor = page.next_cursor
                    if cursor is None or cursor in seen:
                        break
                    seen.add(cursor)
        except TimeoutError as error:
            raise InputError(
                f"The MCP server {self.name} did not list its tools within {self.timeout:g} s."
            ) from error
        except Exception as error:
            raise InputError(f"The MCP server {self.name} cannot list tools: {error}.") from error
        for name in self.tools.names:
            if name not in now:
                self.tools.remove(name)
        for spec in now.values():
            self.tools.add(spec)

    def _take(self, tool: Any, now: dict[str, ToolSpec]) -> None:
        spec = from_mcp(tool, self.name)
        if isinstance(spec, str):
            self.left_out.append(spec)
        elif spec.name in now:
            self.left_out.append(f"{spec.name}: listed twice, the first is kept")
        else:
            now[spec.name] = spec
            self._theirs[spec.name] = str(tool.name)

    async def call(self, spec: ToolSpec, arguments: Mapping[str, Any], key: str) -> str:
        """Call a tool of the server; its text, or JSON where it has structure."""
        from mcp import MCPError

        if spec.name not in self._theirs:
            raise BackendFault("gone", f"{self.name} has no tool {spec.name!r}.", sent=False)
        try:
            result = await self.client.call_tool(
                self._theirs[spec.name],
                dict(arguments),
                read_timeout_seconds=self.timeout,
                meta={"shoal/key": key},
            )
        except MCPError as error:
            raise BackendFault(_kind(error), f"{self.name}: {error}") from error
        except (TimeoutError, OSError) as error:
            raise BackendFault("unavailable", f"{self.name} is gone: {error}") from error
        except Exception as error:  # a server that does not keep to the protocol
            raise BackendFault("failed", f"{self.name} answered nonsense: {error}") from error
        text = _text(result)
        if result.is_error:
            raise BackendFault("failed", text[:2000])
        return text


def _kind(error: Any) -> Any:
    """A fault's kind by what the protocol says."""
    said = str(error).lower()
    if "timed out" in said or "timeout" in said:
        return "timeout"
    if "unknown tool" in said or "not found" in said:
        return "gone"
    if "closed" in said or "connection" in said:
        return "unavailable"
    return "failed"


def _text(result: Any) -> str:
    if result.structured_content is not None:
        return json.dumps(result.structured_content, ensure_ascii=False)
    parts = []
    for content in result.content:
        text = getattr(content, "text", None)
        parts.append(text if text is not None else f"[{content.type} content, not shown]")
    return "\n".join(parts)


def from_mcp(tool: Any, server: str) -> ToolSpec | str:
    """A listed tool as a spec; for one that cannot be used, a sentence about why.

    A server's word that a tool only reads is a hint: what is not said counts as destroying.
    """
    import jsonschema

    name = str(tool.name)
    if not _NAME.fullmatch(name):
        return f"{name[:40]!r}: no usable name"
    schema = tool.input_schema
    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except (jsonschema.SchemaError, RecursionError) as error:
        return f"{name}: its schema is none ({str(error).splitlines()[0][:80]})"
    if schema.get("type", "object") != "object":
        return f"{name}: its arguments are no object"
    hints = tool.annotations
    effect: SideEffect = "destroy"
    if hints is not None and hints.read_only_hint:
        effect = "read"
    elif hints is not None and hints.destructive_hint is False:
        effect = "write"
    about = str(tool.description or tool.title or "")[:LONGEST_TEXT]
    return ToolSpec(
        f"{server}.{name}", about, schema, effect, origin=f"mcp {server}", service=server
    )


@asynccontextmanager
async def connect(
    name: str,
    where: Where,
    *,
    timeout: float = 30.0,
    most: int = MOST,
    headers: dict[str, str] | None = None,
) -> AsyncIterator[Remote]:
    """Connect to a server and list its tools, which are called ``NAME.tool``.

    ``where`` is a URL, a command with its arguments, or a server object. Raises
    :class:`InputError` for one that cannot be reached, :class:`MissingExtra` without the SDK.
    """
    try:
        from mcp import Client
        from mcp.client.streamable_http import streamable_http_client
    except ImportError as error:
        raise MissingExtra("An MCP client", "mcp") from error
    import anyio

    if isinstance(where, str):
        transport: Any = streamable_http_client(where, http_client=bounded_client(most, headers))
    elif isinstance(where, list | tuple):
        transport = bounded_stdio(where, most=most)
    else:
        transport = where
    client = Client(transport, read_timeout_seconds=timeout, cache=None)
    begun = False
    try:
        with anyio.fail_after(timeout) as scope:
            async with client:
                scope.deadline = float("inf")
                remote = Remote(name, client, timeout)
                await remote.refresh()
                begun = True
                yield remote
    except InputError:
        raise
    except Exception as error:
        if begun:
            raise
        why = _first(error)
        raise InputError(f"The MCP server {name} cannot be reached: {why}.") from error


def _first(error: BaseException) -> str:
    """The cause in a group of errors, as text."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error).strip().rstrip(".") or type(error).__name__
