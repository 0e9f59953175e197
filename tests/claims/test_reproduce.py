"""`shoal reproduce` end to end, on a checkout made of one small claim."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shoal.cli import app
from shoal.core.claims import SYSTEMS, Result, runner
from shoal.core.errors import ConfigError, InputError, MissingExtra

CLAIM = '''
"""A claim that holds or fails as its seed says."""

def run(bench):
    bench.workload = "One number."
    bench.arm("baseline", value=1.0)
    bench.arm("method", value=float(bench.seed))
    bench.verdict("the seed is at most 5", bench.seed, at_most=5)
    with bench.plot("seed", "The seed") as (axes,):
        axes.plot([0, bench.seed])
'''
NAME = "collaboration-mechanisms"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "benchmarks").mkdir()
    for system in runner.measured_systems():
        (tmp_path / "benchmarks" / f"{system.module}.py").write_text(CLAIM)
    monkeypatch.setattr(runner, "find_checkout", lambda: tmp_path)
    return tmp_path


def shoal(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["reproduce", *map(str, arguments)], catch_exceptions=True)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout


def test_a_full_run_writes_result_report_and_plots_into_docs(checkout):
    code, text = shoal(NAME)
    folder = checkout / "docs" / "claims" / NAME
    assert code == 0
    assert "report.md" in text
    assert sorted(path.name for path in folder.iterdir()) == [
        "report.md",
        "result.json",
        "seed.png",
    ]
    result = Result.model_validate_json((folder / "result.json").read_text())
    assert (result.name, result.mode, result.holds) == (NAME, "full", True)
    assert "2501.06322" in result.paper


def test_a_failed_verdict_exits_0_and_with_check_1(checkout):
    assert shoal(NAME, "--smoke", "--seed", 9)[0] == 0
    assert shoal(NAME, "--smoke", "--seed", 9, "--check")[0] == 1
    assert shoal(NAME, "--smoke", "--seed", 1, "--check")[0] == 0


def test_a_smoke_run_never_replaces_a_full_result(checkout):
    shoal(NAME)
    full = checkout / "docs" / "claims" / NAME
    before = (full / "result.json").read_bytes()
    shoal(NAME, "--smoke", "--seed", 2)
    with pytest.raises(InputError, match="full result"):
        shoal(NAME, "--smoke", "--out", full)
    assert (full / "result.json").read_bytes() == before
    assert (checkout / "out" / "claims" / NAME / "result.json").is_file()


def test_json_prints_the_result_and_nothing_else(checkout):
    code, text = shoal(NAME, "--smoke", "--json", "--out", checkout / "here")
    assert code == 0
    assert Result.model_validate_json(text).mode == "smoke"
    assert Result.model_validate_json((checkout / "here" / "result.json").read_text())


def test_all_runs_every_claim_there_is_each_in_its_folder(checkout):
    code, text = shoal("--all", "--smoke", "--json", "--out", checkout / "here")
    names = [result["name"] for result in json.loads(text)]
    assert code == 0
    assert names == [system.name for system in runner.measured_systems()]
    assert all((checkout / "here" / name / "report.md").is_file() for name in names)


def test_list_shows_36_systems_with_state_and_last_result(checkout):
    shoal(NAME)
    listed = json.loads(shoal("--list", "--json")[1])
    assert [entry["name"] for entry in listed] == [system.name for system in SYSTEMS]
    ours = next(entry for entry in listed if entry["name"] == NAME)
    declared = next(system for system in SYSTEMS if system.name == NAME)
    assert ours["state"] == declared.state
    assert ours["last"]["held"] == ours["last"]["verdicts"] == 1
    text = shoal("--list")[1]
    assert sum(system.name.split("-")[0] in text for system in SYSTEMS) == 36


def test_without_arguments_it_lists():
    assert shoal()[1] == shoal("--list")[1]


def test_an_unknown_name_names_the_nearest(checkout):
    with pytest.raises(ConfigError, match="Did you mean 'kvcomm'"):
        shoal("kvcom")


def test_a_planned_system_says_that_it_has_no_claim_yet(checkout):
    with pytest.raises(ConfigError, match="PONITA is planned and has no claim"):
        shoal("ponita")


def test_a_name_and_all_together_are_refused(checkout):
    with pytest.raises(ConfigError, match="not both"):
        shoal(NAME, "--all")


def test_without_a_checkout_list_works_and_a_run_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(runner, "find_checkout", lambda: None)
    assert len(json.loads(shoal("--list", "--json")[1])) == 36
    with pytest.raises(InputError, match="source checkout"):
        shoal(NAME)


def test_without_matplotlib_the_extra_is_named_before_anything_runs(checkout, monkeypatch):
    monkeypatch.setattr(runner.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"shoal\[claims\]"):
        shoal(NAME)
    assert not (checkout / "docs").exists()


def test_a_claim_that_crashes_leaves_the_earlier_result_alone(checkout):
    shoal(NAME, "--smoke")
    folder = checkout / "out" / "claims" / NAME
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    claim = checkout / "benchmarks" / "collaboration_mechanisms.py"
    claim.write_text(CLAIM + "    raise RuntimeError('half way')\n")
    with pytest.raises(RuntimeError, match="half way"):
        shoal(NAME, "--smoke")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_file_in_the_place_of_the_folder_is_refused_before_anything_runs(checkout):
    (checkout / "taken").write_text("mine")
    with pytest.raises(InputError, match="taken is a file"):
        shoal(NAME, "--smoke", "--out", checkout / "taken")
    assert (checkout / "taken").read_text() == "mine"


def test_an_unreadable_result_is_named(checkout):
    folder = checkout / "docs" / "claims" / NAME
    folder.mkdir(parents=True)
    (folder / "result.json").write_text("{half")
    with pytest.raises(InputError, match=r"result\.json is not a readable result"):
        shoal("--list")
