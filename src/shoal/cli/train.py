"""``shoal train``: learn from groups of episodes, go on after a stop, compare, look inside."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from shoal.cli.console import console, print_json
from shoal.cli.peers import TOKEN, required_token

if TYPE_CHECKING:
    from rich.text import Text

    from shoal.core.runs import Run
    from shoal.training.config import RunConfig
    from shoal.training.loop import Trainer
    from shoal.training.run import Ended
    from shoal.training.trace import Shown


class _RunFileFirst(TyperGroup):
    """``shoal train FILE.toml`` is ``shoal train run FILE.toml``."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["run", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(help="Learn from groups of episodes.", no_args_is_help=True, cls=_RunFileFirst)

JSON = typer.Option(False, "--json", help="Print the result as JSON.")
SHOWN = ("success", "reward", "held_out.success", "tokens_per_second", "seconds.update")


@app.command("run")
def run(
    file: Path = typer.Argument(help="The run file, TOML."),
    iterations: int | None = typer.Option(None, min=1, help="In place of the file's."),
    seed: int | None = typer.Option(None, help="In place of the file's."),
    peers: str | None = typer.Option(None, help="A master, host:port: train with its peers."),
    token: str | None = TOKEN,
    share_every: int = typer.Option(1, min=1, help="Iterations between exchanges with peers."),
    json: bool = JSON,
) -> None:
    """Train as a run file says, alone or with peers that come and go."""
    from shoal.training.config import read_run_file
    from shoal.training.run import start

    given = {"iterations": iterations, "seed": seed}
    config = read_run_file(file).model_copy(
        update={name: value for name, value in given.items() if value is not None}
    )
    if peers is None:
        _train_by_ranks(config, lambda: start(config), json)
        return
    from shoal.collectives import Communicator
    from shoal.collectives.backends import ShoalBackend
    from shoal.training.peers import PeerTrainer, apart
    from shoal.training.setup import build

    with Communicator(peers, token=required_token(token)) as peer:
        peer.gather(2)
        config = apart(config, peer.id)
        shared = PeerTrainer(build(config), ShoalBackend(peer), every=share_every)
        _train(start(config), json, shared)


@app.command("resume")
def resume(
    run_id: str = typer.Argument("last", metavar="RUN", help="A run's id, or last."),
    json: bool = JSON,
) -> None:
    """Go on from a run's newest checkpoint, bit for bit."""
    from shoal.core.runs import find_run
    from shoal.training.run import config_of

    known = find_run(run_id)
    _train_by_ranks(config_of(known), lambda: known, json)


def _train_by_ranks(config: RunConfig, find: Callable[[], Run], json: bool) -> None:
    """Train in this process, or as one of those that torchrun started."""
    from shoal.training.ranks import join
    from shoal.training.setup import build

    ranks, device = join(config.policy.device)
    policy = config.policy.model_copy(update={"device": device})
    trainer = build(config.model_copy(update={"policy": policy}), ranks=ranks)
    known = ranks.same(find() if ranks.first else None)
    assert known is not None, "the first rank has found the run"
    try:
        _train(known, json or not ranks.first, trainer)
    finally:
        ranks.close()


def _train(run: Run, json: bool, trainer: Trainer | None = None) -> None:
    from shoal.training.run import train

    quiet = json or not console.is_terminal
    if not json:
        console.print(f"run {run.id} in {run.folder}", highlight=False)

    def show(done: int, of: int, metrics: Mapping[str, float]) -> None:
        line = ", ".join(
            f"{name.replace('_', ' ')} {metrics[name]:.3g}" for name in SHOWN if name in metrics
        )
        if not json and (not quiet or done in (0, of) or done % 10 == 0):
            console.print(f"{done}/{of}  {line}", highlight=False)

    ended = asyncio.run(train(run, trainer=trainer, on_iteration=show))
    if trainer is None or trainer.learner.ranks.first:
        _report(ended, json)


def _report(ended: Ended, json: bool) -> None:
    if json:
        print_json(
            {
                "run": ended.run.id,
                "done": ended.done,
                "finished": ended.finished,
                "metrics": ended.metrics,
                "warning": ended.warning,
            }
        )
        return
    if ended.warning:
        console.print(ended.warning, style="yellow", highlight=False)
    if not ended.finished:
        console.print(
            f"stopped after {ended.done} iterations: shoal train resume {ended.run.id}",
            highlight=False,
        )


@app.command("compare")
def compare(
    file: Path = typer.Argument(help="The run file, TOML; it must set evaluation.every."),
    algos: str = typer.Option("grpo,gigpo", help="Algorithms, the first being the baseline."),
    seeds: int = typer.Option(5, min=2, help="Paired seeds, counted from the file's."),
    workers: int = typer.Option(1, min=1, help="Runs at a time, a process each."),
    out: Path = typer.Option(Path("comparison"), help="Folder of the report."),
    json: bool = JSON,
) -> None:
    """Train by several algorithms from the same starts, and say how sure the difference is."""
    from shoal.cli.progress import loading
    from shoal.training import report
    from shoal.training.compare import compare as run_all
    from shoal.training.config import read_run_file
    from shoal.training.estimators import estimator

    config = read_run_file(file)
    names = [name.strip() for name in algos.split(",") if name.strip()]
    own = config.algorithm
    options = {name: own.options if name == own.name else {} for name in names}
    for name in names:
        estimator(name, options[name])  # a wrong name is heard of before anything runs
    arms = {name: {"algorithm": {"name": name, "options": options[name]}} for name in names}
    with loading(console) as progress:
        found = run_all(
            config,
            arms,
            [config.seed + n for n in range(seeds)],
            workers=workers,
            on_done=lambda label, done, total: progress("training", done, total),
        )
    told = report.write(found, names[0], out)
    if json:
        print_json(told)
        return
    from rich.markdown import Markdown

    console.print(Markdown(report.markdown(told).rpartition("![")[0]))
    console.print(f"Report: {out / 'report.md'}", highlight=False)


@app.command("inspect")
def inspect(
    run_id: str = typer.Argument("last", metavar="RUN", help="A run's id, or last."),
    group: int | None = typer.Option(None, help="Which logged group, from 0; the last one."),
    prompts: bool = typer.Option(False, help="Show what was seen, too."),
    json: bool = JSON,
) -> None:
    """Show a group's episodes, each token coloured by its advantage."""
    from dataclasses import asdict

    from shoal.core.runs import find_run
    from shoal.training.trace import by_episode, find_group

    with find_run(run_id).log() as log:
        (iteration, task), steps = find_group(log, group)
    if json:
        print_json(
            {"iteration": iteration, "task": task, "steps": [asdict(step) for step in steps]}
        )
        return
    strongest = max((abs(step.advantage) for step in steps), default=0.0) or 1.0
    console.print(f"iteration {iteration}, {task}", highlight=False)
    for episode, rows in by_episode(steps).items():
        total = sum(step.reward for step in rows)
        console.print(f"episode {episode}, return {total:g}", style="bold", highlight=False)
        for step in rows:
            if prompts:
                console.print(step.prompt, style="dim", markup=False, highlight=False)
            console.print(_coloured(step, strongest))


def _coloured(step: Shown, strongest: float) -> Text:
    """A step's tokens: green where they are reinforced, red where they are pushed down."""
    from rich.text import Text

    strength = int(55 + 200 * min(1.0, abs(step.advantage) / strongest))
    colour = f"rgb(0,{strength},0)" if step.advantage > 0 else f"rgb({strength},0,0)"
    line = Text(f"{step.t:3d} {step.advantage:+.3f} ")
    line.append("".join(step.pieces), style=colour if step.advantage else "dim")
    return line
