"""``report.md``: a result for people. Pure text from a :class:`Result` and its captions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from shoal.core.claims.records import Arm, Metric, Result, Threshold, Verdict
from shoal.core.claims.systems import System
from shoal.core.stats import Interval


def render(result: Result, *, title: str, captions: Mapping[str, str]) -> str:
    """The whole report; ``captions`` maps the names of plots (``<name>.png``) to their text."""
    command = f"shoal reproduce {result.name} --seed {result.seed}"
    command += " --smoke" if result.mode == "smoke" else ""
    parts = [
        f"# {title}",
        f"{result.paper}.",
        f"**{result.held} of {len(result.verdicts)} verdicts hold.** "
        f"{result.mode.capitalize()} run, seed {result.seed}, {result.seconds:.0f} s. "
        f"Run it again: `{command}`",
        "## What was measured",
        result.workload,
        "## Verdicts",
        table(["", "claim", "measured", "must be"], map(_verdict_row, result.verdicts)),
        "## Arms",
        *_arm_tables(result.arms),
        *(["## Plots"] if captions else []),
        *(f"![{caption}]({name}.png)\n\n*{caption}*" for name, caption in captions.items()),
        "## Environment",
        table(["", ""], ((k, _text(v)) for k, v in result.environment.model_dump().items())),
    ]
    return "\n\n".join(parts) + "\n"


def systems_table(systems: Iterable[System], last: Mapping[str, Result], link: str = "") -> str:
    """All systems with state and last result; ``link`` holds ``{name}`` where reports are."""

    def row(system: System) -> tuple[str, ...]:
        result = last.get(system.name)
        measured = result.summary if result else "–"
        if result and link:
            measured = f"[{measured}]({link.format(name=system.name)})"
        return (
            f"`{system.name}`",
            system.title,
            f"[{system.paper}](https://arxiv.org/abs/{system.arxiv})",
            system.room,
            system.state,
            measured,
        )

    return table(["name", "system", "paper", "room", "state", "last result"], map(row, systems))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; bars in cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def number(value: float) -> str:
    """Four significant digits; whole numbers in full, with thousands separated."""
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"


def bounds(threshold: Threshold) -> str:
    """A threshold in signs."""
    low, high = threshold.low, threshold.high
    if low is None:
        return "anything" if high is None else f"≤ {number(high)}"
    if high is None:
        return f"≥ {number(low)}"
    return f"= {number(low)}" if low == high else f"{number(low)} to {number(high)}"


def _verdict_row(verdict: Verdict) -> tuple[str, ...]:
    mark = "holds" if verdict.holds else "**fails**"
    measured = metric(verdict.interval or verdict.measured)
    return mark, verdict.claim, measured, bounds(verdict.threshold)


def _arm_tables(arms: Sequence[Arm]) -> Iterable[str]:
    """One table for each stretch of arms with the same metrics."""
    for names, group in groupby(arms, key=lambda arm: tuple(arm.metrics)):
        head = ["arm", *(name.replace("_", " ") for name in names)]
        yield table(head, ([arm.name, *map(metric, arm.metrics.values())] for arm in group))


def metric(value: Metric) -> str:
    """A number, with its interval where it has one."""
    if isinstance(value, Interval):
        return f"{number(value.estimate)} [{number(value.low)}, {number(value.high)}]"
    return number(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _text(value: object) -> str:
    return "unknown" if value is None else str(value)
