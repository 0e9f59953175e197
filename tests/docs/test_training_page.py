"""The page on training names what there is, and its examples hold."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from shoal.envs import ENVIRONMENTS
from shoal.training.config import RunConfig, parse_run
from shoal.training.estimators import ESTIMATORS

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_page_names_every_algorithm() -> None:
    assert [name for name in ESTIMATORS if f"`{name}`" not in PAGE] == []


def test_the_page_names_every_environment() -> None:
    assert [name for name in ENVIRONMENTS if f"`{name}`" not in PAGE] == []


def test_its_run_files_are_run_files() -> None:
    whole, *parts = (tomllib.loads(block) for block in blocks("toml"))
    assert parse_run(whole).algorithm.name == "gigpo"
    runs: list[RunConfig] = [parse_run({"environment": {"name": "taxi"}, **one}) for one in parts]
    large = runs[-1]
    assert any(one.policy.adapter == "lora" for one in runs)
    assert large.policy.device == "cuda" and large.optimiser.micro == 2


def test_its_python_runs() -> None:
    for block in blocks("python"):
        done = subprocess.run(
            [sys.executable, "-c", block], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
