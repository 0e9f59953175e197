"""`shoal hire`: problems in files and by name, solved, simulated and learnt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from shoal.cli import app
from shoal.core.errors import ConfigError, InputError, ShoalError
from shoal.mechanisms.hiring.examples import common_noise, independent_noise
from shoal.mechanisms.hiring.sheets import parse_hiring_sheet

TOML = """
cap = 1
prior = [0.5, 0.5]
utility = [[1, 0], [0, 1]]
[[agent]]
costs = [0, 0.03]
signals = [[[0.5, 0.5], [0.5, 0.5]], [[0.7, 0.3], [0.3, 0.7]]]
[[agent]]
costs = [0, 0.03]
signals = [[[0.5, 0.5], [0.5, 0.5]], [[0.7, 0.3], [0.3, 0.7]]]
"""
JOINT: dict[str, Any] = {
    "cap": 1,
    "utility": [[1, 0], [0, 1]],
    "agent": [{"costs": [0, 0.06]}] * 2,
    "P": common_noise().P.tolist(),
}


def shoal(*arguments: object, stdin: str | None = None) -> str:
    done = CliRunner().invoke(app, ["hire", *map(str, arguments)], input=stdin)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_file_is_the_problem_it_says(tmp_path: Path) -> None:
    np.testing.assert_allclose(parse_hiring_sheet(TOML, "x").P, independent_noise(cost=0.03).P)
    (tmp_path / "panel.toml").write_text(TOML)
    found = json.loads(shoal("solve", tmp_path / "panel.toml", "--json"))
    assert found["utility"]["correlated"] == pytest.approx(0.595)
    assert found["utility"]["each alone"] == pytest.approx(0.595)
    assert found["audit"]["counterexamples"] == []


def test_a_joint_problem_comes_from_stdin_and_is_shown_with_what_it_assumes() -> None:
    found = json.loads(shoal("solve", "-", "--json", stdin=json.dumps(JOINT)))
    assert found["utility"] == pytest.approx(
        {"correlated": 0.5723, "one profile": 0.5, "each alone": 0.5, "nobody hired": 0.5}, abs=1e-4
    )
    assert found["recommended"]["1 1"] == pytest.approx(0.064, abs=1e-3)
    text = shoal("solve")
    assert "0.57234" in text and "language model" in text


def test_rounds_are_simulated_around_what_they_are_worth() -> None:
    found = json.loads(shoal("simulate", "--rounds", 2_000, "--json"))
    assert found["utility"] == pytest.approx(found["expected_utility"], abs=0.06)
    assert found["agents"] == "simulated, obedient"
    assert "on average" in shoal("simulate", "--rounds", 5)


def test_learning_stops_and_resumes(tmp_path: Path) -> None:
    kept = tmp_path / "state.json"
    found = json.loads(shoal("learn", "--rounds", 20_000, "--state", kept, "--json"))
    assert found["rounds"] == sum(found["phases"].values()) == 20_000
    assert found["largest_gain"] <= 1e-9 and found["regret"] > 0
    again = json.loads(shoal("learn", "--rounds", 20_000, "--state", kept, "--json"))
    assert (again["rounds"], again["regret"]) == (0, 0)
    assert "optimism" in shoal("learn", "--rounds", 2_000, "--learner", "ucb-lp")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"cap": -1}, "cap on one agent's pay is -1"),
        ({"cap": "much"}, "wrong cap"),
        ({"cap": float("nan")}, "wrong cap"),
        ({"P": [[1, 2], [3]]}, "P is no regular table"),
        ({"P": [1, 0]}, "P has 1 axes"),
        ({"P": None}, "needs P, or a prior"),
        ({"P": None, "prior": [0.5, 0.5]}, "signals of agent 0 must be by 2 efforts"),
        ({"P": (2 * common_noise().P).tolist()}, r"efforts \(0, 0\) sums to 2"),
        ({"agent": []}, "wrong agent"),
        ({"agent": [{"costs": [0, -1]}] * 2}, "Agent 0 has costs"),
        ({"utility": [[1, 0], [0]]}, "utility is no regular table"),
        ({"caps": 1}, "wrong caps"),
    ],
)
def test_bad_input_is_one_sentence(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        shoal("solve", "-", stdin=json.dumps({**JOINT, **change}))


@pytest.mark.parametrize(
    ("arguments", "kind", "sentence"),
    [
        (("solve", "common-nois"), InputError, "Did you mean 'common-noise'"),
        (("solve", "nothing.toml"), InputError, "Cannot read the hiring problem"),
        (("learn", "--learner", "ucb"), ConfigError, "Did you mean 'ucb-lp'"),
    ],
)
def test_a_name_there_is_not_is_refused(
    arguments: tuple[str, ...], kind: type[ShoalError], sentence: str
) -> None:
    with pytest.raises(kind, match=sentence):
        shoal(*arguments)


def test_a_file_and_a_state_that_cannot_be_read_are_said(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("cap = ")
    with pytest.raises(InputError, match="cannot be read"):
        shoal("solve", tmp_path / "bad.toml")
    (tmp_path / "state.json").write_text("[]")
    with pytest.raises(InputError, match="not a readable learner's state"):
        shoal("learn", "--state", tmp_path / "state.json")
