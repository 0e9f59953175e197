"""The claim's random problems and its smoke run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from solving_model import SolvingModel
from typer.testing import CliRunner

from shoal.cli import app
from shoal.core.claims import find_system, runner
from shoal.mechanisms.hiring.information_acquisition import alone


@pytest.fixture(scope="module")
def claim():
    checkout = runner.find_checkout()
    assert checkout is not None
    runner.load_claim(find_system("hiring-agents"), checkout)
    return sys.modules["shoal_benchmarks.hiring_agents"]


@pytest.mark.parametrize("n", [2, 3])
def test_no_effort_says_nothing_about_the_state_in_random_problems(claim, n):
    case = claim.random_problem(np.random.default_rng(n), n)
    for i in range(n):
        idle_sT = alone(case, i)[0]
        np.testing.assert_allclose(idle_sT, np.outer(idle_sT.sum(1), idle_sT.sum(0)), atol=1e-12)


def test_a_doubt_is_read_as_it_is_worded(claim):
    pytest.importorskip("reasoning_gym")
    from deciding.sums import doubts, sums

    part = claim.hired_models
    for one in doubts(sums(30, 5), np.random.default_rng(1)):
        question = part.worded(one)
        assert part.sum_of(question) == one.task.question
        assert part.agrees(question, f"\nAnswer: {one.task.answer}") == one.true
        assert part.agrees(question, "no answer") == 0


def test_in_the_smoke_run_all_optima_hold_and_nobody_gains(
    claim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("reasoning_gym")
    monkeypatch.setattr(claim.hired_models, "open_engine", lambda model: SolvingModel())
    command = ["reproduce", "hiring-agents", "--smoke", "--json", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0
    verdicts = json.loads(done.stdout)["verdicts"]
    # two seeds up to 10^5 rounds are too few for a slope, and a busy machine for a time
    failed = {v["claim"] for v in verdicts if not v["holds"]}
    apart = ("slope", "CPU", "at full effort", "by those of both")  # two are about a real model
    assert {name for name in failed if not any(part in name for part in apart)} == set()
