"""Gambit, an independent library of game theory, finds the same equilibria."""

from __future__ import annotations

import io
import itertools
from dataclasses import replace

import numpy as np
import pygambit
import pytest

from shoal.mechanisms.goods.contribution_game import Game
from shoal.mechanisms.goods.subgame_perfect import grid_of, reply, simultaneous

FULL = Game()
PLAIN = replace(FULL, gamma=0, penalty=0)


def reward(game: Game, i: int, c: tuple[float, ...]) -> float:
    """R_i, written anew."""
    reward = -(game.cost.linear * c[i] + game.cost.quadratic * c[i] ** 2)
    if i > 0:
        reward += game.gamma * c[i] * sum(c[:i]) / i
    reward += game.rho / game.agents * sum(c)
    return reward if sum(c) > game.bar - 1e-9 else reward - game.penalty


@pytest.mark.parametrize(
    "game",
    [FULL, PLAIN, replace(FULL, bar=2.4), replace(FULL, penalty=0), replace(FULL, gamma=0.5)],
)
def test_moving_at_once_has_gambits_pure_nash_equilibria(game: Game) -> None:
    grid = grid_of(game)
    profiles = list(itertools.product(grid.tolist(), repeat=3))
    tables = [np.array([round(reward(game, i, c), 9) for c in profiles]) for i in range(3)]
    strategic = pygambit.StrategicGame.from_arrays(
        *(table.reshape(len(grid), len(grid), len(grid)) for table in tables)
    )
    found = {
        tuple(float(grid[list(chosen.values()).index(1)]) for chosen in map(dict, profile))
        for profile in pygambit.nash.enumpure_solve(strategic).equilibria
    }
    assert {one.contributions for one in simultaneous(game)} == found


def tree_of(game: Game, grid: list[float]) -> pygambit.ExtensiveGame:
    """The game tree in Gambit's own file format."""
    lines = ['EFG 2 R "public goods" { "1" "2" "3" }', '""']
    infosets, outcomes = [0, 0, 0], itertools.count(1)
    actions = " ".join(f'"{c}"' for c in grid)

    def grow(made: tuple[float, ...]) -> None:
        i = len(made)
        if i == 3:
            rewards = ", ".join(f"{reward(game, j, made):.9f}" for j in range(3))
            lines.append(f't "" {next(outcomes)} "" {{ {rewards} }}')
            return
        infosets[i] += 1
        lines.append(f'p "" {i + 1} {infosets[i]} "" {{ {actions} }} 0')
        for c in grid:
            grow((*made, c))

    grow(())
    return pygambit.read_efg(io.StringIO("\n".join(lines)))


@pytest.mark.parametrize("game", [PLAIN, replace(FULL, bar=1.8), replace(FULL, bar=2.2)])
def test_at_no_node_of_gambits_tree_can_an_agent_gain_by_leaving_its_reply(game: Game) -> None:
    grid = grid_of(game, 0.3).tolist()
    tree = tree_of(game, grid)
    plan = [
        [
            [float(c == reply(game, made, step=0.3)) for c in grid]
            for made in itertools.product(grid, repeat=i)
        ]
        for i in range(3)
    ]
    assert regret(tree, plan) < 1e-4
    off_path = plan[2][0]
    plan[2][0] = off_path[1:] + off_path[:1]
    assert regret(tree, plan) > 0.01, "a wrong reply shows, also where nobody comes"


def regret(tree: pygambit.ExtensiveGame, plan: list[list[list[float]]]) -> float:
    """The largest at any node; hands tremble, as nodes that are never reached do not count."""
    trembling = [[[p + 1e-6 for p in node] for node in nodes] for nodes in plan]
    profile = tree.mixed_behavior_profile(trembling).normalize()
    return float(profile.agent_max_regret())
