"""The solver beside plain recursion, and the conditions of the check, on random games."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from deciding.equilibria import FULL
from shoal.core.claims import Bench
from shoal.mechanisms.goods.alignment import conditions
from shoal.mechanisms.goods.contribution_game import Cost, Game
from shoal.mechanisms.goods.subgame_perfect import grid_of, sequential, simultaneous


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
