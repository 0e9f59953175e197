"""MCP: a team as one tool, for any client of the Model Context Protocol.

Needs the extra ``mcp``. ``team_server(team, engine).run("stdio")`` serves it to a desktop client.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from shoal.agents.outside import nobody
from shoal.agents.scheduler import run
from shoal.agents.team import Team
from shoal.core.errors import MissingExtra, ShoalError
from shoal.core.protocols import Engine

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer


def team_server(team: Team, engine: Engine | Mapping[str, Engine]) -> MCPServer:
    """A server with one tool, the team: a task (and material) in, the result out.

    A run without a result is an error of the tool; its text says why.
    """
    try:
        from mcp.server.mcpserver import MCPServer
        from mcp.server.mcpserver.exceptions import ToolError
    except ImportError as error:
        raise MissingExtra("Serving a team as an MCP tool", "mcp") from error

    async def work(task: str, material: str = "") -> str:
        try:
            result = await run(team, task, material, engine=engine, ask=nobody)
        except ShoalError as error:
            raise ToolError(str(error)) from error
        if result.result is None:
            raise ToolError(f"The team found no result ({result.outcome}): {result.why}.")
        return result.result

    server: MCPServer = MCPServer(team.name)
    about = team.about or team.objective or f"Ask the team {team.name}."
    server.add_tool(work, name=team.name.replace(".", "_"), description=about)
    return server
