"""The gateway beside the official server: how long until it answers, and what a call costs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from shoal.core.claims import Bench, alternate
from shoal.core.stats import mean_interval
from shoal.tools.functions import from_function
from shoal.tools.gateway import Access, Functions, Gateway, Shelf
from shoal.tools.mcp import gateway_server


def _function(number: int) -> Callable[..., str]:
    def work(name: str, count: int = 1, dry: bool = False) -> str:
        return f"{name} {count} {number}"

    work.__name__ = f"operation_{number}"
    work.__doc__ = f"Do operation {number} of the service with a name and a count."
    return work


def official(functions: list[Callable[..., str]]) -> Any:
    """The SDK's server, each function registered."""
    from mcp.server.mcpserver import MCPServer

    server: Any = MCPServer("official")
    for fn in functions:
        server.add_tool(fn)
    return server


def ours(specs: Shelf, made: Functions) -> Any:
    """A gateway over specs that are known already, as from a catalogue on disk."""
    gateway = Gateway(specs, lambda query, k: list(specs.names[:k]), {"": made})
    return gateway_server(gateway.session(Access(any_name=True)), listing="all")


def against_official(bench: Bench) -> None:
    from mcp import Client

    count = bench.pick(full=2000, smoke=200)
    rounds = bench.pick(full=3, smoke=2)
    functions = [_function(number) for number in range(count)]
    tools = [from_function(fn, name=fn.__name__) for fn in functions]
    specs, made = Shelf(tool.spec for tool in tools), Functions(tools)

    def begin(server: Callable[[], Any]) -> Callable[[], None]:
        async def listed() -> None:
            async with Client(server(), cache=None) as client:
                await client.list_tools()

        return lambda: asyncio.run(listed())

    seconds = alternate(
        {
            "official": begin(lambda: official(functions)),
            "gateway": begin(lambda: ours(specs, made)),
        },
        rounds=rounds,
        warmup=0,
    )
    calls = bench.pick(full=300, smoke=50)
    costs = asyncio.run(_calls(official(functions), ours(specs, made), calls))
    for name, timing in seconds.items():
        bench.arm(
            f"server: {name}",
            **{
                f"seconds to the first listing, {count} tools": timing.seconds(),
                "CPU seconds": timing.seconds("cpu"),
                "milliseconds a call": mean_interval(costs[name], seed=bench.seed),
            },
        )
    bench.verdict(
        "the gateway answers 10 times sooner than the official server (CPU time)",
        seconds["gateway"].times_faster_than(seconds["official"], "cpu", seed=bench.seed),
        at_least=10.0,
    )
    bench.verdict(
        "a call through the gateway takes at most 10 milliseconds",
        mean_interval(costs["gateway"], seed=bench.seed),
        at_most=10.0,
    )


async def _calls(one: Any, other: Any, count: int) -> dict[str, np.ndarray]:
    """Milliseconds of calls in memory, by turns."""
    from mcp import Client

    spent: dict[str, list[float]] = {"official": [], "gateway": []}
    async with Client(one, cache=None) as first, Client(other, cache=None) as second:
        for number in range(count + 5):
            for name, client in (("official", first), ("gateway", second)):
                began = time.perf_counter()
                result = await client.call_tool("operation_7", {"name": "a", "count": number})
                took = 1000 * (time.perf_counter() - began)
                assert not result.is_error, result
                if number >= 5:
                    spent[name].append(took)
    return {name: np.array(values) for name, values in spent.items()}
