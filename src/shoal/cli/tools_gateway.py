"""``shoal tools call`` and ``shoal tools serve``: the gateway from the command line."""

from __future__ import annotations

import asyncio
import json as jsons
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

import typer

from shoal.cli.console import console, errors, print_json
from shoal.core.errors import ConfigError, InputError

if TYPE_CHECKING:
    from shoal.core.records import SideEffect
    from shoal.tools.gateway import Access

MAY = typer.Option("write", "--may", help="The worst that may be done: read, write or destroy.")
SERVERS = typer.Option(
    [], "--mcp", help="NAME=URL or NAME='COMMAND …': another MCP server behind the gateway."
)
COMPANY = typer.Option(
    True, "--company/--no-company", help="Serve AWS tools from a local cloud with made-up things."
)


def call(
    name: str = typer.Argument(..., help="A qualified name, such as aws.sqs.CreateQueue."),
    arguments: str = typer.Argument("{}", help="The arguments, as a JSON object."),
    may: str = MAY,
    servers: list[str] = SERVERS,
    company: bool = COMPANY,
    dry_run: bool = typer.Option(False, "--dry-run", help="Check everything and send no change."),
    json: bool = typer.Option(False, "--json", help="Print the reply as JSON."),
) -> None:
    """Call a tool, after checking name, permission and arguments; exit 1 where that fails."""
    from shoal.envs.company.entrance import entrance

    given = _arguments(arguments)
    access = _access(may, dry_run=dry_run)

    async def work() -> Any:
        aws = company and name.startswith("aws.")
        async with entrance(servers, company=aws, left_out=_left_out) as gateway:
            return await gateway.session(access).call(name, given)

    reply = asyncio.run(work())
    if json:
        print_json(asdict(reply))
    elif reply.fault is not None:
        errors.print(f"{reply.fault.kind}: {reply.fault.message}", markup=False, highlight=False)
    else:
        console.print(reply.text, markup=False, highlight=False)
    if reply.fault is not None:
        raise typer.Exit(1)


def serve(
    http: bool = typer.Option(False, "--http", help="Streamable HTTP instead of stdin and stdout."),
    port: int = typer.Option(8765, min=0, max=65535, help="Port of HTTP, on this machine only."),
    listing: str = typer.Option("gateway", help="gateway: four tools; all: every tool, paged."),
    may: str = MAY,
    servers: list[str] = SERVERS,
    company: bool = COMPANY,
) -> None:
    """Serve what is imported as an MCP server: find, describe, call, read on."""
    from shoal.envs.company.entrance import entrance
    from shoal.tools.mcp import gateway_server, http_app, serve_stdio

    if listing not in ("gateway", "all"):
        raise ConfigError(f"There is no listing {listing!r}: take gateway or all.")
    kind: Literal["gateway", "all"] = "all" if listing == "all" else "gateway"
    access = _access(may)

    async def work() -> None:
        async with entrance(servers, company=company, left_out=_left_out) as gateway:
            server = gateway_server(gateway.session(access), listing=kind)
            if not http:
                await serve_stdio(server)
                return
            import uvicorn

            app = http_app(server)
            config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning")
            errors.print(f"MCP at http://127.0.0.1:{port}/mcp", highlight=False)
            await uvicorn.Server(config).serve()

    asyncio.run(work())


def _left_out(sentence: str) -> None:
    errors.print(f"left out {sentence}", style="dim", markup=False)


def _arguments(text: str) -> dict[str, Any]:
    try:
        given = jsons.loads(text)
    except ValueError as error:
        raise InputError(f"The arguments are no JSON: {error}.") from error
    if not isinstance(given, dict):
        raise InputError('The arguments are a JSON object, such as \'{"QueueName": "jobs"}\'.')
    return given


def _access(may: str, *, dry_run: bool = False) -> Access:
    """Everything up to a class; who allows to destroy in so many words approves it."""
    from shoal.tools.gateway import Access

    classes: tuple[SideEffect, ...] = ("read", "write", "destroy")
    if may not in classes:
        raise ConfigError(f"--may is {may!r}: take read, write or destroy.")
    allowed = frozenset(classes[: classes.index(may) + 1])
    return Access(
        may=allowed,
        approve=(lambda spec, given: True) if may == "destroy" else None,
        dry_run=dry_run,
        any_name=True,
    )
