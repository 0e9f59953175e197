"""The world of tools: its run file, the policy that reads it, arms, and how they are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from calling.accuracies import ends
from shoal.core.claims import Bench
from shoal.training.compare import begin, merged
from shoal.training.config import RunConfig, parse_run
from shoal.training.supervised import supervise
from tracked import compared

RATES = (4e-4, 1e-3)
UPDATES, FEWER_UPDATES = 200, 100
"""Of a run; and of those that learning rates are chosen by, and of variants without a verdict."""
VALIDATION = (20_000, 20_200)
"""Requests for tools that are trained on, which are not themselves: all choices look at these."""
NOISE = {"name": 0.2, "parameter": 0.2, "value": 0.3, "call": 0.2}


@dataclass(frozen=True, slots=True)
class Lesson:
    """Demonstrations that a policy imitates until it does something often enough.

    slips    of the demonstrations
    mark     what is looked at on :data:`VALIDATION`, and ``enough`` of it
    updates  of the first round, and of every other
    """

    slips: Mapping[str, float]
    mark: str
    enough: float
    updates: tuple[int, int]
    rows: int
    lr: float


LESSONS = (
    Lesson({"value": 1.0}, "held_out.name", 0.9, (600, 200), 32, 3e-3),
    Lesson(NOISE, "held_out.greedy_value", 0.45, (500, 50), 64, 1e-3),
)
"""First names and parameters, with values of the right type at random; then some of the values."""
ROUNDS = 12


def by(variant: str) -> dict[str, Any]:
    """What an arm changes in the run file."""
    return {"reward": {"kind": "tool-call", "variant": variant}}


MAIN: Mapping[str, Mapping[str, Any]] = {
    name: by(name) for name in ("original", "coarse", "binary")
}
OTHERS: Mapping[str, Mapping[str, Any]] = {
    name: by(name) for name in ("finegrained", "intermediate", "equal-max", "dynamic")
}
"""Run on fewer seeds and for fewer updates, with the rate of the original."""


def tool_world(bench: Bench) -> RunConfig:
    """The run file that all arms change."""
    return parse_run(
        {
            "iterations": 1_000,
            "env_steps": 96 * bench.pick(full=UPDATES, smoke=6),
            "environment": {
                "name": "tool-world",
                "options": {
                    "calls": bench.pick(full=[2, 2], smoke=[1, 1]),
                    "parameters": bench.pick(full=[1, 2], smoke=[1, 1]),
                    "offered": bench.pick(full=3, smoke=2),
                    "masked": "numbers",
                    "slips": NOISE,
                },
                "train": [0, 20_000],
                "held_out": [1_000_000, bench.pick(full=1_000_100, smoke=1_000_020)],
            },
            "groups": {"tasks": 24, "episodes": 4},
            "context": {"history": 0},
            "policy": {"hidden": 48, "layers": 2, "heads": 4, "context": 64},
            "sampler": {"max_tokens": 16},
            "reward": {"kind": "tool-call"},
            "algorithm": {"name": "grpo"},
            "warm_start": {
                "updates": 20,
                "tasks": bench.pick(full=2_000, smoke=500),
                "noise": 0.0,
                "rows": 64,
                "lr": 1e-3,
            },
            "evaluation": {"every": bench.pick(full=20, smoke=3), "greedy": True},
        }
    )


def validated(config: RunConfig) -> RunConfig:
    """The same, measured on requests that choices may look at."""
    return merged(config, {"environment": {"held_out": VALIDATION}})


def slipping(base: RunConfig, slips: Mapping[str, float] | float) -> dict[str, Any]:
    """What has demonstrations with other slips in the run file."""
    return {"environment": {"options": {**base.environment.options, "slips": slips}}}


def reader(bench: Bench, base: RunConfig, folder: Path) -> tuple[RunConfig, int]:
    """The run file that begins with a policy which reads, and how many answers that took."""
    path, answers, now = folder / "reader.safetensors", 0, validated(base)
    for number, lesson in enumerate(LESSONS):
        for round_ in range(bench.pick(full=ROUNDS, smoke=1)):
            updates = bench.pick(full=lesson.updates[round_ > 0], smoke=lesson.updates[0] // 3)
            tasks, first = min(6_000, updates * lesson.rows), (number + 2 * round_) % 3 * 6_000
            changes = {
                "seed": bench.seed,
                "environment": {"train": [first, first + tasks]},
                "warm_start": {
                    "updates": updates,
                    "tasks": tasks,
                    "rows": lesson.rows,
                    "lr": lesson.lr,
                },
            }
            start = begin(merged(merged(now, slipping(base, lesson.slips)), changes))
            save_file(start.weights, path)
            answers += updates * lesson.rows
            now = merged(now, {"policy": {"weights": str(path)}})
            if start.told[lesson.mark] >= lesson.enough:
                break
        bench.arm(
            f"after lesson {number + 1}, requests of training", **ends([start.told], bench.seed)
        )
    return merged(base, {"policy": {"weights": str(path)}}), answers


def rated(
    arms: Mapping[str, Mapping[str, Any]], rates: Mapping[str, float]
) -> dict[str, Mapping[str, Any]]:
    """Arms with their own learning rate, or the original's."""
    return {
        name: {**changes, "optimiser": {"lr": rates.get(name, rates["original"])}}
        for name, changes in arms.items()
    }


def chosen_rates(bench: Bench, base: RunConfig) -> dict[str, float]:
    """The rate with the larger area, on requests and seeds that are not tested."""
    if bench.smoke:
        return dict.fromkeys((*MAIN, "SFT"), RATES[-1])
    short = validated(merged(base, {"env_steps": 96 * FEWER_UPDATES}))
    seeds = [bench.seed + 1_000, bench.seed + 1_001]
    rewarded = compared(bench, short, _at_rates(MAIN), seeds, "learning rates")
    right_arms = _at_rates({"SFT": slipping(base, 0.0)})
    imitated = compared(
        bench, short, right_arms, seeds, "rates of SFT", rewarded.starts, how=supervise
    )
    started = [start.told for start in rewarded.starts]
    bench.arm("warm start, requests of training", **ends(started, bench.seed))
    rates = {}
    for name, found in (*((name, rewarded) for name in MAIN), ("SFT", imitated)):
        areas = {rate: float(np.mean(found.aucs(f"{name} {rate}"))) for rate in RATES}
        rates[name] = max(areas, key=areas.__getitem__)
        bench.arm(
            f"learning rate of {name}",
            chosen=rates[name],
            **{f"area_at_{rate:g}": area for rate, area in areas.items()},
        )
    return rates


def _at_rates(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {
        f"{name} {rate}": {**changes, "optimiser": {"lr": rate}}
        for name, changes in arms.items()
        for rate in RATES
    }
