"""One gateway to everything at hand: what is imported, other MCP servers, the local cloud."""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from shoal.core.errors import ConfigError
from shoal.core.records import ToolSpec
from shoal.envs.company import office
from shoal.envs.company.served import Offered
from shoal.tools import sources
from shoal.tools.gateway import Backend, Gateway, Joined, Shelf
from shoal.tools.gateway.shelf import Tools
from shoal.tools.mcp import connect
from shoal.tools.retrieval.index import ToolIndex
from shoal.tools.retrieval.kept import open_index


@asynccontextmanager
async def entrance(
    servers: Sequence[str],
    *,
    company: bool,
    left_out: Callable[[str], None] = lambda sentence: None,
) -> AsyncIterator[Gateway]:
    """A gateway, open as long as the block runs.

    servers   ``NAME=URL`` or ``NAME=COMMAND …`` of MCP servers
    company   serve AWS tools from a local cloud; its catalogue is imported if need be
    left_out  is told which tools of servers cannot be used, and why

    Raises :class:`ConfigError` for a server that is not named like that, :class:`InputError` for
    one that cannot be reached, or where there is no tool at all.
    """
    async with AsyncExitStack() as stack:
        backends: dict[str, Backend] = {}
        specs: list[ToolSpec] = []
        for one in servers:
            name, _, where = one.partition("=")
            if not name or not where or "." in name:
                raise ConfigError(f"A server is NAME=URL or NAME='COMMAND …', not {one!r}.")
            place = where if where.startswith(("http://", "https://")) else shlex.split(where)
            remote = await stack.enter_async_context(connect(name, place))
            for sentence in remote.left_out:
                left_out(sentence)
            backends[name] = remote
            specs += remote.tools
        parts: list[Tools] = [Shelf(specs)] if specs else []
        if company:
            sources.load("aws").close()
            cloud = office.office()
            stack.callback(office.close)
            backends |= cloud.gateway.backends
        if company or not specs:
            catalogue = sources.everything()
            index = open_index(catalogue)
            parts.append(Offered(catalogue) if company else catalogue)
        else:
            index = ToolIndex()
        if specs:
            index.add(specs, label="mcp")
        yield Gateway(
            Joined(*parts),
            lambda query, k: [found.name for found in index.search(query, k)],
            backends,
        )
