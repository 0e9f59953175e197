"""``shoal run --dry-run``: who hears whom, what a run may cost, whether the budget holds."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from shoal.agents.forecast import Forecast, forecast
from shoal.agents.picture import edges_of
from shoal.cli.console import console, print_json
from shoal.cli.topology import canvas

if TYPE_CHECKING:
    from shoal.agents import Material, Team
    from shoal.core.protocols import Engine


def dry_run(team: Team, task: str, material: Material, engine: Engine, *, json: bool) -> None:
    """Print the topology, the growth of prompts and the budget; nothing is generated."""
    found = asyncio.run(_foreseen(team, task, material, engine))
    if json:
        print_json(_as_dict(team, found))
        return
    console.print(canvas(team))
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for name in ("superstep", "members", "prompt tokens", "answer tokens", "so far"):
        table.add_column(name, justify="left" if name == "members" else "right")
    total = 0
    for step in found.supersteps:
        total += step.prompt_tokens + step.answer_tokens
        members = ", ".join(step.members[:4])
        if len(step.members) > 4:
            members += f" and {len(step.members) - 4} more"
        table.add_row(
            str(step.superstep),
            members,
            f"{step.prompt_tokens:,}",
            f"{step.answer_tokens:,}",
            f"{total:,}",
        )
    console.print(table)
    console.print(
        f"At most {found.requests} requests and {found.tokens:,} tokens "
        f"({found.prompt_tokens:,} of prompts, before sharing), then: {found.why}.",
        highlight=False,
    )
    console.print(_budget(found), highlight=False)


def _budget(found: Forecast) -> str:
    limits = {name: value for name, value in asdict(found.limits).items() if value is not None}
    if not limits:
        return "The team has no budget: its stop rule alone ends it."
    said = ", ".join(f"{value:,} {name}" for name, value in limits.items())
    if found.outcome == "budget_exhausted":
        return f"The budget ({said}) is used up before: the run ends with a hand-back turn."
    return f"The budget ({said}) suffices."


async def _foreseen(team: Team, task: str, material: Material, engine: Engine) -> Forecast:
    try:
        return await forecast(team, task, material, engine=engine)
    finally:
        await engine.close()


def _as_dict(team: Team, found: Forecast) -> dict[str, Any]:
    edges = [{"from": src, "to": dst, "carry": carry} for src, dst, carry in edges_of(team)]
    return {"team": team.name, "edges": edges} | asdict(found) | {"tokens": found.tokens}
