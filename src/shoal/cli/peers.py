"""``shoal peers``: a master, a peer, and what the master knows."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from shoal.cli.console import console, print_json
from shoal.core.errors import ConfigError, InputError

if TYPE_CHECKING:
    from shoal.training.diloco import Round

app = typer.Typer(help="Reduce and train with peers that come and go.", no_args_is_help=True)

ADDRESS = typer.Argument(help="The master, host:port.")
TOKEN = typer.Option(None, envvar="SHOAL_PEERS_TOKEN", help="The shared token.")
JSON = typer.Option(False, "--json", help="Print the result as JSON.")


@app.command("master")
def master(
    host: str = typer.Option("127.0.0.1", help="Where to listen; 0.0.0.0 for other machines."),
    port: int = typer.Option(48148, help="0 takes a free one."),
    token: str | None = TOKEN,
    journal: Path | None = typer.Option(None, help="Kept, so that a restart goes on with the run."),
    log: Path | None = typer.Option(None, help="An event log, SQLite."),
    peer_timeout: float = typer.Option(10.0, min=0.5, help="Seconds a peer may be silent."),
) -> None:
    """Serve as master until interrupted."""
    from shoal.collectives import Master
    from shoal.core.log import EventLog

    shared = token or secrets.token_urlsafe(18)
    if not token:
        console.print(f"token: {shared}", highlight=False, markup=False)

    async def serve() -> None:
        with EventLog(log) if log else contextlib.nullcontext() as events:
            serving = Master(
                shared,
                host=host,
                port=port,
                heartbeat=min(1.0, peer_timeout / 5),
                peer_timeout=peer_timeout,
                journal=journal,
                log=events,
            )
            await serving.start()
            console.print(f"master: {serving.address}, run {serving.run}", highlight=False)
            try:
                await asyncio.Event().wait()
            finally:
                await serving.close()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve())


@app.command("join")
def join(
    address: str = ADDRESS,
    token: str | None = TOKEN,
    group: int = typer.Option(0, min=0, help="Peers reduce within their group."),
    pool: int = typer.Option(1, min=1, help="Connections to each neighbour; 8 to 64 far away."),
    host: str = typer.Option("", help="Where this peer is reached, if not where it calls from."),
    gather: int = typer.Option(2, min=2, help="Wait for that many peers before the first step."),
    mib: float = typer.Option(16.0, min=0.001, help="Size of the array that is reduced."),
    steps: int = typer.Option(10, min=1, help="Operations, or outer rounds with --text."),
    text: Path | None = typer.Option(None, help="Train a byte-level Llama on it by DiLoCo."),
    quantization: str = typer.Option("none", help="none, min_max or zero_point_scale."),
    json: bool = JSON,
) -> None:
    """Join as a peer: reduce arrays and say how fast, or train on a text."""
    from shoal.collectives import Communicator

    shared = required_token(token)
    content = _read(text) if text else None
    with Communicator(address, token=shared, group=group, pool=pool, host=host) as peer:
        console.print(f"joined as {peer.id}", highlight=False) if not json else None
        peer.gather(gather)
        if content is None:
            found = _reduce(peer, mib, steps, quantization)
        else:
            found = _train(peer, content, steps, quantization, quiet=json)
    if json:
        print_json(found)
    else:
        for name, value in found.items():
            console.print(f"{name.replace('_', ' ')}: {value}", highlight=False)


def _reduce(peer: Any, mib: float, steps: int, quantization: Any) -> dict[str, Any]:
    from shoal.collectives.trial import reduce_repeatedly

    return reduce_repeatedly(peer, mib=mib, steps=steps, quantization=quantization)


def _train(
    peer: Any, text: bytes, rounds: int, quantization: Any, *, quiet: bool
) -> dict[str, Any]:
    from shoal.training.together import train_together

    def show(found: Round, loss: float) -> None:
        if not quiet:
            worlds = sorted(set(found.worlds)) or "nobody else"
            console.print(
                f"round {found.number}: {loss:.3f} nats a byte held out, with {worlds}, "
                f"{found.tx / 2**20:.2f} MiB sent",
                highlight=False,
            )

    loss = train_together(peer, text, rounds=rounds, quantization=quantization, on_round=show)
    return {"rounds": rounds, "held_out_nats": round(loss, 4)}


@app.command("status")
def status(address: str = ADDRESS, token: str | None = TOKEN, json: bool = JSON) -> None:
    """Rings, what each peer waits for, and the rates measured between them."""
    from rich.table import Table

    from shoal.collectives.observe import observe

    found = observe(address, required_token(token))
    if json:
        print_json(found)
        return
    console.print(f"run {found['run']}, {found['operations']} operations", highlight=False)
    for number, group in found["groups"].items():
        linked = "linked" if group["linked"] else "not linked"
        title = f"group {number}: epoch {group['epoch']}, {linked}, "
        table = Table("peer", "phase", "state", "tags", "listens", "to the next, Mbit/s")
        table.title = title + f"next revision {group['next_revision']}"
        rates = {(a, b): rate for a, b, rate in group["rates"]}
        ring = group["ring"]
        for peer in (*ring, *sorted(set(group["peers"]) - set(ring))):
            known = group["peers"][peer]
            after = ring[(ring.index(peer) + 1) % len(ring)] if peer in ring else ""
            rate = rates.get((peer, after))
            tags = ", ".join(f"{tag} {state}" for tag, state in known["tags"].items())
            table.add_row(
                peer, known["phase"], known["state"], tags, known["address"],
                f"{rate:.0f}" if rate else "",
            )  # fmt: skip
        console.print(table)


def required_token(token: str | None) -> str:
    """The token itself; raises :class:`ConfigError` where none was given."""
    if not token:
        raise ConfigError("Peers need the master's token: give --token or SHOAL_PEERS_TOKEN.")
    return token


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read the text {path}: {error.strerror}.") from error
