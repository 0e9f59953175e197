"""The claim's own arithmetic and its smoke run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from shoal.cli import app
from shoal.core.claims import find_system, runner


@pytest.fixture(scope="module")
def rankings():
    checkout = runner.find_checkout()
    assert checkout is not None
    runner.load_claim(find_system("foldgpt"), checkout)
    return sys.modules["folding.rankings"]


def test_kendalls_tau_is_scipys(rankings):
    stats = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(0)
    for size in (5, 12, 30):
        one = draw.normal(size=size).round(1)
        other = (one + draw.normal(size=size)).round(0)
        expected = stats.kendalltau(one, other).statistic
        assert rankings.kendall(one.tolist(), other.tolist()) == pytest.approx(expected)


def test_the_smoke_run_removes_folds_and_cures(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["reproduce", "foldgpt", "--smoke", "--out", str(tmp_path), "--json"]
    )
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "result.json").read_text())
    arms = {arm["name"]: arm["metrics"] for arm in result["arms"]}
    removed = next(m for name, m in arms.items() if name.endswith(": gates"))
    folded = next(m for name, m in arms.items() if name.endswith(": folded"))
    original = next(m for name, m in arms.items() if name.endswith(": original"))
    assert removed["block_bytes"] * 6 == pytest.approx(original["block_bytes"] * 5, rel=0.01)
    assert folded["block_bytes"] == pytest.approx(removed["block_bytes"], rel=0.01)
    assert removed["cured_perplexity_jargon"] < removed["raw_perplexity_jargon"]
    exact = [
        v for v in result["verdicts"] if "changes nothing" in v["claim"] or "bytes" in v["claim"]
    ]
    assert all(verdict["holds"] for verdict in exact if "a plan" in verdict["claim"])
    assert (tmp_path / "gates.png").is_file() and (tmp_path / "losses.png").is_file()
