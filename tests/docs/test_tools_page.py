"""The page on tools: its example runs, and it names every stage."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from shoal.tools.retrieval.settings import STAGES

PAGE = (Path(__file__).parents[2] / "docs" / "tools.md").read_text(encoding="utf-8")


def test_the_example_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == (
        "cancel the order -> shop.orders.cancel\nsend a mail about it -> post.mail.send\n"
    ), done.stderr


def test_every_stage_is_named_in_order() -> None:
    table = PAGE.split("## The stages")[1]
    assert tuple(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == STAGES
