"""Moving in sequence, with a bar, a synergy and a share, makes contributing the only equilibrium.

    shoal reproduce mac-spgg [--smoke]

The game without any of that as the baseline; each part left out; all moving at once; what
Theorem 2 says of welfare; contributions that agents learn; a small model alone, by vote, by debate
and in sequence, with settings that policies learnt (benchmarks/deciding). "Everyone Contributes!
Incentivizing Strategic Cooperation in Multi-LLM Systems via Sequential Public Goods Games"
(arXiv 2508.02076).
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from shoal.core.claims import Bench
from shoal.core.stats import wilson_interval
from shoal.mechanisms.goods.alignment import conditions
from shoal.mechanisms.goods.contribution_game import Cost, Game
from shoal.mechanisms.goods.subgame_perfect import Equilibrium, grid_of, sequential, simultaneous

if str(Path(__file__).parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).parent))

from deciding import learning, sequences

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


def run(bench: Bench) -> None:
    """Solve the games of the table, and then many others."""
    bench.workload = (
        "Three agents contribute 0.10 to 1.00 in order, in steps of 0.05, at a cost of c + "
        "0.05 c². All pure equilibria are found by backward induction, ties included. The "
        "baseline is the public goods game without synergy and penalty. Checked against plain "
        "recursion on random games of 2 to 4 agents; conditions, on random games of 2 to 5. The "
        "reward is put together from the parts the paper describes. Learning: groups of three "
        "actor-critics, 200 epochs of 50 episodes. Models: SmolLM2-135M, sums of three one-digit "
        "numbers from reasoning-gym; five worked examples, sums to learn from and sums to be held "
        "to have none in common. Every arm may generate 200 tokens a sum, shared equally by its "
        "calls, and 50 a call. Fixed settings are chosen on the sums to learn from. The theorem is "
        "about scalar contributions: of models it promises nothing."
    )
    table(bench)
    at_once(bench)
    finer(bench)
    recursion(bench)
    proofs(bench)
    synergy(bench)
    theorem_2(bench)
    scale(bench)
    learning.learnt_contributions(bench)
    sequences.with_models(bench)


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


def random_game(rng: np.random.Generator, agents: int) -> Game:
    """Constants to one decimal, so that ties and bars met exactly are frequent."""
    gamma, rho, penalty = (round(float(one), 1) for one in rng.uniform(0, (2, agents, 2)))
    return Game(
        agents=agents,
        gamma=gamma,
        rho=rho,
        penalty=penalty,
        bar=round(float(rng.uniform(0.2, 1)) * agents, 1),
        cost=Cost(round(float(rng.uniform(0, 1.5)), 1), float(rng.choice([0.05, 0.2, 1.0]))),
    )


def plain_reward(game: Game, i: int, c: Sequence[float]) -> float:
    """R_i written once more, number by number."""
    reward = -(game.cost.linear * c[i] + game.cost.quadratic * c[i] ** 2)
    if i > 0:
        reward += game.gamma * c[i] * sum(c[:i]) / i
    reward += game.rho / game.agents * sum(c)
    return reward if sum(c) > game.bar - 1e-9 else reward - game.penalty


def plain_spne(
    game: Game, grid: Sequence[float], made: tuple[float, ...] = ()
) -> set[tuple[float, ...]]:
    """Outcomes of all pure SPNE after ``made``, one subgame after the other."""
    i = len(made)
    if i == game.agents:
        return {made}
    below = [plain_spne(game, grid, (*made, c)) for c in grid]
    secured = max(min(plain_reward(game, i, end) for end in ends) for ends in below)
    return {end for ends in below for end in ends if plain_reward(game, i, end) >= secured - 1e-9}


def plain_nash(game: Game, grid: Sequence[float]) -> set[tuple[float, ...]]:
    """All pure Nash equilibria, one profile after the other."""

    def stays(c: tuple[float, ...], i: int) -> bool:
        others = (plain_reward(game, i, (*c[:i], x, *c[i + 1 :])) for x in grid)
        return plain_reward(game, i, c) >= max(others) - 1e-9

    profiles = itertools.product(grid, repeat=game.agents)
    return {c for c in profiles if all(stays(c, i) for i in range(game.agents))}


def recursion(bench: Bench) -> None:
    """The solver beside plain recursion and enumeration, on random games."""
    games = bench.pick(full=200, smoke=30)
    wrong_sequential = wrong_at_once = several = several_at_once = none_at_once = 0
    for k in bench.track(range(games), "plain recursion"):
        game = random_game(bench.generator("recursion", k), 2 + k % 3)
        grid = grid_of(game, 0.15).tolist()
        found = {one.contributions for one in sequential(game, step=0.15)}
        nash = {one.contributions for one in simultaneous(game, step=0.15)}
        wrong_sequential += found != plain_spne(game, grid)
        wrong_at_once += nash != plain_nash(game, grid)
        several += len(found) > 1
        several_at_once += len(nash) > 1
        none_at_once += not nash
    bench.arm(
        "random games, constants to one decimal",
        games=games,
        several_equilibria_in_sequence=several,
        several_equilibria_at_once=several_at_once,
        no_pure_equilibrium_at_once=none_at_once,
    )
    bench.verdict(
        f"{games} random games: SPNE that differ from plain recursion", wrong_sequential, at_most=0
    )
    bench.verdict(
        f"{games} random games: Nash equilibria that differ from enumeration",
        wrong_at_once,
        at_most=0,
    )


def proofs(bench: Bench) -> None:
    """Random games that meet a condition, and equilibria in which what follows fails."""
    games = bench.pick(full=2_000, smoke=200)
    met, broken, several = [0, 0, 0], [0, 0, 0], 0
    for k in bench.track(range(games), "conditions"):
        rng = bench.generator("proofs", k)
        drawn = random_game(rng, 2 + k % 4)
        game = replace(
            drawn,
            **{
                name: float(getattr(drawn, name) + rng.uniform(0, 0.05))
                for name in ("gamma", "rho", "penalty")
            },
        )
        equilibria = sequential(game, step=0.1)
        several += len(equilibria) > 1
        kept = (
            all(one.reaches_bar for one in equilibria),
            all(one.contributions[-1] == game.high for one in equilibria),
            not any(one.free_riders for one in equilibria),
        )
        for place, condition in enumerate(conditions(game)):
            met[place] += condition.holds
            broken[place] += condition.holds and not kept[place]
    for place, condition in enumerate(conditions(FULL)):
        bench.arm(
            f"condition: {condition.name}", random_games=games, met=met[place], broken=broken[place]
        )
    bench.verdict(
        f"{games:,} random games: conditions met whose promise fails", sum(broken), at_most=0
    )
    bench.verdict(
        f"{games:,} random games, constants not rounded: with several equilibria",
        several,
        at_most=0,
    )


def synergy(bench: Bench) -> None:
    """From which synergy on the first mover stops riding free under a low bar."""
    gammas = np.round(np.arange(0, 1.5001, bench.pick(full=0.01, smoke=0.05)), 9).tolist()
    low = replace(FULL, bar=1.8)
    solved = [sequential(replace(low, gamma=gamma))[0] for gamma in bench.track(gammas, "synergy")]
    riding = [bool(one.free_riders) for one in solved]
    threshold = gammas[riding.index(False)]
    back = sum(riding[riding.index(False) :])
    bench.arm(
        "bar 1.8, by synergy", least_without_free_riding=threshold, riding_free_again_above_it=back
    )
    bench.verdict(
        "bar 1.8: least synergy without free-riding", threshold, at_least=0.9, at_most=1.1
    )
    bench.verdict("bar 1.8: larger synergies with free-riding", back, at_most=0)
    with bench.plot("synergy", "Contributions in equilibrium under a bar of 1.8, by synergy") as (
        axes,
    ):
        for i in range(3):
            c = [one.contributions[i] for one in solved]
            axes.step(gammas, c, where="post", label=f"agent {i + 1}")
        axes.set(xlabel="synergy γ", ylabel="contribution")
        axes.legend(fontsize=8)


def theorem_2(bench: Bench) -> None:
    """Welfare rises in synergy and share and falls in the bar: at each step of a scan."""
    steps = bench.pick(full=1, smoke=4)
    bars = np.round(np.arange(6, 61, steps) * 0.05, 9).tolist()
    scale_of = {
        "synergy": [
            replace(FULL, gamma=g) for g in np.round(np.arange(0, 61, steps) * 0.05, 9).tolist()
        ],
        "share": [
            replace(FULL, rho=r) for r in np.round(np.arange(0, 60, steps) * 0.05, 9).tolist()
        ],
        "bar": [replace(FULL, bar=b) for b in bars],
        "bar, no synergy, no share": [replace(FULL, gamma=0, rho=0, bar=b) for b in bars],
    }
    curves: dict[str, list[float]] = {}
    rises, falls = {}, {}
    for name, games in bench.track(list(scale_of.items()), "welfare"):
        curves[name] = [sequential(game)[0].welfare for game in games]
        change = np.diff(curves[name])
        rises[name], falls[name] = int((change > 1e-9).sum()), int((change < -1e-9).sum())
        bench.arm(
            f"welfare by {name}",
            steps=len(change),
            rises=rises[name],
            falls=falls[name],
            first=curves[name][0],
            last=curves[name][-1],
        )
    bench.verdict("Theorem 2: steps of synergy at which welfare falls", falls["synergy"], at_most=0)
    bench.verdict("Theorem 2: steps of share at which welfare falls", falls["share"], at_most=0)
    bench.verdict("Theorem 2: steps of the bar at which welfare rises", rises["bar"], at_most=0)
    bench.verdict(
        "without synergy and share: steps of the bar at which welfare rises",
        rises["bar, no synergy, no share"],
        at_most=0,
    )
    with bench.plot("welfare", "Welfare in equilibrium, by the bar") as (axes,):
        axes.plot(bars, curves["bar"], label="full reward")
        axes.plot(bars, curves["bar, no synergy, no share"], label="no synergy, no share")
        axes.set(xlabel="bar B", ylabel="sum of rewards")
        axes.legend(fontsize=8)


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
