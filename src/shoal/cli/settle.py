"""``shoal settle``: one number, or one split of a budget, out of what each agent reports."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from shoal.cli.console import console, print_json
from shoal.core.errors import ConfigError, InputError

if TYPE_CHECKING:
    from shoal.mechanisms import Audit, Settlement


def settle(
    reports: Path | None = typer.Argument(None, help="TOML, JSON or CSV; '-' reads stdin."),
    low: float | None = typer.Option(None, help="Low end of the interval."),
    high: float | None = typer.Option(None, help="High end of the interval."),
    rule: str | None = typer.Option(
        None, help="uniform-phantom, median, mean, …; independent-markets splits a budget."
    ),
    seed: int | None = typer.Option(None, help="What a rule that draws draws from."),
    auditing: bool = typer.Option(False, "--audit", help="Try to break the rule."),
    agents: int | None = typer.Option(
        None, min=1, help="Size of the audited group; by default as many as report, 3 to 5."
    ),
    json: bool = typer.Option(False, "--json", help="Print the settlement as JSON."),
) -> None:
    """Settle sealed reports by a rule that lies cannot game, or audit a rule."""
    from shoal.mechanisms.location.sheets import find_mechanism, parse_sheet, settle_sheet

    given = {"low": low, "high": high, "rule": rule, "seed": seed}
    options = {name: value for name, value in given.items() if value is not None}
    if reports is None and not auditing:
        raise ConfigError("Give a file of reports, '-' for stdin, or --audit and a rule.")
    sheet = parse_sheet(_read(reports), str(reports), **options) if reports else None
    mechanism = sheet.mechanism() if sheet else find_mechanism(rule or "uniform-phantom")
    settled = settle_sheet(sheet) if sheet else None
    size = agents or (min(5, max(3, len(sheet.reports))) if sheet else 3)
    audited = mechanism.audit(size) if auditing else None
    if json:
        print_json(_as_dict(settled, audited))
        return
    if settled:
        _print(settled)
    if audited:
        _print_audit(audited)


def _read(path: Path) -> str:
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read the reports {path}: {error}.") from error


def _as_dict(settled: Settlement | None, audited: Audit | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if settled:
        found["settlement"] = asdict(settled)
    if audited:
        found["audit"] = {**asdict(audited), "kept": sorted(audited.kept)}
    return found


def _print(settled: Settlement) -> None:
    from rich.table import Table

    table = Table("agent", "report", "weight", "utility", title=settled.mechanism)
    utilities = settled.decision.utilities
    for report in settled.reports:
        weight = settled.opening.weight(report.agent)
        table.add_row(
            report.agent, _text(report.value), f"{weight:g}", _of(utilities, report.agent)
        )
    console.print(table)
    for agent in settled.absent:
        console.print(f"[dim]{agent} is absent and does not count[/]", highlight=False)
    console.print(f"outcome: [bold]{_text(settled.decision.outcome)}[/]", highlight=False)
    for name, value in settled.decision.details.items():
        console.print(f"{name.replace('_', ' ')}: {_text(value)}", highlight=False)
    for sentence in settled.assumes:
        console.print(f"assumes: {sentence}", style="dim", highlight=False)


def _print_audit(audited: Audit) -> None:
    from rich.table import Table

    broken = {found.promise: found for found in audited.counterexamples}
    table = Table("", "promise", "counterexample", title=f"audit of {audited.mechanism}")
    for promise, cases in audited.cases.items():
        mark = "[red]broken[/]" if promise in broken else "[green]held[/]"
        found = f"none in {cases:,} profiles" if promise not in broken else broken[promise].sentence
        table.add_row(mark, promise, found)
    console.print(table)


def _of(values: Any, agent: str) -> str:
    return f"{values[agent]:.4g}" if agent in values else ""


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(share)}" for name, share in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
