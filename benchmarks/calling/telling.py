"""What is told of runs: accuracies on held-out tools, paired differences, verdicts, curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from calling.accuracies import ends
from calling.world import OTHERS
from shoal.core.claims import Bench
from shoal.core.stats import difference_interval
from shoal.training.compare import GRID, Comparison
from shoal.training.rewards.hacking import drift


def told(bench: Bench, found: Comparison, arms: Mapping[str, Mapping[str, Any]]) -> None:
    """What each arm reached on held-out tools, and what became of its groups."""
    if "original" in arms:
        start = [one.told for one in found.starts]
        bench.arm("warm start", **ends(start, bench.seed))
    for name in arms:
        curves = found.of(name)
        bench.arm(
            name,
            exact_area=found.area(name),
            **ends([curve.held_out for curve in curves], bench.seed),
            zero_variance_groups=1 - found.metric(name, "groups.mixed"),
            format_without_the_rest=hacked(found, name),
            cpu_seconds_a_run=float(np.mean([curve.cpu_seconds for curve in curves])),
        )


def hacked(found: Comparison, name: str) -> float:
    """Share of runs whose format rose while right values did not."""
    drifts = [drift(curve.told) for curve in found.of(name)]
    return float(np.mean([one is not None and one.hacked for one in drifts]))


def judged(bench: Bench, found: Comparison) -> None:
    """The original beside coarse and binary over paired seeds; what was promised of it."""
    for other in ("coarse", "binary"):
        area = found.difference("original", other)
        pairs = list(zip(found.aucs("original"), found.aucs(other), strict=True))
        final = difference_interval(found.finals("original"), found.finals(other), paired=True)
        bench.arm(
            f"original - {other}",
            exact_area=area,
            final_exact=final,
            seeds_won=sum(ours > theirs for ours, theirs in pairs),
        )
        bench.verdict(f"original - {other}: sampled exact match, area", area, at_least=0.0)
        bench.verdict(f"original - {other}: low end of the 95 % interval", area.low, at_least=0.0)
    greedy = found.measured("original", "held_out.greedy")
    rise = difference_interval(greedy[:, -1], greedy[:, 0], paired=True)
    bench.verdict("original: greedy exact match, end - start", rise, at_least=0.0)
    silent = [
        difference_interval(zero_variance(found, "original"), zero_variance(found, other),
                            paired=True)
        for other in ("coarse", "binary")
    ]  # fmt: skip
    for other, less in zip(("coarse", "binary"), silent, strict=True):
        bench.verdict(f"original - {other}: share of zero-variance groups", less, at_most=0.0)


def zero_variance(found: Comparison, name: str) -> list[float]:
    """Share of groups that taught nothing, by seed."""
    return [1 - curve.metrics["groups.mixed"] for curve in found.of(name)]


def beside(bench: Bench, found: Comparison, more: Comparison) -> None:
    """Other variants less the original, on the seeds and over the answers that they share."""
    both = Comparison(found.curves + more.curves, found.starts, min(found.budget, more.budget))
    for name in OTHERS:
        bench.arm(f"{name} - original", exact_area=both.difference(name, "original"))


def drawn(bench: Bench, found: Comparison) -> None:
    """Exact match over answers, sampled and greedy, and the share of groups that teach nothing."""
    answers = np.linspace(0, found.budget, GRID)
    names = list(dict.fromkeys(curve.arm for curve in found.curves))
    with bench.plot(
        "exact",
        "Exact match on held-out tools over sampled answers: sampled, likeliest; and the share of "
        "groups whose answers all got the same reward, by tenths of the run",
        panels=3,
    ) as (sampled, greedy, silent):
        for name in names:
            for axes, mark in ((sampled, "success"), (greedy, "greedy")):
                rows = found.measured(name, f"held_out.{mark}")
                (line,) = axes.plot(answers, rows.mean(axis=0), label=name)
                axes.fill_between(answers, rows.min(axis=0), rows.max(axis=0), alpha=0.12)
            shares = [[1 - one["groups.mixed"] for one in curve.told] for curve in found.of(name)]
            size = max(min(map(len, shares)) // 10, 1)
            count = min(map(len, shares)) // size
            rows = np.array([row[: size * count] for row in shares])
            mean = rows.reshape(len(rows), count, size).mean(axis=(0, 2))
            places = (np.arange(count) + 0.5) * found.budget / count
            silent.plot(places, mean, color=line.get_color())
        sampled.set(ylabel="sampled exact match", xlabel="answers", ylim=(0, 1))
        greedy.set(ylabel="greedy exact match", xlabel="answers", ylim=(0, 1))
        silent.set(ylabel="zero-variance groups", xlabel="answers", ylim=(0, 1))
        sampled.legend(fontsize=6)
