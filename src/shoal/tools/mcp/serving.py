"""Serving a gateway's MCP server: over stdin and stdout, or over HTTP on this machine."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

from shoal.core.errors import ConfigError

if TYPE_CHECKING:
    from mcp.server.lowlevel import Server


async def serve_stdio(server: Server[Any]) -> None:
    """Serve until the client closes the line."""
    from mcp.server.stdio import stdio_server

    async with stdio_server() as (incoming, outgoing):
        await server.run(incoming, outgoing, server.create_initialization_options())


def http_app(server: Server[Any], host: str = "127.0.0.1") -> Any:
    """The server as an ASGI application at ``/mcp``.

    Raises :class:`ConfigError` for a host that is not this machine's own: whoever reaches it could
    call every tool.
    """
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise ConfigError(
            f"Tools are served on this machine only, not on {host!r}: put a proxy that asks for "
            "a key in front of 127.0.0.1."
        )
    return server.streamable_http_app(host=host, json_response=True, max_sessions=100)
