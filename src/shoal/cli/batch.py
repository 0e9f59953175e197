"""``shoal batch``: a file of requests; what they share is computed once."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from shoal.cli.console import console, errors, print_json
from shoal.core.errors import ConfigError, InputError

if TYPE_CHECKING:
    from shoal.core.protocols import Engine
    from shoal.engine.batch.forecasting import Outlook
    from shoal.engine.batch.jobs import Task
    from shoal.engine.batch.journal import Journal
    from shoal.engine.batch.runner import Report

SHOWN = 12
"""Groups that --plan lists; --json has all."""


def batch(
    requests: Path = typer.Argument(help="JSON lines: OpenAI batch requests, or prompts."),
    output: Path | None = typer.Option(None, "--output", "-o", help="Where the answers go."),
    plan: bool = typer.Option(False, "--plan", help="Show what would be shared; run nothing."),
    model: str = typer.Option(
        "smollm2-135m", "--model", "-m", help="Name, GGUF file, folder or hub name."
    ),
    upstream: str = typer.Option("", help="Send to this OpenAI-compatible endpoint instead."),
    model_name: str = typer.Option("", help="The model's name at the endpoint."),
    any_model: bool = typer.Option(False, help="Answer requests that name another model too."),
    dtype: str = typer.Option("bf16", help="bf16 or fp32 (exact, slower)."),
    level: str = typer.Option("multi", help="Sharing: multi, single, greedy or none."),
    order: str = typer.Option("ratio", help="Groups by ratio, prefix or arrival."),
    kv_memory: int = typer.Option(1024, min=1, help="KV cache at most, in MiB."),
    concurrency: int = typer.Option(64, min=1, help="Requests at a time at an endpoint."),
    slots: int | None = typer.Option(
        None, min=1, help="The endpoint caches in so many slots; found out where it says."
    ),
    json: bool = typer.Option(False, "--json", help="Print the report as JSON."),
) -> None:
    """Answer a file of requests, in any order that computes each shared token once."""
    from shoal.engine.batch.journal import Journal
    from shoal.server.batch_lines import Reading, read_lines

    if output is None and not plan:
        raise ConfigError("Say where the answers go (--output), or ask for the --plan alone.")
    _known("level", level, ("multi", "single", "greedy", "none"))
    _known("order", order, ("ratio", "prefix", "arrival"))
    try:
        data = requests.read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read {requests}: {error.strerror}.") from error
    engine = _engine(model, upstream, model_name, dtype, kv_memory, concurrency, slots)
    info = engine.info
    tasks = read_lines(data, Reading(info.model, info, any_model=any_model))
    settings = {"level": level, "order": order}
    if plan:
        outlook = asyncio.run(_look(tasks, engine, settings))
        if json:
            print_json(outlook.as_dict())
        else:
            _print_plan(outlook)
        return
    assert output is not None
    job = hashlib.sha256(data + f"\0{info.model}\0{info.dtype}".encode()).hexdigest()
    with Journal(output, job) as journal:
        report = _run(tasks, engine, journal, settings, quiet=json)
        journal.finish()
    if json:
        print_json({**_report(report), "output": str(output)})
    else:
        _print_report(report, output)
    if report.failed:
        raise typer.Exit(1)


def _known(what: str, value: str, known: tuple[str, ...]) -> None:
    from shoal.core.errors import nearest

    if value not in known:
        guess = nearest(value, known) or f" Known are {', '.join(known)}."
        raise ConfigError(f"There is no {what} {value!r}.{guess}")


def _engine(
    model: str,
    upstream: str,
    model_name: str,
    dtype: str,
    kv_memory: int,
    concurrency: int,
    slots: int | None,
) -> Engine:
    from shoal.cli.progress import loading
    from shoal.engine.open import open_engine

    if upstream:
        from shoal.engine.upstream import UpstreamEngine

        return UpstreamEngine.open(
            upstream, model_name or None, concurrency=concurrency, slots=slots, remember=1 << 16
        )
    if model.startswith(("http://", "https://")):
        raise ConfigError("Give the endpoint's address with --upstream.")
    with loading(errors) as progress:
        return open_engine(model, dtype=dtype, kv_bytes=kv_memory << 20, progress=progress)


async def _look(tasks: list[Task], engine: Engine, settings: dict[str, Any]) -> Outlook:
    from shoal.cli.progress import loading
    from shoal.engine.batch.forecasting import look_ahead

    with loading(errors) as progress:
        try:
            return await look_ahead(tasks, engine, **settings, on_progress=progress)
        finally:
            await engine.close()


def _run(
    tasks: list[Task], engine: Engine, journal: Journal, settings: dict[str, Any], *, quiet: bool
) -> Report:
    from shoal.cli.progress import loading
    from shoal.engine.batch.jobs import Response, result_line
    from shoal.engine.batch.runner import BatchRun

    def keep(line: int, response: Response) -> None:
        journal.add(line, result_line(tasks[line], response))

    async def work() -> Report:
        with loading(errors) as progress:
            run = BatchRun(tasks, engine, keep, skip=journal.done, **settings, on_progress=progress)
            try:
                return await run.run()
            finally:
                await engine.close()

    if journal.done and not quiet:
        errors.print(f"{len(journal.done)} of {len(tasks)} lines are answered already.")
    try:
        return asyncio.run(work())
    except KeyboardInterrupt:
        done = len(journal.done)
        errors.print(
            f"\nStopped with {done} of {len(tasks)} lines answered, which are kept. "
            "Run the same command again to go on.",
            highlight=False,
        )
        raise typer.Exit(130) from None


def _report(report: Report) -> dict[str, Any]:
    found = asdict(report)
    return found | {"saving": report.saving, "rows_per_step": report.rows_per_step}


def _print_report(report: Report, output: Path) -> None:
    from rich.table import Table

    table = Table("", "", show_header=False)
    rows = {
        "lines answered": f"{report.lines:,} ({report.failed:,} of them failed)",
        "prompt tokens": f"{report.prompt_tokens:,}",
        "computed": f"{report.prefill_tokens:,} ({report.saving:.1f} % saved)",
        "answer tokens": f"{report.decoded_tokens:,}",
        "seconds": f"{report.seconds:.1f} ({report.planner_seconds:.2f} planning)",
    }
    if report.steps:
        rows["forward passes"] = f"{report.steps:,} of {report.rows_per_step:.0f} tokens on average"
        rows["KV cache at most"] = f"{report.kv_high_water / 2**20:.1f} MiB"
    rows |= {name: str(value) for name, value in report.details.items()}
    for row in rows.items():
        table.add_row(*row)
    console.print(table)
    console.print(f"Answers are in {output}", highlight=False)


def _print_plan(outlook: Outlook) -> None:
    from rich.table import Table

    table = Table("group", "requests", "common tokens", "tokens saved", "answer/prompt")
    for place, group in enumerate(outlook.groups[:SHOWN]):
        inside = f" in {group.outer + 1}" if group.outer is not None else ""
        table.add_row(
            f"{place + 1}{inside}",
            f"{len(group.prompts):,}",
            f"{group.tokens:,}",
            f"{group.saved_tokens:,}",
            f"{group.ratio:.2f}",
        )
    console.print(table)
    if (more := len(outlook.groups) - SHOWN) > 0:
        console.print(f"and {more:,} more groups", style="dim")
    for sentence in outlook.sentences():
        console.print(sentence, highlight=False)
