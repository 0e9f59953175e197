"""The claim's best replies, its parts with models, and its smoke run."""

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


@pytest.fixture(scope="module")
def claim():
    checkout = runner.find_checkout()
    assert checkout is not None
    runner.load_claim(find_system("mac-spgg"), checkout)
    return sys.modules["shoal_benchmarks.mac_spgg"]


def test_best_replies_end_in_one_of_the_equilibria(claim):
    totals = {one.total for one in claim.simultaneous(claim.FULL)}
    for seed in range(30):
        end = claim.best_replies(claim.FULL, np.random.default_rng(seed))
        assert min(abs(end - total) for total in totals) < 1e-9


def test_votes_go_by_answers_and_the_first_of_equals(claim):
    most = claim.sequences._most
    assert most(["Answer: 1", "so\nAnswer: 2", "Answer: 2"]) == "so\nAnswer: 2"
    assert most(["Answer: 1", None, "no answer"]) == "Answer: 1"
    assert most([None, "none", ""]) == ""


def test_every_arm_has_the_same_tokens_to_spend(claim):
    part = claim.sequences
    assert part.RANGES.longest == part.LONGEST
    assert 3 * part.LONGEST <= part.BUDGET


def test_sums_are_apart_and_worked_out_right(claim):
    pytest.importorskip("reasoning_gym")
    from deciding.sums import apart

    shown, learning, held = apart((5, 20, 20), 3)
    questions = [task.question for task in (*shown, *learning, *held)]
    assert len(set(questions)) == 45
    for task in held:
        a, b, c = (int(term) for term in task.question.split(" + "))
        assert task.answer == str(a + b + c)
        assert task.solution == f"{a} + {b} = {a + b}, {a + b} + {c} = {a + b + c}."


def test_in_the_smoke_run_all_holds_but_that_welfare_falls_in_the_bar(
    claim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("reasoning_gym")
    monkeypatch.setattr(claim.sequences, "open_engine", lambda model: SolvingModel())
    command = ["reproduce", "mac-spgg", "--smoke", "--json", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0
    verdicts = json.loads(done.stdout)["verdicts"]
    solved = [v for v in verdicts if not v["claim"].startswith(("learnt", "MAC-SPGG"))]
    failed = {v["claim"] for v in solved if not v["holds"] and "CPU" not in v["claim"]}
    assert failed == {"Theorem 2: steps of the bar at which welfare rises"}
