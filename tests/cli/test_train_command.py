"""``shoal train`` from its run file to a look inside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shoal.cli import app
from shoal.cli.train import _coloured
from shoal.training.trace import Shown

RUN = """
iterations = 2
log_every = 1
[environment]
name = "taxi"
options = { max_steps = 5 }
held_out = [1000000, 1000004]
[groups]
tasks = 2
episodes = 2
[policy]
hidden = 16
layers = 1
heads = 2
[sampler]
max_tokens = 1
[evaluation]
every = 1
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHOAL_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.toml"
    path.write_text(RUN)
    return path


def call(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["train", *arguments])
    assert done.exit_code == 0, done.output + repr(done.exception)
    return done.output


def test_a_run_file_is_all_it_takes(file: Path) -> None:
    told = json.loads(call(str(file), "--json"))
    assert told["done"] == 2 and told["finished"]
    assert {"success", "reward", "held_out.success", "tokens_per_second"} <= set(told["metrics"])


def test_a_run_that_ended_has_nothing_left_to_resume(file: Path) -> None:
    call(str(file), "--iterations", "1")
    assert json.loads(call("resume", "last", "--json"))["done"] == 1


def test_a_group_is_shown_with_its_tokens(file: Path) -> None:
    call(str(file))
    assert "episode 1, return 0" in call("inspect", "last", "--group", "0")
    told = json.loads(call("inspect", "--json"))
    assert told["iteration"] == 2 and len(told["steps"]) == 10
    assert {"pieces", "logprobs", "advantage", "state"} <= set(told["steps"][0])


def test_tokens_are_green_where_they_are_reinforced_and_red_where_not() -> None:
    def style(advantage: float) -> str:
        step = Shown("0", 3, "", ("go", " left"), (-1.0, -1.0), advantage, 0.0, "")
        line = _coloured(step, 2.0)
        assert line.plain == f"  3 {advantage:+.3f} go left"
        return str(line.spans[-1].style)

    assert style(2.0) == "rgb(0,255,0)" and style(-2.0) == "rgb(255,0,0)"
    assert style(1.0) == "rgb(0,155,0)"  # half as strong
    assert style(0.0) == "dim"


def test_a_run_that_learns_looks_alone_is_warned_about(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(folder: Path) -> list[dict[str, float]]:
        return [{"marks.format": n / 40, "marks.value": 0.2 + n % 2 / 50} for n in range(40)]

    monkeypatch.setattr("shoal.training.run.read_metrics", told)
    assert "Format rose by" in call(str(file))
    assert "Format rose by" in json.loads(call(str(file), "--json"))["warning"]


def test_algorithms_are_compared_on_paired_seeds(file: Path, tmp_path: Path) -> None:
    file.write_text("env_steps = 60\n" + RUN)
    told = json.loads(call("compare", str(file), "--algos", "grpo,gigpo", "--seeds", "2", "--json"))
    assert set(told["arms"]) == {"grpo", "gigpo"} and told["seeds"] == [0, 1]
    assert told["arms"]["grpo"]["beyond_baseline"] is None
    assert set(told["arms"]["gigpo"]["beyond_baseline"]) == {"mean", "low", "high"}
    folder = tmp_path / "comparison"
    assert {path.name for path in folder.iterdir()} == {"report.md", "result.json", "success.png"}


def test_an_unknown_algorithm_is_refused_before_anything_runs(file: Path) -> None:
    done = CliRunner().invoke(app, ["train", "compare", str(file), "--algos", "grpo,gigp"])
    assert done.exit_code != 0 and "Did you mean 'gigpo'" in str(done.exception)
