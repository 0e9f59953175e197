"""Printing results: who said what, and the sharing report."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markdown import Markdown
from rich.panel import Panel
from rich.table import Table

from shoal.agents import Comparison, SharingReport, TeamResult
from shoal.agents.report import Row

ROWS = 12
"""Agents that are shown at most, those that computed most; --json has all."""


def print_result(console: Console, result: TeamResult) -> None:
    """The team's answer and how the run ended."""
    title = f"result ({result.outcome}: {result.why})"
    body = Markdown(result.result) if result.result else "The team found no result."
    console.print(Panel(body, title=title, border_style="green" if result.result else "yellow"))


def print_sharing(console: Console, report: SharingReport) -> None:
    """Tokens asked for, computed and shared; times; cache, a line per agent and one for all."""
    table = _table("sharing report")
    table.add_column("agent", no_wrap=True)
    for name in ("turns", "asked", "computed", "shared", "first s", "wall s", "cache MiB"):
        table.add_column(name, justify="right", no_wrap=True)
    most = sorted(report.rows, key=lambda row: -row.computed_tokens)[:ROWS]
    for row in report.rows:
        if row in most:
            table.add_row(*_cells(row))
    if (more := len(report.rows) - ROWS) > 0:
        table.add_row(f"and {more} more")
    table.add_section()
    table.add_row(*_cells(report.total), style="bold")
    console.print(table)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.member,
        str(row.turns),
        f"{row.asked_tokens:,}",
        f"{row.computed_tokens:,}",
        f"{row.shared_tokens:,}",
        f"{row.first_token_ms / 1e3:.2f}",
        f"{row.wall_ms / 1e3:.1f}",
        f"{row.kv_bytes / 2**20:.1f}",
    )


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Both runs side by side, the ratios, and whether they said the same."""
    shared, unshared = comparison.shared.total, comparison.unshared.total
    table = _table("the same job with sharing and without")
    table.add_column("")
    for name in ("shared", "unshared", "ratio"):
        table.add_column(name, justify="right")
    for name, with_, without, unit in (
        ("tokens asked", shared.asked_tokens, unshared.asked_tokens, ""),
        ("tokens computed", shared.computed_tokens, unshared.computed_tokens, ""),
        ("first token, mean", shared.first_token_ms / 1e3, unshared.first_token_ms / 1e3, " s"),
        ("wall time", shared.wall_ms / 1e3, unshared.wall_ms / 1e3, " s"),
        ("cache at most", shared.kv_bytes / 2**20, unshared.kv_bytes / 2**20, " MiB"),
    ):
        ratio = f"{without / with_:.1f}x" if with_ else "-"
        table.add_row(name, _number(with_, unit), _number(without, unit), ratio)
    console.print(table)
    console.print(verdict(comparison))


def verdict(comparison: Comparison) -> str:
    """One sentence: are the texts the same, and where do they part."""
    gone = comparison.difference
    if gone is None:
        return "Checked turn by turn: the texts of both runs are identical."
    return (
        f"The runs part at turn {gone.index} ({gone.member}, {gone.what}): numbers are rounded in "
        "another order without sharing. With --dtype fp32 the texts are identical."
    )


def _number(value: float, unit: str) -> str:
    return f"{value:,.1f}{unit}" if unit else f"{value:,}"
