"""MCP: a gateway as a server, other servers as tools, and servers that misbehave."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import cast

import pytest

from patience import wait_until
from shoal.core.errors import ConfigError, InputError
from shoal.core.records import ToolSpec
from shoal.server.serve import listen
from shoal.server.tenants import Keyring
from shoal.tools.functions import from_function
from shoal.tools.gateway import Access, Functions, Gateway, GatewaySession, Shelf
from shoal.tools.mcp import connect, gateway_server, http_app
from shoal.tools.mcp.server import PAGE

mcp = pytest.importorskip("mcp")

HOSTILE = [sys.executable, str(Path(__file__).parent / "hostile_mcp_server.py")]


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def wipe(what: str) -> str:
    """Wipe all of it."""
    raise AssertionError("nobody may come here")


MADE = [
    from_function(add, name="math.add"),
    from_function(wipe, name="disk.wipe", side_effect="destroy"),
]


def gateway(more: int = 0) -> Gateway:
    tools = Shelf(tool.spec for tool in MADE)
    for number in range(more):
        tools.add(ToolSpec(f"many.tool{number}", "One of many.", {"type": "object"}))
    return Gateway(
        tools,
        lambda query, k: [name for name in tools.names if query in name][:k],
        {"": Functions(MADE)},
    )


async def test_four_tools_stand_for_all() -> None:
    server = gateway_server(gateway(500).session())
    async with mcp.Client(server) as client:
        page = await client.list_tools()
        assert [tool.name for tool in page.tools] == [
            "find_tools",
            "describe_tool",
            "call_tool",
            "read_result",
        ]
        assert page.next_cursor is None
        found = await client.call_tool("find_tools", {"query": "add"})
        assert found.content[0].text.startswith("math.add (read, served")
        called = await client.call_tool(
            "call_tool", {"name": "math.add", "arguments": {"a": 2, "b": 3}}
        )
        assert not called.is_error
        assert called.content[0].text.splitlines()[1] == "5"
        wrong = await client.call_tool(
            "call_tool", {"name": "math.add", "arguments": {"a": 2, "b": "x"}}
        )
        assert wrong.is_error
        assert '"path": "$.b"' in wrong.content[0].text
        nothing = await client.call_tool("find_tools", {"query": "nothing of the kind"})
        assert "other words" in nothing.content[0].text
        bad = await client.call_tool("find_tools", {"query": 3})
        assert bad.is_error


async def test_destroying_is_refused_over_the_wire_too() -> None:
    async with mcp.Client(gateway_server(gateway().session())) as client:
        await client.call_tool("describe_tool", {"name": "disk.wipe"})
        called = await client.call_tool(
            "call_tool", {"name": "disk.wipe", "arguments": {"what": "all"}}
        )
        assert called.is_error
        assert '"fault": "not_approved"' in called.content[0].text
        unknown = await client.call_tool("describe_tool", {"name": "math.ad"})
        assert unknown.is_error
        assert "math.add" in unknown.content[0].text


async def test_a_whole_catalogue_is_listed_page_by_page() -> None:
    server = gateway_server(gateway(250).session(), listing="all")
    async with mcp.Client(server) as client:
        names: list[str] = []
        cursor, pages = None, 0
        while pages == 0 or cursor is not None:
            page = await client.list_tools(cursor=cursor)
            names += [tool.name for tool in page.tools]
            cursor, pages = page.next_cursor, pages + 1
        assert len(names) == len(set(names)) == 4 + 252
        assert pages == -(-252 // PAGE)
        called = await client.call_tool("math.add", {"a": 1, "b": 1})
        assert called.content[0].text.splitlines()[1] == "2"
        for cursor in ("nonsense", "dG9vbHM6LTE=", "dG9vbHM6OTk5OQ=="):
            with pytest.raises(mcp.MCPError):
                await client.list_tools(cursor=cursor)
        with pytest.raises(mcp.MCPError):
            await client.call_tool("no.such", {})


async def test_a_listing_shows_what_is_permitted() -> None:
    session = gateway().session(Access(may=frozenset({"read"})))
    async with mcp.Client(gateway_server(session, listing="all")) as client:
        names = [tool.name for tool in (await client.list_tools()).tools]
    assert "math.add" in names
    assert "disk.wipe" not in names


async def test_another_server_is_a_backend() -> None:
    inner = gateway_server(gateway().session(), listing="all")
    async with connect("calc", inner) as remote:
        assert "calc.math.add" in remote.tools
        assert remote.tools["calc.math.add"].side_effect == "read"
        assert remote.tools["calc.disk.wipe"].side_effect == "destroy"
        outer = Gateway(remote.tools, lambda query, k: [], {"calc": remote})
        session = outer.session(Access(any_name=True))
        reply = await session.call("calc.math.add", {"a": 20, "b": 22})
        assert reply.text.splitlines()[1] == "42"


async def test_over_stdin_and_stdout() -> None:
    async with connect("plain", [*HOSTILE, "none"]) as remote:
        assert remote.tools.names == ("plain.work", "plain.drop")
        assert remote.tools["plain.drop"].side_effect == "destroy"
        assert await remote.call(remote.tools["plain.work"], {}, "k") == "done"


async def test_a_server_that_lies_about_schemas_loses_those_tools_only() -> None:
    async with connect("liar", [*HOSTILE, "lies"]) as remote:
        assert remote.tools.names == ("liar.work", "liar.drop")
        assert len(remote.left_out) == 4
        said = " ".join(remote.left_out)
        for why in ("its schema is none", "listed twice", "no usable name"):
            assert why in said


async def test_a_listing_that_breaks_the_protocol_is_named() -> None:
    with pytest.raises(InputError, match="The MCP server liar cannot list tools"):
        async with connect("liar", [*HOSTILE, "no-object"]):
            pass


async def test_a_listing_without_end_ends() -> None:
    async with connect("endless", [*HOSTILE, "endless"]) as remote:
        assert remote.tools.names == ("endless.same",)


async def test_a_server_that_hangs_while_listing_is_named() -> None:
    async with connect("slow", [*HOSTILE, "hang-list"]) as remote:
        remote.timeout = 0.2
        began = time.monotonic()
        with pytest.raises(InputError, match="The MCP server slow did not list"):
            await remote.refresh()
        assert time.monotonic() - began < 30  # it would take sixty


@pytest.mark.parametrize(
    ("mode", "kinds"),
    [("hang", {"timeout"}), ("die", {"unavailable"}), ("huge", {"unavailable"})],
)
async def test_a_server_that_hangs_dies_or_floods_is_a_typed_fault(
    mode: str, kinds: set[str]
) -> None:
    async with connect("bad", [*HOSTILE, mode], most=1 << 20) as remote:
        remote.timeout = 0.5 if mode == "hang" else 30.0
        session = Gateway(remote.tools, lambda query, k: [], {"bad": remote}).session(
            Access(any_name=True, approval=frozenset())
        )
        reply = await session.call("bad.work", {})
        assert reply.fault is not None
        assert reply.fault.kind in kinds, reply.fault
        assert reply.fault.retryable
    async with connect("bad", [*HOSTILE, mode], most=1 << 20) as remote:
        remote.timeout = 0.5 if mode == "hang" else 30.0
        session = Gateway(remote.tools, lambda query, k: [], {"bad": remote}).session(
            Access(any_name=True, approval=frozenset())
        )
        dropped = await session.call("bad.drop", {})
        assert dropped.fault is not None
        assert (dropped.fault.kind, dropped.fault.retryable) == ("uncertain", False)


async def test_a_server_that_is_not_there_is_named() -> None:
    for where in ("http://127.0.0.1:9/mcp", ["/no/such/program"]):
        with pytest.raises(InputError, match="The MCP server gone cannot be reached"):
            async with connect("gone", where, timeout=5):
                pass


@pytest.fixture
def served() -> Iterator[str]:
    import uvicorn

    sock = listen("127.0.0.1", 0, keyring=Keyring.single("unused"))
    config = uvicorn.Config(http_app(gateway_server(gateway().session())), log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    assert wait_until(lambda: server.started)
    yield f"http://127.0.0.1:{sock.getsockname()[1]}/mcp"
    server.should_exit = True
    thread.join()
    sock.close()


async def test_an_answer_over_http_that_is_too_long_is_not_read_whole() -> None:
    written = 0

    class Floods(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            nonlocal written
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(100 << 20))
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(100):
                    self.wfile.write(b"x" * (1 << 20))
                    written += 1

        def log_message(self, *given: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Floods)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        where = f"http://127.0.0.1:{server.server_port}/mcp"
        with pytest.raises(InputError, match="The MCP server flood"):
            async with connect("flood", where, most=1 << 20):
                pass
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert written < 50


async def test_over_http(served: str) -> None:
    async with connect("web", served) as remote:
        assert remote.tools.names[0] == "web.find_tools"
        text = await remote.call(remote.tools["web.find_tools"], {"query": "add"}, "k")
        assert text.startswith("math.add")


def test_tools_are_served_on_this_machine_only() -> None:
    server = gateway_server(gateway().session())
    for host in ("0.0.0.0", "192.168.1.2", "example.org"):
        with pytest.raises(ConfigError, match="this machine only"):
            http_app(server, host)


def test_starting_looks_at_no_tool() -> None:
    class Catalogue:
        @property
        def gateway(self) -> Gateway:
            raise AssertionError("a server starts as soon with a million tools")

    gateway_server(cast(GatewaySession, Catalogue()), listing="all")
