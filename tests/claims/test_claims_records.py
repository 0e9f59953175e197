"""The bench, the records it fills, the report made of them, and alternating timing."""

from __future__ import annotations

import json
import time

import pytest
from pydantic import ValidationError

from shoal.core.claims import SYSTEMS, Arm, Bench, Environment, Result, Timing, alternate
from shoal.core.claims.environment import environment
from shoal.core.claims.report import bounds, number, render, systems_table
from shoal.core.stats import Interval


def result(bench: Bench) -> Result:
    return Result(
        name="spm",
        paper="A paper (arXiv 0000.00000)",
        mode="smoke",
        workload="Two numbers.",
        arms=tuple(bench.arms),
        verdicts=tuple(bench.verdicts),
        seconds=1.5,
        seed=3,
        environment=Environment(
            shoal="0", python="3.11", torch=None, cpu="a cpu", cores=2, load=0.5
        ),
    )


def filled() -> Bench:
    bench = Bench(smoke=True, seed=3)
    bench.arm("baseline", seconds=2.0, tokens=12_000)
    bench.arm("method", seconds=1.0, tokens=4_000)
    bench.arm("both", speedup=Interval(2.0, 1.8, 2.2))
    bench.verdict("is twice as fast", Interval(2.0, 1.8, 2.2), at_least=1.5)
    bench.verdict("is ten | times as fast", 2.0, at_least=10.0)
    return bench


def test_result_json_has_exactly_the_documented_keys_and_reads_back():
    whole = result(filled())
    plain = json.loads(whole.model_dump_json())
    assert list(plain) == [
        "name",
        "paper",
        "mode",
        "workload",
        "arms",
        "verdicts",
        "seconds",
        "seed",
        "environment",
    ]
    assert plain["arms"][0] == {"name": "baseline", "metrics": {"seconds": 2.0, "tokens": 12000}}
    assert plain["verdicts"][0] == {
        "claim": "is twice as fast",
        "measured": 2.0,
        "threshold": {"low": 1.5, "high": None},
        "holds": True,
        "interval": {"estimate": 2.0, "low": 1.8, "high": 2.2, "level": 0.95},
    }
    assert Result.model_validate_json(whole.model_dump_json()) == whole


def test_a_failed_verdict_shows_in_the_result_and_in_the_report():
    whole = result(filled())
    assert (whole.held, whole.holds) == (1, False)
    report = render(whole, title="SPM", captions={"growth": "Growth"})
    assert "**1 of 2 verdicts hold.**" in report
    assert r"| **fails** | is ten \| times as fast | 2 | ≥ 10 |" in report
    assert "| holds | is twice as fast | 2 [1.8, 2.2] | ≥ 1.5 |" in report
    assert "![Growth](growth.png)" in report
    assert "shoal reproduce spm --seed 3 --smoke" in report


def test_arms_with_the_same_metrics_share_a_table():
    report = render(result(filled()), title="SPM", captions={})
    assert "| arm | seconds | tokens |\n| --- | --- | --- |\n| baseline | 2 | 12,000 |" in report
    assert "| arm | speedup |" in report


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(value):
    with pytest.raises(ValidationError):
        Arm(name="a", metrics={"x": value})


def test_a_result_without_verdicts_is_refused():
    bench = Bench()
    bench.arm("only", value=1)
    with pytest.raises(ValidationError):
        result(bench)


@pytest.mark.parametrize(
    ("low", "high", "value", "holds"),
    [(1, None, 1, True), (1, None, 0.99, False), (None, 2, 2, True), (1, 2, 2.01, False)],
)
def test_a_verdict_holds_between_its_bounds_ends_included(low, high, value, holds):
    assert Bench().verdict("x", value, at_least=low, at_most=high) is holds


def test_bench_draws_depend_on_the_seed_and_the_keys_alone():
    a, b = Bench(seed=1), Bench(seed=1)
    a.generator("other").random(5)
    assert a.generator("x", 2).random() == b.generator("x", 2).random()
    assert a.seed_of("x") != Bench(seed=2).seed_of("x")


def test_track_reports_every_item_and_the_end():
    seen: list[tuple[str, int, int]] = []
    bench = Bench(on_progress=lambda *step: seen.append(step))
    assert list(bench.track("ab", "letters")) == ["a", "b"]
    assert seen == [("letters", 0, 2), ("letters", 1, 2), ("letters", 2, 2)]


def test_a_plot_is_a_png_and_the_same_data_give_the_same_bytes():
    def draw() -> bytes:
        bench = Bench()
        with bench.plot("line", "A line", panels=2) as (left, right):
            left.plot([0, 1])
            right.plot([1, 0])
        return bench.plots["line"].png

    assert draw().startswith(b"\x89PNG")
    assert draw() == draw()


def test_alternating_arms_swap_their_order_every_round_and_skip_the_warmup():
    order: list[str] = []
    timings = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3)
    assert "".join(order) == "baabbaab"
    assert timings["a"].wall.shape == timings["a"].cpu.shape == (3,)


def test_a_sleeping_arm_costs_wall_time_and_no_cpu_time():
    timings = alternate({"sleep": lambda: time.sleep(0.01), "spin": _spin}, rounds=4)
    assert timings["sleep"].wall.mean() >= 0.01
    assert timings["sleep"].cpu.mean() < timings["spin"].cpu.mean()


def _spin() -> None:
    until = time.process_time() + 0.01
    while time.process_time() < until:
        pass


def test_the_ratio_of_timings_is_baseline_over_arm():
    import numpy as np

    slow = Timing(wall=np.array([2.0, 2.2, 1.8]), cpu=np.array([4.0, 4.0, 4.0]))
    fast = Timing(wall=np.array([1.0, 1.1, 0.9]), cpu=np.array([1.0, 1.0, 1.0]))
    wall = fast.times_faster_than(slow)
    assert (wall.estimate, wall.low, wall.high) == pytest.approx((2.0, 2.0, 2.0))
    assert fast.times_faster_than(slow, "cpu").estimate == 4.0


def test_one_round_is_too_few_for_an_interval():
    with pytest.raises(ValueError, match="two rounds"):
        alternate({"a": lambda: None}, rounds=1)


def test_the_environment_names_no_host_and_no_path():
    import platform

    text = environment().model_dump_json()
    assert platform.node() not in text
    assert "/home" not in text


def test_numbers_and_bounds_read_well():
    assert [number(x) for x in (0.64812, 12_000, 12_345.6, 1e-7, 3.0)] == [
        "0.6481",
        "12,000",
        "12,346",
        "1e-07",
        "3",
    ]
    bench = Bench()
    bench.verdict("a", 1, at_most=0)
    bench.verdict("b", 1, at_least=1, at_most=1)
    bench.verdict("c", 1, at_least=0.5, at_most=2)
    assert [bounds(v.threshold) for v in bench.verdicts] == ["≤ 0", "= 1", "0.5 to 2"]


def test_the_registry_holds_36_systems_with_distinct_names_and_papers():
    assert len(SYSTEMS) == 36
    assert len({system.name for system in SYSTEMS}) == 36
    assert len({system.arxiv for system in SYSTEMS}) == 36


def test_the_systems_table_links_the_results_there_are():
    table = systems_table(SYSTEMS, {"spm": result(filled())}, link="{name}/report.md")
    assert len(table.splitlines()) == 38
    assert "[1 of 2 hold (smoke, 2 s)](spm/report.md)" in table
