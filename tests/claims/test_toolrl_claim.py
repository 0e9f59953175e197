"""The claim of ToolRL: its parts, and its smoke run."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shoal.cli import app
from shoal.core.claims import Bench, find_system, runner
from shoal.envs.tool_world import HELD_OUT
from shoal.training.compare import Comparison, Curve, Start


def part(name: str):
    """A module of the claim's own."""
    checkout = runner.find_checkout()
    assert checkout is not None
    runner.load_claim(find_system("toolrl"), checkout)
    return sys.modules[f"calling.{name}"]


def curve(seed: int, greedy: list[float], mixed: float) -> Curve:
    measured = tuple({"held_out.success": one / 2, "held_out.greedy": one} for one in greedy)
    told = tuple({"groups.mixed": mixed, "marks.format": n / 40, "marks.value": 0.5 + n % 2 / 9}
                 for n in range(40))  # fmt: skip
    success = tuple(one / 2 for one in greedy)
    return Curve("original", seed, (0, 50, 100), success, {"groups.mixed": mixed}, measured, told,
                 1.0)  # fmt: skip


def test_silent_groups_and_looks_are_read_off_the_runs():
    starts = tuple(Start(seed, {}, 0.1, {}) for seed in (0, 1))
    found = Comparison((curve(0, [0.2, 0.4, 0.6], 0.75), curve(1, [0.1, 0.2, 0.3], 0.5)), starts,
                       100)  # fmt: skip
    assert part("telling").zero_variance(found, "original") == [0.25, 0.5]
    assert part("telling").hacked(found, "original") == 1.0
    greedy = found.measured("original", "held_out.greedy")
    assert greedy[:, 0].tolist() == [0.2, 0.1] and greedy[:, 50].tolist() == [0.4, 0.2]
    assert found.on([1]).aucs("original") == pytest.approx([0.1])


def test_variants_take_the_originals_rate_and_main_arms_their_own():
    module = part("world")
    rates = {"original": 1.0, "coarse": 2.0, "binary": 3.0}
    rated = module.rated({**module.MAIN, **module.OTHERS}, rates)
    assert {name: rated[name]["optimiser"]["lr"] for name in module.MAIN} == rates
    assert {rated[name]["optimiser"]["lr"] for name in module.OTHERS} == {1.0}


def test_choices_look_at_requests_that_are_neither_learned_from_nor_tested():
    module = part("world")
    base = module.tool_world(Bench(smoke=True))
    chosen = module.validated(base).environment
    assert chosen.train[1] <= chosen.held_out[0] < chosen.held_out[1] <= HELD_OUT
    assert base.environment.held_out[0] >= HELD_OUT
    changed = module.slipping(base, 0.0)["environment"]["options"]
    assert changed == {**base.environment.options, "slips": 0.0}


@pytest.mark.slow
@pytest.mark.model
def test_a_real_model_with_an_adapter_learns_from_bfcl():
    if find_spec("bfcl_eval") is None:
        pytest.skip("bfcl-eval's data is not installed")
    bench = Bench(smoke=True)
    part("bfcl").real_model(bench)
    arms = {arm.name.rpartition(", ")[2]: arm.metrics for arm in bench.arms}
    assert set(arms) == {"as it comes", "warm-started", "trained", "updates"}
    assert arms["updates"]["warm_start_loss"] > 0


def test_a_smoke_run_measures_all_sides(tmp_path: Path):
    command = ["reproduce", "toolrl", "--smoke", "--json", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    arms = {arm["name"]: arm["metrics"] for arm in found["arms"]}
    assert {"warm start", "original", "coarse", "binary", "original - coarse"} <= set(arms)
    # at any size and from any start parts say something where all-or-nothing is silent
    assert arms["original"]["zero_variance_groups"] < arms["binary"]["zero_variance_groups"]
    verdicts = {verdict["claim"]: verdict for verdict in found["verdicts"]}
    for name, verdict in verdicts.items():
        if name.startswith("scorer"):
            assert verdict["holds"]
