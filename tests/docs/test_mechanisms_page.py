"""The page on mechanisms names every rule, and its examples run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from shoal.mechanisms.location.rules import RULES

PAGE = (Path(__file__).parents[2] / "docs" / "mechanisms.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_page_names_every_rule_of_facility_location() -> None:
    assert [name for name in (*RULES, "independent-markets") if f"`{name}`" not in PAGE] == []


def test_the_examples_run_and_the_first_settles_on_20() -> None:
    for block in BLOCKS:
        done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    first = subprocess.run([sys.executable, "-c", BLOCKS[0]], capture_output=True, text=True)
    assert first.stdout == "20.0\n"
