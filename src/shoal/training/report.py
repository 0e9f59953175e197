"""A comparison as a table, as JSON, and as a plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shoal.core.errors import MissingExtra
from shoal.core.files import atomic_path, write_text
from shoal.core.stats import Interval, mean_interval
from shoal.training.compare import GRID, Comparison


def summary(found: Comparison, baseline: str) -> dict[str, Any]:
    """What each arm reached, beside the baseline: numbers only, for JSON."""
    arms = list(dict.fromkeys(curve.arm for curve in found.curves))
    return {
        "budget_env_steps": found.budget,
        "seeds": [start.seed for start in found.starts],
        "start": [start.success for start in found.starts],
        "baseline": baseline,
        "arms": {
            arm: {
                "success_area": _as_dict(found.area(arm)),
                "final_success": _as_dict(mean_interval(found.finals(arm))),
                "areas_by_seed": found.aucs(arm),
                "beyond_baseline": None if arm == baseline else _as_dict(
                    found.difference(arm, baseline)
                ),
                "cpu_seconds": float(np.mean([curve.cpu_seconds for curve in found.of(arm)])),
            }
            for arm in arms
        },
    }  # fmt: skip


def markdown(told: Mapping[str, Any]) -> str:
    """The summary as a page."""
    lines = [
        f"# {', '.join(told['arms'])}",
        "",
        f"{len(told['seeds'])} paired seeds, {told['budget_env_steps']:,} environment steps each; "
        f"held-out success before training {np.mean(told['start']):.3f}. Areas are means of "
        "held-out success over the steps, with 95 % bootstrap intervals.",
        "",
        f"| algorithm | success area | final success | beyond {told['baseline']} |",
        "|---|---|---|---|",
    ]
    for arm, values in told["arms"].items():
        beyond = values["beyond_baseline"]
        lines.append(
            f"| {arm} | {_text(values['success_area'])} | {_text(values['final_success'])} | "
            f"{_text(beyond) if beyond else '–'} |"
        )
    return "\n".join([*lines, "", "![Success over steps](success.png)", ""])


def write(found: Comparison, baseline: str, folder: Path) -> dict[str, Any]:
    """Write ``report.md``, ``result.json`` and ``success.png``; the summary.

    Raises :class:`MissingExtra` without matplotlib: a comparison comes with its plot.
    """
    import json

    plot(found, folder / "success.png")
    told = summary(found, baseline)
    write_text(folder / "report.md", markdown(told))
    write_text(folder / "result.json", json.dumps(told, indent=2) + "\n")
    return told


def plot(found: Comparison, path: Path) -> None:
    """Mean held-out success over steps, with the range of the seeds."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtra("A comparison draws its curves and", "claims") from error
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    steps = np.linspace(0, found.budget, GRID)
    for arm in dict.fromkeys(curve.arm for curve in found.curves):
        rows = np.array([curve.at(found.budget) for curve in found.of(arm)])
        axes.plot(steps, rows.mean(axis=0), label=arm)
        axes.fill_between(steps, rows.min(axis=0), rows.max(axis=0), alpha=0.15)
    axes.set(xlabel="environment steps", ylabel="held-out success", ylim=(0, 1))
    axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})


def _as_dict(value: Interval) -> dict[str, float]:
    return {"mean": value.estimate, "low": value.low, "high": value.high}


def _text(value: Mapping[str, float]) -> str:
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
