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


@pytest.fixture(scope="module", autouse=True)
def parts():
    """The claim's parts by name, once it is loaded."""
    checkout = runner.find_checkout()
    assert checkout is not None
    runner.load_claim(find_system("kvshare"), checkout)
    return {name: sys.modules[f"moving.{name}"] for name in ("tenants", "trace")}


def test_the_kolmogorov_smirnov_statistic_is_scipys(parts):
    stats = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(1)
    for n, m in ((5, 5), (20, 31), (7, 3)):
        one, other = draw.normal(size=n), draw.normal(0.5, size=m)
        expected = stats.ks_2samp(one, other).statistic
        assert parts["tenants"].ks(one.tolist(), other.tolist()) == pytest.approx(expected)


def test_its_p_value_is_near_the_exact_one(parts):
    stats = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(2)
    one, other = draw.normal(size=12), draw.normal(0.9, size=12)
    expected = stats.ks_2samp(one, other, method="exact").pvalue
    assert parts["tenants"].ks_test(one.tolist(), other.tolist(), 0) == pytest.approx(
        expected, abs=0.03
    )


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((1, 2, 3), (1, 2, 3), 1.0),
        ((1, 2, 3, 4), (2, 4), 2 * 2 / 6),
        ((1, 2), (3, 4), 0.0),
        ((1, 3, 2), (3, 1, 2), 2 * 2 / 6),
    ],
)
def test_rouge_l_is_that_of_the_longest_common_subsequence(parts, one, other, expected):
    assert parts["trace"].rouge_l(one, other) == pytest.approx(expected)


def test_ratios_are_of_quantiles(parts):
    base, ours = np.arange(1.0, 102.0) * 2, np.arange(1.0, 102.0)
    ratio = parts["trace"].quantile_ratio(base, ours, 0.5, 0)
    assert ratio.estimate == pytest.approx(2.0)
    assert ratio.low <= 2.0 <= ratio.high


@pytest.mark.model
def test_in_the_smoke_run_nothing_leaks_and_full_repair_is_exact(tmp_path: Path):
    command = ["reproduce", "kvshare", "--smoke", "--json", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    verdicts = {one["claim"]: one for one in json.loads(done.stdout)["verdicts"]}
    # two cases and four requests are too few for fidelity and times
    for claim in ("fp32, all moved tokens", "public cache with and without"):
        (found,) = (one for name, one in verdicts.items() if name.startswith(claim))
        assert found["holds"], found
