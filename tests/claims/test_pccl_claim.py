"""The claim's way of counting, and its smoke run with real processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shoal.cli import app
from shoal.collectives.churn import Disruption, analyse


def step(pid: int, at: float, revision: int, content: str, rx: int = 0) -> dict[str, object]:
    return {"event": "step", "pid": pid, "at": at, "revision": revision, "hash": content, "rx": rx}


def test_recovery_counts_to_the_second_step_of_a_survivor():
    lines = [
        step(1, 0.9, 1, "x"),
        step(1, 1.1, 2, "y"),
        step(2, 1.2, 2, "y"),
        step(1, 1.7, 3, "z"),
        step(2, 1.8, 3, "z"),
        step(3, 1.15, 2, "y"),  # the victim's last words
        step(3, 1.16, 3, "z"),
    ]
    report = analyse(lines, [Disruption("kill", 3, 1.0), Disruption("join", 4, 1.0)])
    assert report.recoveries == pytest.approx((0.7,))
    assert (report.steps, report.revisions, report.differing) == (7, 3, 0)
    beside = analyse(lines, [Disruption("long freeze", 5, 0.5), Disruption("kill", 3, 1.0)])
    assert (beside.recoveries, beside.beside_a_freeze) == ((), report.recoveries)


def test_a_revision_with_two_contents_is_counted_and_so_are_late_bytes():
    lines = [step(1, 1.0, 5, "x", rx=3), step(2, 1.0, 5, "other", rx=4)]
    report = analyse(lines, [])
    assert (report.differing, report.fetched_later, report.recoveries) == (1, 7, ())


@pytest.mark.slow
def test_the_smoke_run_keeps_all_bits_equal(tmp_path: Path):
    command = ["reproduce", "pccl", "--smoke", "--json", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0
    verdicts = json.loads(done.stdout)["verdicts"]
    exact = [v for v in verdicts if "bits" in v["claim"] or "violations" in v["claim"]]
    assert len(exact) >= 3 and all(v["holds"] for v in exact)
