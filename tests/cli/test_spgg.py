"""`shoal spgg`: constants are checked and games solved, as text and as JSON."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from shoal.cli import app
from shoal.core.errors import ConfigError, InputError, ShoalError


def shoal(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["spgg", *map(str, arguments)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def test_constants_that_work_are_called_aligned() -> None:
    text = shoal("check", "--gamma", 1.5, "--rho", 1.8, "--penalty", 1.5, "--bar", 2.55)
    assert "\naligned" in text
    assert "0.55, 1, 1" in text
    assert "language models" in text
    found = json.loads(shoal("check", "--json"))
    assert found["aligned"]
    assert [condition["holds"] for condition in found["conditions"]] == [True] * 3
    assert len(found["simultaneous"]) == 2


def test_constants_that_do_not_work_get_a_sentence_that_says_why() -> None:
    text = " ".join(shoal("check", "--gamma", 0, "--penalty", 0).split())
    assert "not aligned" in text
    assert "The bar of 2.55 is missed by 2.25" in text
    found = json.loads(shoal("check", "--gamma", 0, "--penalty", 0, "--rho", 3, "--json"))
    assert not found["aligned"]
    assert "no dilemma" in found["warnings"][0]


def test_games_are_solved_in_sequence_at_once_and_from_the_middle() -> None:
    (one,) = json.loads(shoal("solve", "--json"))["equilibria"]
    assert one["contributions"] == [0.55, 1.0, 1.0]
    assert one["welfare"] == pytest.approx(3.9124, abs=1e-4)
    assert len(json.loads(shoal("solve", "--at-once", "--json"))["equilibria"]) == 2
    (one,) = json.loads(shoal("solve", "--after", "0.1,0.1", "--json"))["equilibria"]
    assert one["contributions"] == [0.1, 0.1, 0.1]
    assert "missed" in shoal("solve", "--after", "0.1,0.1")
    assert "and 243 more" in shoal("solve", "--at-once", "--gamma", 0, "--bar", 1.8)


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        (["check", "--bar", 3.5], ConfigError, "bar is unreachable"),
        (["check", "--agents", 1], ConfigError, "at least 2 agents"),
        (["check", "--penalty", -1], ConfigError, "penalty is -1"),
        (["check", "--low", 0], ConfigError, "low end above 0"),
        (["check", "--quadratic", 0], ConfigError, "not convex"),
        (["solve", "--step", 0], ConfigError, "step is 0"),
        (["solve", "--agents", 7, "--bar", 1], ConfigError, "too many profiles"),
        (["solve", "--after", "a"], ConfigError, "takes numbers"),
        (["solve", "--after", "5"], InputError, "is no number in"),
        (["solve", "--after", "0.1", "--at-once"], ConfigError, "leave out --after"),
    ],
)
def test_bad_options_get_one_sentence(
    arguments: list[object], error: type[ShoalError], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        shoal(*arguments)
