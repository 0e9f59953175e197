"""``shoal plan``: what a depth plan executes, what it costs, and a checkpoint for others."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from shoal.cli.console import console, errors, print_json

if TYPE_CHECKING:
    from shoal.models.depth.store import PlanFile

app = typer.Typer(help="Depth plans: models that run on another's weights.", no_args_is_help=True)


@app.command("show")
def show(
    folder: Path = typer.Argument(help="What shoal compress wrote."),
    json: bool = typer.Option(False, "--json", help="Print the plan as JSON."),
) -> None:
    """Show a plan: its blocks, its bytes, and perplexity after every part."""
    from shoal.models.depth.store import read_plan

    file = read_plan(folder)
    if json:
        print_json(asdict(file))
    else:
        print_plan(file)


@app.command("export")
def export(
    folder: Path = typer.Argument(help="What shoal compress wrote."),
    out: Path = typer.Argument(help="A new folder, for transformers and others."),
    dtype: str = typer.Option("bf16", help="bf16 or fp32."),
    json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Write a plan as an ordinary checkpoint, in which folded blocks take their bytes again."""
    from shoal.models.depth.expand import expand

    done = expand(folder, out, dtype=dtype)
    if json:
        print_json({**asdict(done), "warning": done.warning})
        return
    console.print(f"{out}: {done.written_bytes / 1e6:.1f} MB", highlight=False, markup=False)
    if done.warning:
        errors.print(done.warning, style="yellow", highlight=False, markup=False)


def print_plan(file: PlanFile) -> None:
    """A plan for people."""
    from rich.table import Table

    plan, account = file.plan, file.account
    console.print(f"{file.base}: {plan}", highlight=False, markup=False)
    console.print(
        f"{plan.layers} blocks, {len(plan.steps)} executed, {len(plan.stored)} stored; "
        f"removed: {', '.join(map(str, plan.removed)) or 'none'}",
        highlight=False,
    )
    table = Table("", "perplexity", "MB of blocks", "MB added")
    for stage in account.stages:
        table.add_row(
            stage.name,
            f"{stage.perplexity:.2f}",
            f"{stage.block_bytes / 1e6:.1f}",
            f"{stage.added_bytes / 1e6:.2f}",
        )
    console.print(table)
    console.print(account.text, highlight=False, markup=False)
    for note in account.notes:
        errors.print(note, style="yellow", highlight=False, markup=False)
