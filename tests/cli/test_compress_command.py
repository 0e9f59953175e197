"""`shoal compress` and `shoal plan`: a model from the command line, and what it says of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shoal.cli import app
from shoal.core.errors import ConfigError, ShoalError
from shoal.models.export import write_folder
from shoal.models.loading import load
from shoal.training.policies import random_weights


@pytest.fixture(scope="module")
def five(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five random blocks."""
    from dataclasses import replace

    tiny = load(str(tiny_model), dtype="fp32")
    config = replace(tiny.config, layers=5)
    folder = tmp_path_factory.mktemp("models") / "five"
    weights = {name: t.detach() for name, t in random_weights(config, seed=2).items()}
    write_folder(
        folder, config, weights, tokenizer=tiny.tokenizer.backend.to_str(), chat_template=None
    )
    (folder / "tokenizer_config.json").write_text(
        (tiny_model / "tokenizer_config.json").read_text()
    )
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("a net is only as good as its knots. " * 60)
    return path


def shoal(*arguments: object) -> str:
    done = CliRunner().invoke(app, [*map(str, arguments)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_a_model_is_compressed_shown_run_and_exported(
    five: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "short"
    told = shoal(
        "compress", five, "--remove", 0.2, "--fold", 0.2, "--cure", 256, "--text", text,
        "--row", 64, "--out", out, "--dtype", "fp32",
    )  # fmt: skip
    assert "5 blocks, 4 executed, 3 stored" in told
    assert "perplexity on" in told
    shown = json.loads(shoal("plan", "show", out, "--json"))
    assert len(shown["plan"]["steps"]) == 4
    assert [stage["name"] for stage in shown["account"]["stages"]] == [
        "original", "removed", "folded", "cured",
    ]  # fmt: skip
    assert load(str(out)).config.layers == 4
    done = json.loads(shoal("plan", "export", out, tmp_path / "hub", "--json"))
    assert "written in full" in done["warning"]
    assert load(str(tmp_path / "hub")).config.layers == 4


def test_no_cure_is_allowed_and_says_what_it_costs(five: Path, text: Path, tmp_path: Path) -> None:
    told = shoal(
        "compress",
        five,
        "--remove",
        0.2,
        "--text",
        text,
        "--row",
        64,
        "--rank",
        "loss",
        "--out",
        tmp_path / "raw",
    )
    assert "The plan was not cured: its perplexity is" in told


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--rank", "luck"), "no ranking .luck.: give gates or loss"),
        (("--remove", "1.2"), r"remove must lie in \[0, 1\)"),
        (("--remove", "0.4", "--fold", "0.4"), "leaves 1: together they may be at most 0.6"),
    ],
)
def test_shares_are_checked_before_anything_runs(
    five: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        shoal("compress", five, *options, "--out", tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_a_folder_without_a_plan_is_named(tmp_path: Path) -> None:
    with pytest.raises(ShoalError, match=r"plan\.json is no plan that can be read"):
        shoal("plan", "show", tmp_path)
