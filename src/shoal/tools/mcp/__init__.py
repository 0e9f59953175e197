"""MCP: other people's servers as tools, and a gateway as a server. Needs the extra ``mcp``."""

from shoal.tools.mcp.client import Remote, connect, from_mcp
from shoal.tools.mcp.server import gateway_server
from shoal.tools.mcp.serving import http_app, serve_stdio

__all__ = ["Remote", "connect", "from_mcp", "gateway_server", "http_app", "serve_stdio"]
