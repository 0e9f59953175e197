"""Games over measured settings: against the grid game, by hand, and what is refused."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from shoal.core.errors import ConfigError, InputError
from shoal.core.rng import generator
from shoal.mechanisms.goods.contribution_game import Cost, Game
from shoal.mechanisms.goods.measured_game import MeasuredGame
from shoal.mechanisms.goods.subgame_perfect import grid_of, sequential, simultaneous

SETTINGS = (0.1, 0.4, 0.7, 1.0)


@pytest.mark.parametrize("bar", [1.1, 1.8, 2.55, 3.0])
def test_settings_that_always_score_the_same_are_the_grid_game(bar: float) -> None:
    game = Game(bar=bar)
    assert grid_of(game, 0.3).tolist() == list(SETTINGS)
    scores = np.broadcast_to(np.reshape(SETTINGS, (4, 1, 1)), (4, 3, 5))
    played = MeasuredGame(game, scores, scores)
    for found, known in (
        (played.in_sequence(), sequential(game, step=0.3)),
        (played.at_once(), simultaneous(game, step=0.3)),
    ):
        assert [one.contributions for one in found] == [
            pytest.approx(one.contributions) for one in known
        ]
        assert [one.rewards for one in found] == [pytest.approx(one.rewards) for one in known]
        assert [one.bar_hit for one in found] == [float(one.reaches_bar) for one in known]


@pytest.mark.parametrize("seed", range(20))
def test_equilibria_of_random_scores_are_those_of_plain_recursion(seed: int) -> None:
    rng = generator(seed, "measured")
    settings, agents, tasks = 3, 2 + seed % 2, 4
    scores = rng.uniform(0.1, 1, (settings, agents, tasks)).round(1)
    efforts = rng.uniform(0, 1, (settings, agents, tasks)).round(1)
    game = Game(agents=agents, bar=0.6 * agents, penalty=0.8, cost=Cost(0.7, 0.05))

    def rewards(profile: tuple[int, ...]) -> list[float]:
        by_task = [
            game.rewards(
                [scores[k, i, b] for i, k in enumerate(profile)],
                [efforts[k, i, b] for i, k in enumerate(profile)],
            )
            for b in range(tasks)
        ]
        return [sum(row[i] for row in by_task) / tasks for i in range(agents)]

    def recursion(made: tuple[int, ...]) -> set[tuple[int, ...]]:
        i = len(made)
        if i == agents:
            return {made}
        below = [recursion((*made, k)) for k in range(settings)]
        secured = max(min(rewards(end)[i] for end in ends) for ends in below)
        return {end for ends in below for end in ends if rewards(end)[i] >= secured - 1e-9}

    def stays(profile: tuple[int, ...]) -> bool:
        return all(
            rewards(profile)[i] >= rewards((*profile[:i], k, *profile[i + 1 :]))[i] - 1e-9
            for i in range(agents)
            for k in range(settings)
        )

    played = MeasuredGame(game, scores, efforts)
    assert {one.settings for one in played.in_sequence()} == recursion(())
    profiles = itertools.product(range(settings), repeat=agents)
    assert {one.settings for one in played.at_once()} == {one for one in profiles if stays(one)}


def test_a_bar_is_reached_in_the_share_of_tasks_in_which_enough_are_right() -> None:
    scores = np.array([[[0.1, 0.1], [0.1, 0.1]], [[0.9, 0.1], [0.9, 0.9]]])
    efforts = np.array([[[0.2, 0.2]] * 2, [[0.6, 0.6]] * 2])
    game = Game(agents=2, gamma=0, rho=1.0, penalty=1.0, bar=1.8, cost=Cost(0.5, 0.1))
    both = MeasuredGame(game, scores, efforts).of(1, 1)
    assert both.bar_hit == 0.5
    assert both.contributions == (0.5, 0.9)
    cost = 0.5 * 0.6 + 0.1 * 0.36
    assert both.rewards[0] == pytest.approx(0.5 * (1.8 + 1.0) / 2 - cost - 0.5)


def test_a_bar_that_no_setting_reaches_is_no_reason_to_work() -> None:
    scores = np.array([[[0.1] * 4] * 3, [[0.8, 0.1, 0.8, 0.1]] * 3])
    efforts = np.array([[[0.1] * 4] * 3, [[0.7] * 4] * 3])
    game = Game(gamma=0)
    (idle,) = MeasuredGame(game, scores, efforts).in_sequence()
    assert idle.settings == (0, 0, 0)
    (works,) = MeasuredGame(replace(game, bar=2.4), scores, efforts).in_sequence()
    assert works.settings == (1, 1, 1)


@pytest.mark.parametrize(
    ("scores", "efforts", "error", "sentence"),
    [
        (np.full((2, 3, 4), 0.5), np.full((2, 3, 5), 0.5), InputError, "settings x agents x tasks"),
        (np.full((2, 3), 0.5), np.full((2, 3), 0.5), InputError, "settings x agents x tasks"),
        (np.full((2, 3, 0), 0.5), np.full((2, 3, 0), 0.5), InputError, "0 tasks"),
        (np.full((2, 2, 4), 0.5), np.full((2, 2, 4), 0.5), ConfigError, "2 were measured"),
        (np.full((2, 3, 4), np.nan), np.full((2, 3, 4), 0.5), InputError, "contribution nan"),
        (np.full((2, 3, 4), 0.5), np.full((2, 3, 4), 1.5), InputError, "effort 1.5"),
    ],
)
def test_what_was_not_measured_is_refused(
    scores: np.ndarray, efforts: np.ndarray, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        MeasuredGame(Game(), scores, efforts)
