"""``shoal run``: a team works on a task with your files; then the sharing report."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from shoal.cli.console import console, errors, print_json
from shoal.core.errors import ConfigError

if TYPE_CHECKING:
    from shoal.agents import Comparison, TeamResult
    from shoal.agents.job import Job
    from shoal.core.protocols import Engine


def run(
    team: str = typer.Argument("reading-room", help="A packaged team, or a TOML file."),
    task: str = typer.Argument("", help="What to do; the team's own task where left out."),
    inputs: list[Path] = typer.Option(
        [], "--input", "-i", help="Files and folders to read: text, Markdown, HTML, PDF, code."
    ),
    model: str = typer.Option(
        "smollm2-135m", "--model", "-m", help="Name, GGUF file, folder, hub name or URL."
    ),
    model_name: str = typer.Option("", help="The model's name at an endpoint."),
    dtype: str = typer.Option("bf16", help="bf16, fp32 (exact, slower) or packed (faster alone)."),
    seed: int = typer.Option(0, help="Every draw follows from it."),
    sharing: bool = typer.Option(True, help="Compute what prompts have in common once."),
    compare: bool = typer.Option(False, "--compare", help="Run again without sharing."),
    tokens: int | None = typer.Option(None, help="Budget of the whole run, in tokens."),
    kv_memory: int = typer.Option(1024, help="KV cache at most, in MiB."),
    watch: bool = typer.Option(False, "--watch", help="Draw the team and who is speaking."),
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Show topology, predicted tokens and budget; generate nothing."
    ),
    json: bool = typer.Option(False, "--json", help="Print everything as JSON."),
) -> None:
    """Let a team read your files, work on a task, and show what sharing saved."""
    from dataclasses import replace

    from shoal.agents import load_team
    from shoal.agents.job import Settings, create, prepare
    from shoal.core.documents import read_documents

    chosen = load_team(team)
    if tokens is not None:
        chosen = replace(chosen, limits=replace(chosen.limits, tokens=tokens))
    reading = read_documents(inputs) if inputs else None
    settings = Settings(model, model_name, dtype, sharing, seed)
    engine = open_engine_for(settings, kv_memory)
    if compare and (engine.info.kind != "local" or not sharing):
        raise ConfigError("--compare needs a model in this process, with sharing on.")
    prepared = prepare(chosen, task, reading.documents if reading else (), engine)
    if not json:
        for skipped in reading.skipped if reading else ():
            errors.print(f"skipped {skipped.name}: {skipped.reason}", style="dim", markup=False)
        for note in prepared.notes:
            errors.print(note, style="dim", markup=False)
    if dry_run:
        from shoal.cli.dry import dry_run as foresee

        foresee(chosen, task, prepared.material, engine, json=json)
        return
    job = create(chosen, task, prepared.material, settings)
    finish(job, engine, compare=compare, watch=watch, json=json, notes=prepared.notes)


def open_engine_for(settings: Any, kv_memory: int) -> Engine:
    """The engine of these settings, with a bar while it is fetched and loaded."""
    from shoal.cli.progress import loading
    from shoal.engine.open import open_engine

    with loading(errors) as progress:
        return open_engine(
            settings.model,
            model_name=settings.model_name or None,
            dtype=settings.dtype,
            sharing=settings.sharing,
            kv_bytes=kv_memory << 20,
            progress=progress,
        )


def finish(
    job: Job,
    engine: Engine,
    *,
    compare: bool,
    json: bool,
    watch: bool = False,
    notes: tuple[str, ...] = (),
) -> None:
    """Run a job to its end and print what came out; exit 1 where there is no result."""
    from shoal.cli.report import print_comparison, print_result, print_sharing

    try:
        result, comparison = asyncio.run(
            _work(job, engine, compare=compare, quiet=json, watch=watch)
        )
    except KeyboardInterrupt:
        errors.print(f"\nStopped. Go on with: shoal runs resume {job.run.id}", highlight=False)
        raise typer.Exit(130) from None
    if json:
        print_json(_as_dict(job, result, comparison, notes))
    else:
        print_result(console, result)
        print_sharing(console, _report(result))
        if comparison:
            print_comparison(console, comparison)
        console.print(f"[dim]Everything is in {job.run.folder}[/]", highlight=False)
    if result.result is None:
        raise typer.Exit(1)


async def _work(
    job: Job, engine: Engine, *, compare: bool, quiet: bool, watch: bool
) -> tuple[TeamResult, Comparison | None]:
    from shoal.agents.job import work, work_again
    from shoal.agents.report import compare as compared
    from shoal.cli.live import LiveView

    with LiveView(console, quiet=quiet, team=job.team if watch else None) as view:
        result = await work(job, engine, view, ask=view.ask)
    await engine.close()
    if not compare:
        return result, None
    from shoal.engine.local import LocalEngine

    assert isinstance(engine, LocalEngine)
    alone = engine.unshared()
    with LiveView(console, quiet=quiet, title="again, without sharing") as view:
        again = await work_again(job, alone, view)
    await alone.close()
    return result, compared((result.episode, result.seconds), (again.episode, again.seconds))


def _report(result: TeamResult) -> Any:
    from shoal.agents import sharing_report

    return sharing_report(result.episode, wall_seconds=result.seconds)


def _as_dict(
    job: Job, result: TeamResult, comparison: Comparison | None, notes: tuple[str, ...]
) -> dict[str, Any]:
    return {
        "run": job.run.id,
        "folder": str(job.run.folder),
        "team": job.team.name,
        "task": job.task,
        "result": result.result,
        "outcome": result.outcome,
        "why": result.why,
        "seconds": result.seconds,
        "notes": list(notes),
        "steps": [
            {
                "member": step.member,
                "superstep": step.superstep,
                "text": step.output,
                "usage": asdict(step.usage),
                "how": step.how,
            }
            for step in result.episode.steps
        ],
        "sharing": _report(result).as_dict(),
        "comparison": comparison.as_dict() if comparison else None,
    }
