"""Fills `<!-- systems -->` in a page with the table of systems and their last results."""

from __future__ import annotations

from typing import Any

from shoal.core.claims import SYSTEMS
from shoal.core.claims.report import systems_table
from shoal.core.claims.runner import find_checkout, last_result

MARK = "<!-- systems -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for every page."""
    if MARK not in markdown:
        return markdown
    checkout = find_checkout()
    found = {system.name: last_result(system, checkout) for system in SYSTEMS}
    last = {name: result for name, result in found.items() if result is not None}
    return markdown.replace(MARK, systems_table(SYSTEMS, last, link="{name}/report.md"))
