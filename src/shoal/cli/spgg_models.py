"""``shoal spgg train`` and ``run``: a sequence of models plays for the reward of the game."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from shoal.cli.console import console, errors, print_json
from shoal.cli.spgg import AGENTS, BAR, GAMMA, JSON, PENALTY, QUADRATIC, RHO
from shoal.cli.spgg import app as spgg
from shoal.core.errors import ConfigError

if TYPE_CHECKING:
    from shoal.core.protocols import Engine
    from shoal.mechanisms.goods.contribution_game import Game
    from shoal.mechanisms.goods.sequence import Play
    from shoal.training.spgg import Epoch, Summary
    from shoal.training.spgg_job import Job, Settings

__all__ = ["spgg"]

TASKS = typer.Argument(help="JSONL: question, answer and, if there is one, solution a line.")
MODEL = typer.Option("smollm2-135m", "--model", "-m", help="Name, GGUF file, folder or URL.")
OBSERVE = typer.Option("last", help="Whose texts an agent sees: none, last or all before it.")
SHOTS = typer.Option(0, min=0, help="Tasks with solutions that are shown as examples.")
TOKENS = typer.Option("100,400", help="Least and largest token limit of an answer.")
HELD_OUT = typer.Option(0.3, help="Share of the tasks, the last ones, to be held to.")
CACHE = typer.Option(None, help="Keep what was generated in this file.")
LINEAR = typer.Option(1.0, help="Cost of a share e of the largest limit: LINEAR e + QUADRATIC e².")


@spgg.command()
def train(
    tasks: Path = TASKS,
    policy: Path = typer.Option("policies.safetensors", help="Written after each epoch."),
    model: str = MODEL,
    observe: str = OBSERVE,
    epochs: int = typer.Option(40, min=1, help="Updates in all; those in the file count."),
    episodes: int = typer.Option(32, min=2, help="Tasks played between updates."),
    lr: float = typer.Option(0.01, help="Learning rate of the first update."),
    shots: int = SHOTS,
    tokens: str = TOKENS,
    held_out: float = HELD_OUT,
    cache: Path | None = CACHE,
    agents: int = AGENTS,
    gamma: float = GAMMA,
    rho: float = RHO,
    penalty: float = PENALTY,
    bar: float = BAR,
    linear: float = LINEAR,
    quadratic: float = QUADRATIC,
    seed: int = typer.Option(0, help="Every draw follows from it."),
    json: bool = JSON,
) -> None:
    """Learn with which settings each agent should speak; go on where the file is."""
    from shoal.mechanisms.goods.sequence import play
    from shoal.training.bandit import BanditOptions
    from shoal.training.decoding_policy import DecodingPolicies, Ranges
    from shoal.training.spgg import summary
    from shoal.training.spgg import train as learn

    limits = _limits(tokens)
    game = _game(agents, gamma, rho, penalty, bar, linear, quadratic)
    settings = _settings(observe, game, shots, limits, held_out)
    ranges = Ranges(max_tokens=limits)
    options = BanditOptions(lr=lr, target_kl=0.05, entropy=0.0)
    known = (
        DecodingPolicies.load(policy, ranges=ranges)
        if policy.exists()
        else DecodingPolicies(settings.agents, ranges, options, seed=seed)
    )

    def show(epoch: Epoch) -> None:
        if not json:
            one = epoch.summary
            console.print(
                f"{epoch.number + 1}/{epochs}  reward {sum(one.rewards):.3f}, right "
                f"{one.accuracy:.0%}, {one.tokens:.0f} tokens, bar {one.bar_hit:.0%}, "
                f"spread {epoch.spread:.2f}, {epoch.generated} generated",
                highlight=False,
            )

    async def work() -> tuple[list[Epoch], list[Play], Job]:
        engine = _engine(model)
        job = _job(tasks, engine, settings, cache)
        done = await learn(
            job.group, known, job.learning, epochs=epochs, episodes=episodes, checkpoint=policy,
            on_epoch=show,
        )  # fmt: skip
        played = await play(job.group, job.held_out, known.decide())
        await engine.close()
        return done, played, job

    done, played, job = asyncio.run(work())
    held = _result(summary(job.group, played), played) if played else None
    if json:
        epochs_done = [asdict(epoch) for epoch in done]
        updates = known.bandits.updates
        print_json(
            {"policy": str(policy), "updates": updates, "epochs": epochs_done, "held_out": held}
        )
    elif held:
        _print("held out", held, job)


@spgg.command()
def run(
    tasks: Path = TASKS,
    policy: Path | None = typer.Option(None, help="Learnt policies; the middles if left out."),
    model: str = MODEL,
    observe: str = OBSERVE,
    shots: int = SHOTS,
    tokens: str = TOKENS,
    cache: Path | None = CACHE,
    log: Path | None = typer.Option(None, help="Keep every settlement in this file."),
    leave_out: bool = typer.Option(False, "--leave-one-out", help="What each agent's text added."),
    agents: int = AGENTS,
    gamma: float = GAMMA,
    rho: float = RHO,
    penalty: float = PENALTY,
    bar: float = BAR,
    linear: float = LINEAR,
    quadratic: float = QUADRATIC,
    json: bool = JSON,
) -> None:
    """Let a sequence of models answer tasks; show contributions, rewards and free riders."""
    from shoal.core.ids import new_id
    from shoal.core.log import EventLog
    from shoal.mechanisms.goods.leave_one_out import marginals
    from shoal.mechanisms.goods.sequence import play
    from shoal.training.decoding_policy import DecodingPolicies, Ranges
    from shoal.training.spgg import summary

    limits = _limits(tokens)
    game = _game(agents, gamma, rho, penalty, bar, linear, quadratic)
    settings = _settings(observe, game, shots, limits, 0.0)
    ranges = Ranges(max_tokens=limits)
    known = (
        DecodingPolicies.load(policy, ranges=ranges)
        if policy
        else DecodingPolicies(settings.agents, ranges)
    )
    if known.agents != settings.agents:
        raise ConfigError(f"{policy} is for {len(known.agents)} agents, not {agents}.")

    async def work() -> tuple[list[Play], list[float] | None, Job]:
        engine = _engine(model)
        job = _job(tasks, engine, settings, cache)
        settled = EventLog(log) if log else None
        played = await play(job.group, job.learning, known.decide(), name=new_id(), log=settled)
        worth = await marginals(job.group, played) if leave_out else None
        await engine.close()
        return played, worth.mean(axis=0).tolist() if worth is not None else None, job

    played, worth, job = asyncio.run(work())
    found = _result(summary(job.group, played), played)
    if worth is not None:
        found["leave_one_out"] = dict(zip(settings.agents, worth, strict=True))
    if json:
        print_json(found)
    else:
        _print(f"seeing {observe}", found, job)


def _engine(model: str) -> Engine:
    from shoal.cli.progress import loading
    from shoal.engine.open import open_engine

    with loading(errors) as progress:
        return open_engine(model, progress=progress)


def _job(tasks: Path, engine: Engine, settings: Settings, cache: Path | None) -> Job:
    from shoal.training.spgg_job import prepare, read_tasks

    return prepare(read_tasks(tasks), engine, settings, cache)


def _game(
    agents: int,
    gamma: float,
    rho: float,
    penalty: float,
    bar: float,
    linear: float,
    quadratic: float,
) -> Game:
    from shoal.mechanisms.goods.contribution_game import Cost, Game

    return Game(agents, gamma, rho, penalty, bar, Cost(linear, quadratic))


def _settings(
    observe: str, game: Game, shots: int, limits: tuple[float, float], held_out: float
) -> Settings:
    from shoal.training.spgg_job import Settings

    return Settings(
        tuple(f"agent {i + 1}" for i in range(game.agents)),
        observe,  # type: ignore[arg-type]
        game,
        shots,
        round(limits[1]),
        held_out,
    )


def _limits(text: str) -> tuple[float, float]:
    try:
        low, high = (int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"--tokens takes two whole numbers such as 10,60, not {text!r}."
        ) from error
    return low, high


def _result(found: Summary, played: list[Play]) -> dict[str, Any]:
    from shoal.training.spgg_job import accuracy

    refused = [one.refused for one in played if one.refused]
    return {**asdict(found), "accuracy": asdict(accuracy(played)), "why_refused": refused[:3]}


def _print(title: str, found: dict[str, Any], job: Job) -> None:
    from rich.table import Table

    table = Table("agent", "contribution", "effort", "reward", title=title)
    columns = [found[name] for name in ("contributions", "efforts", "rewards")]
    for agent, *cells in zip(job.group.agents, *columns, strict=True):
        table.add_row(agent, *(f"{cell:.3f}" for cell in cells))
    console.print(table)
    right = found["accuracy"]
    console.print(
        f"right: {right['estimate']:.0%} ({right['low']:.0%} to {right['high']:.0%}) of "
        f"{found['plays']}; {found['tokens']:.1f} tokens a task after {found['prompt_tokens']:.0f} "
        f"of prompts; bar reached in {found['bar_hit']:.0%}; welfare {found['welfare']:.3f}; "
        f"riding free {found['free_riders']:.0%}",
        highlight=False,
    )
    for agent, worth in found.get("leave_one_out", {}).items():
        console.print(f"without {agent} the last score is {worth:+.3f} lower", highlight=False)
    for sentence in found["why_refused"]:
        console.print(f"[yellow]{sentence}[/]", highlight=False)
