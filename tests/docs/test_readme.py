"""What the README says of the systems is what the registry says."""

from __future__ import annotations

from pathlib import Path

from shoal.core.claims import SYSTEMS
from shoal.core.claims.report import table

README = Path(__file__).parents[2] / "README.md"


def systems_of_the_registry() -> str:
    """The table as it stands in the README."""
    rows = [
        (f"[{s.title}](https://arxiv.org/abs/{s.arxiv})", f"`{s.name}`", s.room, s.state)
        for s in SYSTEMS
    ]
    return table(["system", "name", "room", "state"], rows)


def test_the_table_of_systems_is_up_to_date() -> None:
    text = README.read_text(encoding="utf-8")
    written = text.partition("<!-- systems -->")[2].partition("<!-- /systems -->")[0]
    assert written.strip() == systems_of_the_registry().strip()
