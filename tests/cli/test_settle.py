"""`shoal settle`: sheets in three formats, from files and stdin, settled and audited."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shoal.cli import app
from shoal.core.errors import ConfigError, InputError, ShoalError
from shoal.mechanisms import ReportError

TOML = """
low = 0
high = 100
[reports]
anna = 10
ben = 10.0
carl = 10
dora = 10
emil = 100
"""
CSV = "agent,report,weight\nanna,10,\nben,10,2\ncarl,,\ndora,100,1\n"


def shoal(*arguments: object, stdin: str | None = None) -> str:
    done = CliRunner().invoke(app, ["settle", *map(str, arguments)], input=stdin)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def settlement(*arguments: object, stdin: str | None = None) -> dict[str, object]:
    found: dict[str, object] = json.loads(shoal(*arguments, "--json", stdin=stdin))["settlement"]
    return found


def test_a_file_is_settled_by_the_uniform_phantom(tmp_path: Path) -> None:
    (tmp_path / "caps.toml").write_text(TOML)
    found = settlement(tmp_path / "caps.toml")
    assert found["decision"]["outcome"] == 20  # type: ignore[index]
    text = shoal(tmp_path / "caps.toml")
    assert "outcome: 20" in text
    assert "language model" in text


def test_options_replace_what_the_file_says(tmp_path: Path) -> None:
    (tmp_path / "caps.toml").write_text(TOML)
    found = settlement(tmp_path / "caps.toml", "--rule", "mean", "--high", 200)
    assert found["decision"]["outcome"] == pytest.approx(28)  # type: ignore[index]
    assert found["mechanism"] == "facility_location(mean, 0, 200)"


@pytest.mark.parametrize(
    "text",
    [TOML, json.dumps({"high": 100, "reports": {"a": 10, "b": 10, "c": 10, "d": 10, "e": 100}})],
)
def test_stdin_is_read_in_the_format_it_has(text: str) -> None:
    assert settlement("-", stdin=text)["decision"]["outcome"] == 20  # type: ignore[index]


def test_csv_has_weights_and_an_empty_report_is_absent() -> None:
    found = settlement("-", "--high", 100, stdin=CSV)
    assert found["absent"] == ["carl"]
    assert found["decision"]["outcome"] == 25  # type: ignore[index]
    assert "carl is absent" in shoal("-", "--high", 100, stdin=CSV)


def test_a_budget_is_split() -> None:
    sheet = {
        "rule": "independent-markets",
        "alternatives": ["generate", "verify"],
        "reports": {"a": [1, 0], "b": [0.5, 0.5], "c": [0, 1]},
    }
    text = shoal("-", stdin=json.dumps(sheet))
    assert "outcome: generate 0.5, verify 0.5" in text
    assert "held" in shoal("-", "--audit", stdin=json.dumps(sheet))


def test_an_audit_needs_no_reports_and_shows_the_lie_that_pays() -> None:
    text = shoal("--audit", "--rule", "mean", "--agents", 3)
    assert "broken" in text
    found = json.loads(shoal("--audit", "--rule", "mean", "--agents", 3, "--json"))["audit"]
    broken = {one["promise"] for one in found["counterexamples"]}
    assert broken == {"strategyproof", "group-strategyproof"}
    assert "settlement" not in found


@pytest.mark.parametrize(
    ("stdin", "kind", "sentence"),
    [
        ('{"reports": {"a": 2}}', ReportError, "'a' reports 2"),
        ('{"reports": {"a": "much"}}', ReportError, "'a' reports 'much'"),
        ('{"reports": {"a": NaN}}', ReportError, "'a' reports nan"),
        ('{"reports": {"a": true}}', ReportError, "'a' reports True"),
        ('{"reports": {"a": null}}', ReportError, "at least one report"),
        ('{"reports": {}}', InputError, "wrong reports"),
        ('{"reports": {"a": 1, "a": 0}}', InputError, "'a' is there twice"),
        ('{"reports": {"a": 1}, "weights": {"a": -1}}', ConfigError, "weight of 'a' is -1"),
        ('{"reports": {"a": 1}, "weights": {"a": NaN}}', InputError, "wrong weights.a"),
        ('{"reports": {"a": 1}, "weights": {"a": 0}}', ConfigError, "All weights"),
        ('{"reports": {"a": 1}, "weights": {"b": 1}}', ConfigError, "weight for 'b'"),
        ('{"reports": {"a": 1}, "rule": "median", "alternatives": ["x"]}', ConfigError, "Only the"),
        ('{"reports": {"a": 1}, "rule": "medium"}', ConfigError, "Did you mean 'median'"),
        ('{"reports": {"a": 1}, "lo": 1}', InputError, "wrong lo"),
        ('{"reports": {"a": 1}, "low": 1}', ConfigError, "no interval"),
        ('{"reports": ', InputError, "cannot be read"),
        ("[reports]\na = 0.1\na = 0.2\n", InputError, "cannot be read"),
        ("agent,weight\na,1\n", InputError, "needs the columns"),
        ("agent,report\na,1,2,3\n", InputError, "needs the columns"),
        ("agent,report\n", InputError, "needs the columns"),
        ("agent,report\na,half\n", InputError, "report of 'a' is 'half'"),
        ("agent,report\na,1\na,1\n", InputError, "'a' is there twice"),
    ],
)
def test_bad_input_is_one_sentence(stdin: str, kind: type[ShoalError], sentence: str) -> None:
    with pytest.raises(kind, match=sentence):
        shoal("-", stdin=stdin)


def test_nothing_to_do_a_missing_file_and_a_large_group_are_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Give a file"):
        shoal()
    with pytest.raises(InputError, match="Cannot read the reports"):
        shoal(tmp_path / "nothing.toml")
    with pytest.raises(ConfigError, match="1 to 7 agents"):
        shoal("--audit", "--agents", 30)
