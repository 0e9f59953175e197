"""``shoal reproduce``: measure again what each published system claims."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape

from shoal.cli.console import console, errors, print_json
from shoal.core.errors import ConfigError

if TYPE_CHECKING:
    from shoal.core.claims import Result, System


def reproduce(
    name: str = typer.Argument("", help="A system's name, as --list shows it."),
    every: bool = typer.Option(False, "--all", help="Run every claim there is."),
    listing: bool = typer.Option(False, "--list", help="Show all systems and last results."),
    smoke: bool = typer.Option(False, "--smoke", help="A short run of at most 30 seconds."),
    seed: int = typer.Option(0, help="Every random draw follows from it."),
    out: Path | None = typer.Option(
        None, help="Where to write; by default docs/claims/NAME, or out/claims/NAME for a smoke."
    ),
    json: bool = typer.Option(False, "--json", help="Print results as JSON."),
    check: bool = typer.Option(False, "--check", help="Exit with 1 if a verdict fails."),
) -> None:
    """Run a system's claim beside its baseline; write result.json, report.md and plots."""
    from shoal.core.claims import find_system
    from shoal.core.claims.runner import measured_systems, require_checkout

    if listing or not (name or every):
        _list(json)
        return
    if name and every:
        raise ConfigError(f"Give either {name!r} or --all, not both.")
    systems = measured_systems() if every else [find_system(name)]
    checkout = require_checkout()
    results = [
        _run(system, checkout, out / system.name if out and every else out, smoke, seed, json)
        for system in systems
    ]
    if json:
        plain = [result.model_dump(mode="json") for result in results]
        print_json(plain if every else plain[0])
    if check and not all(result.holds for result in results):
        raise typer.Exit(1)


def _run(
    system: System, checkout: Path, out: Path | None, smoke: bool, seed: int, quiet: bool
) -> Result:
    from rich.progress import Progress, TaskID

    from shoal.core.claims import runner

    folder = out or runner.default_folder(system, smoke=smoke, checkout=checkout)
    with Progress(console=errors, transient=True) as progress:
        bars: dict[str, TaskID] = {}

        def follow(label: str, done: int, total: int) -> None:
            if label not in bars:
                bars[label] = progress.add_task(label, total=total)
            progress.update(bars[label], completed=done)

        result = runner.reproduce(
            system, checkout=checkout, folder=folder, smoke=smoke, seed=seed, on_progress=follow
        )
    if not quiet:
        _print(result, system.title, folder)
    return result


def _print(result: Result, title: str, folder: Path) -> None:
    from rich.table import Table

    from shoal.core.claims.report import bounds, metric

    table = Table("", "claim", "measured", "must be", title=f"{title}: {result.summary}")
    for verdict in result.verdicts:
        mark = "[green]holds[/]" if verdict.holds else "[red]fails[/]"
        measured = metric(verdict.interval or verdict.measured)
        table.add_row(mark, verdict.claim, escape(measured), bounds(verdict.threshold))
    console.print(table)
    console.print(f"Report: {folder / 'report.md'}", markup=False, highlight=False, soft_wrap=True)


def _list(json: bool) -> None:
    from rich.table import Table

    from shoal.core.claims import SYSTEMS
    from shoal.core.claims.runner import find_checkout, last_result

    checkout = find_checkout()
    last = {system.name: last_result(system, checkout) for system in SYSTEMS}
    if json:
        print_json([_entry(system, last[system.name]) for system in SYSTEMS])
        return
    table = Table("name", "system", "room", "state", "last result")
    for system in SYSTEMS:
        result = last[system.name]
        table.add_row(
            system.name, system.title, system.room, system.state, result.summary if result else "–"
        )
    console.print(table)


def _entry(system: System, result: Result | None) -> dict[str, Any]:
    last = result and {
        "mode": result.mode,
        "held": result.held,
        "verdicts": len(result.verdicts),
        "seconds": result.seconds,
        "seed": result.seed,
    }
    return {**asdict(system), "last": last}
