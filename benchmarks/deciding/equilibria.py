"""The table of equilibria to the cell, all moving at once, finer grids, and more agents."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from shoal.core.claims import Bench
from shoal.core.stats import wilson_interval
from shoal.mechanisms.goods.contribution_game import Game
from shoal.mechanisms.goods.subgame_perfect import Equilibrium, grid_of, sequential, simultaneous

FULL = Game()  # the constants of the published checkpoint; the bar is 3 times 0.85
PLAIN = replace(FULL, gamma=0, penalty=0)

# game, contributions in equilibrium, welfare to two decimals: computed before, by other code
TABLE: dict[str, tuple[Game, tuple[float, ...], float]] = {
    "plain public goods game": (PLAIN, (0.10, 0.10, 0.10), 0.24),
    "full reward": (FULL, (0.55, 1, 1), 3.91),
    "no synergy": (replace(FULL, gamma=0), (0.55, 1, 1), 1.92),
    "no penalty": (replace(FULL, penalty=0), (0.35, 1, 1), 3.31),
    "no share": (replace(FULL, rho=0), (0.55, 1, 1), -0.68),
    "no synergy, bar 1.8": (replace(FULL, gamma=0, bar=1.8), (0.10, 0.70, 1), 1.36),
    "bar 2.1": (replace(FULL, bar=2.1), (0.10, 1, 1), 2.55),
    "bar 2.4": (replace(FULL, bar=2.4), (0.40, 1, 1), 3.46),
    "bar 2.7": (replace(FULL, bar=2.7), (0.70, 1, 1), 4.36),
    "bar 3.0": (replace(FULL, bar=3.0), (1, 1, 1), 5.25),
    "synergy 0.8, bar 1.8": (replace(FULL, gamma=0.8, bar=1.8), (0.10, 0.70, 1), 1.74),
    "synergy 1.2, bar 1.8": (replace(FULL, gamma=1.2, bar=1.8), (0.45, 1, 1), 3.26),
}
CELL = 0.005 + 1e-9  # welfare is given to two decimals


def describe(one: Equilibrium) -> dict[str, float]:
    """Metrics of one equilibrium."""
    return {
        **{f"c{i + 1}": c for i, c in enumerate(one.contributions)},
        "total": one.total,
        "welfare": one.welfare,
        "free_riders": len(one.free_riders),
    }


def table(bench: Bench) -> None:
    """The table of equilibria, to the cell."""
    apart, off, several = 0.0, 0.0, 0
    started = time.process_time()
    solved = {name: sequential(game) for name, (game, _, _) in TABLE.items()}
    seconds = time.process_time() - started
    for name, (_, contributions, welfare) in TABLE.items():
        one = solved[name][0]
        bench.arm(name, equilibria=len(solved[name]), **describe(one))
        several += len(solved[name]) > 1
        apart = max(apart, float(np.abs(np.subtract(one.contributions, contributions)).max()))
        off = max(off, abs(one.welfare - welfare))
    bench.verdict(
        "12 games: largest distance from the cells computed before, contributions",
        apart,
        at_most=1e-9,
    )
    bench.verdict(
        "12 games: largest distance from the cells computed before, welfare", off, at_most=CELL
    )
    bench.verdict("12 games: those with more than one equilibrium", several, at_most=0)
    bench.verdict("12 games: CPU seconds to solve", seconds, at_most=1.0)
    plain, full = solved["plain public goods game"][0], solved["full reward"][0]
    bench.verdict("plain game: agents of 3 that ride free", len(plain.free_riders), at_least=3)
    bench.verdict("full reward: agents of 3 that ride free", len(full.free_riders), at_most=0)
    bench.verdict(
        "welfare of the full reward over that of the plain game",
        full.welfare / plain.welfare,
        at_least=1.0,
    )


def at_once(bench: Bench) -> None:
    """All move at once: more equilibria, and where agents that answer each other end."""
    for name, (game, _, _) in TABLE.items():
        found = simultaneous(game)
        bench.arm(
            f"{name}, all at once",
            equilibria=len(found),
            lowest_total=min(one.total for one in found),
            highest_total=max(one.total for one in found),
        )
    found = simultaneous(FULL)
    bench.verdict("full reward, all at once: equilibria", len(found), at_least=2, at_most=2)
    bench.verdict(
        "full reward, all at once: total of the worst",
        min(one.total for one in found),
        at_least=0.3 - 1e-9,
        at_most=0.3 + 1e-9,
    )
    starts = bench.pick(full=2_000, smoke=200)
    ends = [
        best_replies(FULL, bench.generator("starts", k))
        for k in bench.track(range(starts), "best replies")
    ]
    stuck = sum(end < FULL.bar - 1e-9 for end in ends)
    bench.arm(
        "full reward, all at once, best replies from random starts",
        starts=starts,
        share_that_misses_the_bar=wilson_interval(stuck, starts),
    )
    bench.verdict(
        "random starts that end below the bar when all move at once",
        wilson_interval(stuck, starts),
        at_least=0.01,
    )


def best_replies(game: Game, rng: np.random.Generator) -> float:
    """The total at which agents end that answer each other in turn, from a random start."""
    grid = grid_of(game)
    c = [float(one) for one in rng.choice(grid, game.agents)]
    while True:
        before = list(c)
        for i in range(game.agents):
            columns = [grid if j == i else np.full(1, one) for j, one in enumerate(c)]
            c[i] = float(grid[game.reward_of(i, columns).argmax()])
        if c == before:
            return sum(c)


def finer(bench: Bench) -> None:
    """The same games on a grid five times as fine."""
    moved = 0.0
    for name, (game, _, _) in bench.track(list(TABLE.items()), "finer grid"):
        coarse, fine = sequential(game)[0], sequential(game, step=0.01)
        largest = float(np.abs(np.subtract(fine[0].contributions, coarse.contributions)).max())
        bench.arm(f"{name}, step 0.01", equilibria=len(fine), **describe(fine[0]))
        moved = max(moved, largest)
    bench.verdict(
        "12 games: largest change of a contribution when steps are 0.01", moved, at_most=0.05
    )


def scale(bench: Bench) -> None:
    """CPU seconds by the number of agents."""
    for n in bench.track(range(2, bench.pick(full=6, smoke=5)), "agents"):
        game = replace(FULL, agents=n, bar=0.85 * n)
        started = time.process_time()
        found = sequential(game)
        seconds = time.process_time() - started
        bench.arm(
            f"{n} agents, bar {game.bar:g}",
            profiles=len(grid_of(game)) ** n,
            cpu_seconds=seconds,
            equilibria=len(found),
            total=found[0].total,
            free_riders=len(found[0].free_riders),
        )
    bench.verdict(f"{n} agents: CPU seconds to solve", seconds, at_most=5.0)
    bench.verdict(f"{n} agents: total over the bar", found[0].total - game.bar, at_least=-1e-9)
