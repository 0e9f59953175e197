"""``shoal spgg``: check the constants of a sequential public goods game, and solve it.

Models that play it are in :mod:`shoal.cli.spgg_models`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from shoal.cli.console import console, print_json
from shoal.core.errors import ConfigError

if TYPE_CHECKING:
    from shoal.mechanisms.goods.contribution_game import Game
    from shoal.mechanisms.goods.subgame_perfect import Equilibrium

app = typer.Typer(
    help="Sequential public goods games: do their constants make contributing pay?",
    no_args_is_help=True,
)

AGENTS = typer.Option(3, help="How many contribute, in a fixed order.")
GAMMA = typer.Option(1.5, help="Weight of the synergy with those before.")
RHO = typer.Option(1.8, help="What one unit contributed yields for all together.")
PENALTY = typer.Option(1.5, help="What each loses where the bar is missed.")
BAR = typer.Option(2.55, help="The total that the group must reach.")
LOW = typer.Option(0.1, help="The least contribution, above 0.")
HIGH = typer.Option(1.0, help="The largest contribution.")
LINEAR = typer.Option(1.0, help="Cost of a contribution c: LINEAR c + QUADRATIC c².")
QUADRATIC = typer.Option(0.05, help="The convex part of the cost, above 0.")
STEP = typer.Option(0.05, help="Contributions are tried in these steps.")
JSON = typer.Option(False, "--json", help="Print everything as JSON.")


@app.command()
def check(
    agents: int = AGENTS,
    gamma: float = GAMMA,
    rho: float = RHO,
    penalty: float = PENALTY,
    bar: float = BAR,
    low: float = LOW,
    high: float = HIGH,
    linear: float = LINEAR,
    quadratic: float = QUADRATIC,
    step: float = STEP,
    json: bool = JSON,
) -> None:
    """Say whether contributing is the only equilibrium, and why not."""
    from shoal.mechanisms.goods.alignment import check_game

    game = _game(agents, gamma, rho, penalty, bar, low, high, linear, quadratic)
    found = check_game(game, step=step)
    if json:
        print_json({**asdict(found), "aligned": found.aligned})
        return
    for condition in found.conditions:
        mark = "[green]yes[/]" if condition.holds else "[red]no[/]"
        console.print(f"{mark}  {condition.sentence}", highlight=False)
    _print("in sequence", found.equilibria)
    _print("all at once", found.simultaneous)
    for sentence in (*found.objections, *found.warnings):
        console.print(f"[yellow]{sentence}[/]", highlight=False)
    verdict = "[bold green]aligned[/]" if found.aligned else "[bold red]not aligned[/]"
    console.print(f"{verdict}: one equilibrium, the bar reached, nobody riding free")
    console.print(_ABOUT_MODELS, style="dim", highlight=False)


@app.command()
def solve(
    agents: int = AGENTS,
    gamma: float = GAMMA,
    rho: float = RHO,
    penalty: float = PENALTY,
    bar: float = BAR,
    low: float = LOW,
    high: float = HIGH,
    linear: float = LINEAR,
    quadratic: float = QUADRATIC,
    step: float = STEP,
    after: str = typer.Option("", help="Contributions already made, such as 0.1,0.7."),
    at_once: bool = typer.Option(False, "--at-once", help="Nobody sees another's contribution."),
    json: bool = JSON,
) -> None:
    """List all equilibria on a grid of contributions, ties included."""
    from shoal.mechanisms.goods.subgame_perfect import sequential, simultaneous

    game = _game(agents, gamma, rho, penalty, bar, low, high, linear, quadratic)
    if at_once and after:
        raise ConfigError("Where all move at once nobody has moved before: leave out --after.")
    made = _contributions(after)
    found = simultaneous(game, step=step) if at_once else sequential(game, step=step, after=made)
    if json:
        rows = [{**asdict(one), "total": one.total, "welfare": one.welfare} for one in found]
        print_json({"game": asdict(game), "step": step, "after": made, "equilibria": rows})
        return
    _print("all at once" if at_once else "in sequence", found)
    console.print(_ABOUT_MODELS, style="dim", highlight=False)


_ABOUT_MODELS = (
    "This is about agents that choose a number and reason back from the end; of language models "
    "it says what would serve them, not what they do."
)


def _game(
    agents: int,
    gamma: float,
    rho: float,
    penalty: float,
    bar: float,
    low: float,
    high: float,
    linear: float,
    quadratic: float,
) -> Game:
    from shoal.mechanisms.goods.contribution_game import Cost, Game

    return Game(agents, gamma, rho, penalty, bar, Cost(linear, quadratic), low, high)


def _contributions(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ConfigError(f"--after takes numbers such as 0.1,0.7, not {text!r}.") from error


def _print(title: str, equilibria: tuple[Equilibrium, ...], most: int = 20) -> None:
    from rich.table import Table

    table = Table("contributions", "total", "welfare", "bar", "free riders", title=title)
    for one in equilibria[:most]:
        table.add_row(
            ", ".join(f"{c:.4g}" for c in one.contributions),
            f"{one.total:.4g}",
            f"{one.welfare:.4g}",
            "reached" if one.reaches_bar else "missed",
            ", ".join(str(i + 1) for i in one.free_riders) or "none",
        )
    console.print(table)
    if len(equilibria) > most:
        console.print(f"… and {len(equilibria) - most} more; --json lists all")
