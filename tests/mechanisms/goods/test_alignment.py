"""The check of constants: what it proves holds in every equilibrium, and it says why not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.mechanisms.goods.alignment import check_game, conditions
from shoal.mechanisms.goods.contribution_game import Cost, Game
from shoal.mechanisms.goods.subgame_perfect import sequential

FULL = Game()


@st.composite
def games(draw: Callable) -> Game:
    """Constants around the conditions' edges."""
    agents = draw(st.integers(2, 4))
    low = draw(st.sampled_from([0.05, 0.1, 0.3]))
    return Game(
        agents=agents,
        gamma=draw(st.floats(0, 2)),
        rho=draw(st.floats(0, 2 * agents)),
        penalty=draw(st.floats(0, 3)),
        bar=draw(st.floats(0.5, 1)) * agents,
        cost=Cost(draw(st.floats(0, 1.5)), draw(st.floats(0.01, 1))),
        low=low,
    )


@settings(max_examples=200)
@given(games())
def test_what_the_conditions_say_holds_in_every_equilibrium(game: Game) -> None:
    filling, full, no_room = (condition.holds for condition in conditions(game))
    for one in sequential(game, step=0.19):
        assert one.reaches_bar or not filling
        assert one.contributions[-1] == game.high or not full
        assert not one.free_riders or not no_room


def test_the_default_constants_are_aligned_and_proved_to_be() -> None:
    found = check_game(FULL)
    assert found.aligned
    assert found.objections == found.warnings == ()
    assert all(condition.holds for condition in found.conditions)
    assert [condition.left for condition in found.conditions] == pytest.approx(
        [1.5, 0.6 + 1.5 * 0.775, 2.55]
    )
    assert [condition.right for condition in found.conditions] == pytest.approx(
        [1.05 - 0.1005, 1.1, 2.15]
    )
    assert len(found.simultaneous) == 2


@pytest.mark.parametrize(
    ("game", "sentence"),
    [
        (replace(FULL, gamma=0, penalty=0), "bar of 2.55 is missed by 2.25"),
        (replace(FULL, penalty=0), "a penalty above 0.9495 is sure to prevent that"),
        (
            replace(FULL, gamma=0, bar=1.8),
            r"\(0.1, 0.7, 1\) agent 1 of 3 rides free: raise the bar",
        ),
        (replace(FULL, gamma=0, penalty=0), "agent 1, 2, 3 of 3 rides free"),
    ],
)
def test_it_says_why_constants_do_not_work(game: Game, sentence: str) -> None:
    found = check_game(game)
    assert not found.aligned
    with pytest.raises(AssertionError, match=sentence):
        raise AssertionError(" ".join(found.objections))


def test_ties_are_an_objection() -> None:
    game = Game(agents=2, gamma=0, rho=2, penalty=0, bar=0.2, cost=Cost(0, 1), low=0.25, high=0.75)
    found = check_game(game, step=0.5)
    assert len(found.equilibria) == 4
    assert "There are 4 equilibria" in found.objections[0]


def test_what_is_no_dilemma_is_warned_of() -> None:
    (warning,) = check_game(replace(FULL, rho=3)).warnings
    assert "rho = 3 is not below the 3 agents" in warning
    (warning,) = check_game(replace(FULL, rho=0.5, gamma=0)).warnings
    assert "a loss for the group" in warning
