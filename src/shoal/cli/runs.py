"""``shoal runs``: what has run here; show, replay, compare and go on."""

from __future__ import annotations

import datetime
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich import box
from rich.table import Table

from shoal.cli.console import console, print_json
from shoal.core.records import Episode, to_json
from shoal.core.runs import Run, find_run, list_runs

if TYPE_CHECKING:
    from shoal.agents import TeamResult

app = typer.Typer(help="List, show, replay and resume runs.", no_args_is_help=True)

_ID = typer.Argument(help="The run's id, the beginning of one, or 'last'.")
_JSON = typer.Option(False, "--json", help="Print everything as JSON.")


@app.command("list")
def list_(json: bool = _JSON) -> None:
    """All runs of this folder, oldest first."""
    rows = [_summary(run) for run in list_runs()]
    if json:
        print_json(rows)
        return
    if not rows:
        console.print("There are no runs here yet: start one with shoal run.")
        return
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for name in ("run", "started", "team", "turns", "outcome", "task"):
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(
            *(textwrap.shorten(str(value), 20, placeholder="…") for value in row.values())
        )
    console.print(table)


@app.command()
def show(run_id: str = _ID, json: bool = _JSON) -> None:
    """Who said what in a run, its result and its sharing report."""
    from shoal.agents import replay as tell
    from shoal.agents import sharing_report
    from shoal.cli.live import LiveView
    from shoal.cli.report import print_result, print_sharing

    run = find_run(run_id)
    with run.log() as log, LiveView(console, quiet=json) as view:
        episode, seconds = tell(log, view), log.seconds()
    report = sharing_report(episode, wall_seconds=seconds)
    if json:
        print_json(_as_dict(run, episode) | {"sharing": report.as_dict()})
        return
    print_result(console, view.result or _open(episode))
    print_sharing(console, report)


@app.command()
def replay(
    run_id: str = _ID,
    diff: str = typer.Option("", help="Another run: show where the two part."),
    json: bool = _JSON,
) -> None:
    """Tell a run again from its log, turn by turn, or compare it with another."""
    from shoal.agents import diff as difference
    from shoal.agents import replay as tell
    from shoal.cli.live import LiveView
    from shoal.cli.report import print_result

    run = find_run(run_id)
    with run.log() as log, LiveView(console, quiet=json or bool(diff)) as view:
        episode = tell(log, view)
    if not diff:
        if json:
            print_json(_as_dict(run, episode))
        else:
            print_result(console, view.result or _open(episode))
        return
    other = find_run(diff)
    with other.log() as log:
        part = difference(episode, tell(log))
    if json:
        print_json({"run": run.id, "other": other.id, "identical": part is None, "part": part})
    elif part is None:
        console.print("The two runs are identical, turn by turn.")
    else:
        console.print(f"They part at turn {part.index}: {part.member}, {part.what}.")
        console.print(part.first, style="red", markup=False)
        console.print(part.second, style="green", markup=False)
    if part is not None:
        raise typer.Exit(1)


@app.command()
def resume(
    run_id: str = _ID,
    kv_memory: int = typer.Option(1024, help="KV cache at most, in MiB."),
    watch: bool = typer.Option(False, "--watch", help="Draw the team and who is speaking."),
    json: bool = _JSON,
) -> None:
    """Go on with a run that was interrupted; finished turns are not repeated."""
    from shoal.agents.job import reopen
    from shoal.cli.run import finish, open_engine_for

    job = reopen(find_run(run_id))
    finish(job, open_engine_for(job.settings, kv_memory), compare=False, watch=watch, json=json)


def _summary(run: Run) -> dict[str, object]:
    config = run.config()
    with run.log() as log:
        episode = log.episode()
    started = datetime.datetime.fromtimestamp(_started(run.folder)).strftime("%m-%d %H:%M")
    return {
        "run": run.id,
        "started": started,
        "team": config.get("team", ""),
        "turns": len(episode.steps),
        "outcome": episode.outcome,
        "task": config.get("task", ""),
    }


def _started(folder: Path) -> float:
    return (folder / "config.toml").stat().st_mtime


def _as_dict(run: Run, episode: Episode) -> dict[str, object]:
    import json

    whole: dict[str, object] = json.loads(to_json(episode))
    return {"folder": str(run.folder)} | whole


def _open(episode: Episode) -> TeamResult:
    """How a run stands that has not ended."""
    from shoal.agents import TeamResult

    return TeamResult(episode, None, "open", "it can be resumed")
