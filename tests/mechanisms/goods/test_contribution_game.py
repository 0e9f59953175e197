"""The contribution game: rewards by hand, equilibria by plain recursion."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import ConfigError, InputError
from shoal.mechanisms.goods.contribution_game import Cost, Game
from shoal.mechanisms.goods.subgame_perfect import grid_of, reply, sequential, simultaneous

FULL = Game()
PLAIN = replace(FULL, gamma=0, penalty=0)

# Computed independently of this code: n = 3, kappa = c + 0.05 c², a grid of 0.05.
TABLE = {
    "plain public goods game": (PLAIN, (0.10, 0.10, 0.10), 0.24),
    "full reward": (FULL, (0.55, 1, 1), 3.91),
    "no synergy": (replace(FULL, gamma=0), (0.55, 1, 1), 1.92),
    "no penalty": (replace(FULL, penalty=0), (0.35, 1, 1), 3.31),
    "no share": (replace(FULL, rho=0), (0.55, 1, 1), -0.68),
    "penalty alone": (replace(FULL, gamma=0, bar=1.8), (0.10, 0.70, 1), 1.36),
    "bar 2.1": (replace(FULL, bar=2.1), (0.10, 1, 1), 2.55),
    "bar 2.4": (replace(FULL, bar=2.4), (0.40, 1, 1), 3.46),
    "bar 2.7": (replace(FULL, bar=2.7), (0.70, 1, 1), 4.36),
    "bar 3.0": (replace(FULL, bar=3.0), (1, 1, 1), 5.25),
    "synergy 0.8": (replace(FULL, gamma=0.8, bar=1.8), (0.10, 0.70, 1), 1.74),
    "synergy 1.2": (replace(FULL, gamma=1.2, bar=1.8), (0.45, 1, 1), 3.26),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_table_of_equilibria_is_reproduced_to_the_cell(name: str) -> None:
    game, contributions, welfare = TABLE[name]
    (found,) = sequential(game)
    assert found.contributions == pytest.approx(contributions, abs=1e-12)
    assert found.welfare == pytest.approx(welfare, abs=0.005 + 1e-9)


def test_moving_at_once_adds_the_equilibrium_in_which_all_ride_free() -> None:
    found = [one.contributions for one in simultaneous(FULL)]
    assert found == [(0.1, 0.1, 0.1), (0.55, 1.0, 1.0)]


def test_rewards_are_cost_synergy_share_and_penalty() -> None:
    game = Game(gamma=2, rho=0.9, penalty=5, bar=1.5, cost=Cost(1, 0.5))
    expected = [
        -(0.4 + 0.08) + 0.9 / 3 * 1.9,
        -(0.5 + 0.125) + 2 * 0.5 * 0.4 + 0.9 / 3 * 1.9,
        -(1.0 + 0.5) + 2 * 1.0 * 0.45 + 0.9 / 3 * 1.9,
    ]
    assert game.rewards([0.4, 0.5, 1.0]) == pytest.approx(expected)
    missed = game.rewards([[0.4, 0.5, 0.5], [0.4, 0.5, 0.6]])
    assert missed[0, 0] - missed[1, 0] == pytest.approx(-5 - 0.9 / 3 * 0.1)


def test_an_agent_that_took_no_part_leaves_the_shares_as_they_are() -> None:
    game = Game(bar=1.0, gamma=0.5)
    assert game.rewards([0.5, 0.7])[1] == pytest.approx(
        -(0.7 + 0.05 * 0.49) + 0.5 * 0.7 * 0.5 + 1.8 / 3 * 1.2
    )


def test_a_total_of_decimal_fractions_reaches_its_bar() -> None:
    assert 0.1 + 0.7 + 1.0 < 1.8
    assert replace(FULL, bar=1.8).reaches_bar(0.1 + 0.7 + 1.0)


def plain_reward(game: Game, i: int, c: tuple[float, ...]) -> float:
    reward = -(game.cost.linear * c[i] + game.cost.quadratic * c[i] ** 2)
    if i > 0:
        reward += game.gamma * c[i] * sum(c[:i]) / i
    reward += game.rho / game.agents * sum(c)
    return reward if sum(c) > game.bar - 1e-9 else reward - game.penalty


def plain_spne(game: Game, grid: list[float], made: tuple[float, ...] = ()) -> set[tuple]:
    """Outcomes of all pure SPNE after ``made``, one subgame after the other."""
    i = len(made)
    if i == game.agents:
        return {made}
    below = [plain_spne(game, grid, (*made, c)) for c in grid]
    secured = max(min(plain_reward(game, i, end) for end in ends) for ends in below)
    return {end for ends in below for end in ends if plain_reward(game, i, end) >= secured - 1e-9}


def plain_nash(game: Game, grid: list[float]) -> set[tuple]:
    def stays(c: tuple[float, ...], i: int) -> bool:
        others = (plain_reward(game, i, (*c[:i], x, *c[i + 1 :])) for x in grid)
        return plain_reward(game, i, c) >= max(others) - 1e-9

    profiles = itertools.product(grid, repeat=game.agents)
    return {c for c in profiles if all(stays(c, i) for i in range(game.agents))}


@st.composite
def games(draw: Callable) -> Game:
    """Constants on a coarse grid, so that ties and bars met exactly are frequent."""
    agents = draw(st.integers(2, 4))
    tenths = st.integers(0, 30).map(lambda k: k / 10)
    return Game(
        agents=agents,
        gamma=draw(tenths),
        rho=draw(tenths),
        penalty=draw(tenths),
        bar=draw(st.integers(0, 10 * agents)) / 10,
        cost=Cost(draw(tenths), draw(st.sampled_from([0.05, 0.5, 2.0]))),
        low=draw(st.sampled_from([0.1, 0.2])),
    )


@settings(max_examples=200)
@given(games())
def test_equilibria_are_those_of_plain_recursion_and_enumeration(game: Game) -> None:
    grid = grid_of(game, 0.2).tolist()
    assert {one.contributions for one in sequential(game, step=0.2)} == plain_spne(game, grid)
    assert {one.contributions for one in simultaneous(game, step=0.2)} == plain_nash(game, grid)


def test_a_subgame_off_the_path_has_its_own_equilibrium() -> None:
    assert reply(FULL, [0.55]) == 1.0
    assert reply(FULL, [0.1, 0.1]) == 0.1, "the bar is out of reach: nothing to save"
    (found,) = sequential(FULL, after=[0.62, 1.0])
    assert found.contributions == (0.62, 1.0, 1.0)


def test_steps_that_do_not_divide_the_interval_are_made_smaller() -> None:
    assert grid_of(FULL, 0.05).tolist() == [round(0.1 + 0.05 * k, 12) for k in range(19)]
    assert grid_of(FULL, 0.4).tolist() == [0.1, 0.4, 0.7, 1.0]


def test_five_agents_are_solved() -> None:
    (found,) = sequential(Game(agents=5, bar=4.25))
    assert found.reaches_bar
    assert found.total == pytest.approx(4.25)


@pytest.mark.parametrize(
    ("constants", "sentence"),
    [
        ({"agents": 1}, "at least 2 agents, not 1"),
        ({"penalty": -0.1}, "penalty is -0.1"),
        ({"gamma": -1}, "gamma is -1"),
        ({"rho": math.nan}, "rho is nan"),
        ({"bar": math.inf}, "bar is inf"),
        ({"low": 0.0}, "low end above 0"),
        ({"low": -0.1}, "low end above 0"),
        ({"low": 1.0}, "below the high end"),
        ({"high": math.inf}, "make no sense"),
        ({"bar": 3.01}, "bar is unreachable: it is 3.01, and 3 agents contribute 3 at most"),
    ],
)
def test_constants_that_make_no_sense_are_refused(constants: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Game(**constants)


@pytest.mark.parametrize(("linear", "quadratic"), [(-1, 1), (1, -1), (math.nan, 1), (1, 0)])
def test_a_cost_that_is_not_convex_and_rising_is_refused(linear: float, quadratic: float) -> None:
    with pytest.raises(ConfigError, match="part of the cost is"):
        Cost(linear, quadratic)


@pytest.mark.parametrize("c", [[0.05, 1, 1], [0.5, 1.2, 1], [math.nan, 1, 1]])
def test_contributions_outside_of_the_interval_are_refused(c: list[float]) -> None:
    with pytest.raises(InputError, match=r"is no number in \[0.1, 1\]"):
        FULL.rewards(c)


@pytest.mark.parametrize("c", [[], [0.5] * 4, 0.5])
def test_a_wrong_number_of_contributions_is_refused(c: list[float]) -> None:
    with pytest.raises(InputError, match="contributions in a row"):
        FULL.rewards(c)


def test_a_grid_that_cannot_be_solved_is_refused() -> None:
    with pytest.raises(ConfigError, match="too many profiles"):
        sequential(Game(agents=6))
    for step in (0, -0.1, 1.0, math.nan):
        with pytest.raises(ConfigError, match="The step is"):
            sequential(FULL, step=step)
    with pytest.raises(ConfigError, match="nobody of 3 is to move"):
        sequential(FULL, after=[0.1, 0.1, 0.1])
    with pytest.raises(InputError, match="is no number"):
        reply(FULL, [7.0])
