"""The claims of GiGPO and COPO: their parts, and their smoke runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shoal.cli import app
from shoal.core.claims import find_system, runner


def claim(name: str):
    checkout = runner.find_checkout()
    assert checkout is not None
    runner.load_claim(find_system(name), checkout)
    return sys.modules[f"shoal_benchmarks.{name}"]


def test_what_is_lost_late_is_the_best_of_the_last_fifth_less_the_end():
    late_loss = claim("copo").late_loss
    assert late_loss([0.0] * 8 + [0.5, 0.4]) == pytest.approx(0.1)
    assert late_loss([0.9] + [0.1] * 9) == 0


def test_rates_go_by_family():
    rated = claim("copo").rated(["GRPO", "COPO", "global only"], {"GRPO": 1.0, "COPO": 2.0})
    assert [arm["optimiser"]["lr"] for arm in rated.values()] == [1.0, 2.0, 2.0]


@pytest.mark.parametrize("name", ["gigpo", "copo"])
def test_a_smoke_run_measures_both_sides(name: str, tmp_path: Path):
    command = ["reproduce", name, "--smoke", "--json", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    arms = {arm["name"]: arm["metrics"] for arm in found["arms"]}
    ours, theirs = (("GiGPO", "GRPO") if name == "gigpo" else
                    ("strategies, COPO", "strategies, GRPO"))  # fmt: skip
    assert ours in arms and theirs in arms
    verdicts = {verdict["claim"]: verdict for verdict in found["verdicts"]}
    if name == "gigpo":
        assert arms[ours]["credit_from_states"] > 0 == arms[theirs]["credit_from_states"]
        assert "estimator: share of the step that states add" in verdicts
    else:
        # what is exact holds at any size: GRPO learns nothing from groups that agree
        assert verdicts["share of GRPO's gradient that comes from degenerate groups"]["holds"]
        assert verdicts["degenerate groups at the start, share"]["holds"]
