"""Groups that agree teach nothing by comparison: what comparing their prompts adds.

    shoal reproduce copo [--smoke]

COPO beside GRPO, filtering, resampling and other uses of groups that agree, on questions whose
kinds share a method, and on plain arithmetic.
"COPO: Consistency-Aware Policy Optimization" (arXiv 2508.04138).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from shoal.core.claims import Bench
from shoal.core.stats import difference_interval, mean_interval
from shoal.training.compare import GRID, Comparison, Start, merged
from shoal.training.config import RunConfig, parse_run
from shoal.training.policies import set_weights
from shoal.training.setup import build
from tracked import compared

RATES = (5e-4, 1e-3, 2e-3)


def by(name: str, degenerate: str = "keep", **options: Any) -> dict[str, Any]:
    """What an arm changes in the run file."""
    return {
        "algorithm": {"name": name, "options": options},
        "groups": {"degenerate": degenerate},
    }


ARMS: Mapping[str, Mapping[str, Any]] = {
    "GRPO": by("grpo"),
    "GRPO, filtered": by("grpo", "filter"),
    "GRPO, resampled": by("grpo", "resample"),
    "REINFORCE, batch baseline": by("reinforce"),
    "COPO": by("copo"),
    "COPO, gamma 20, rho 1.5": by("copo", gamma=20.0, rho=1.5),
    "COPO, forced only": by("copo", gate="forced"),
    "COPO, per response": by("copo", gate="per_response"),
    "global only": by("copo", gate="global"),
}
CONTROL = ("GRPO", "GRPO, filtered", "COPO")


def run(bench: Bench) -> None:
    """Held-out accuracy over sampled answers, five paired seeds."""
    base = questions(bench)
    bench.workload = (
        "Strategies: 16 kinds of items, each wanting one of eight methods, which is named before "
        "its result (modulo 7); a fifth of all questions is held out. A transformer of words "
        "(hidden 64, 2 layers) is warm-started on demonstrations that show a wrong method, always "
        "the same, for 70 % of kinds; 48 prompts x 6 answers an iteration until "
        f"{base.env_steps:,} answers are spent. Control: sums and products modulo 20, half of "
        "whose demonstrations are wrong, each question in its own way; nothing is held out there. "
        "All arms of a seed start from the same weights. The rates of GRPO and COPO are chosen "
        "from the same three on seeds that are not tested; other uses of GRPO's advantage take "
        "GRPO's, variants of COPO take COPO's. mean@8 and maj@8 are of 8 answers at temperature 1. "
        "gamma 5, rho 1 as released; loss: mean over answers of their token means, dual clip 3."
    )
    rates = chosen_rates(bench, base)
    seeds = [bench.seed + n for n in range(bench.pick(full=5, smoke=2))]
    names = list(ARMS) if not bench.smoke else ["GRPO", "COPO"]
    found = compared(bench, base, rated(names, rates), seeds, "strategies")
    told(bench, "strategies", found, names)
    judged(bench, found, names)
    gradients(bench, base, found.starts)
    drawn(bench, found, names)
    if not bench.smoke:
        control(bench, base, rates, seeds)


def questions(bench: Bench) -> RunConfig:
    """The run file that all arms change."""
    return parse_run(
        {
            "iterations": 1_000,
            "env_steps": bench.pick(full=34_560, smoke=2_880),
            "environment": {
                "name": "strategies",
                "options": {"misled": 0.7, "habit": 0.9},
                "train": [0, 20_000],
                "held_out": [1_000_000, 1_000_096],
            },
            "groups": {"tasks": 48, "episodes": 6},
            "context": {"history": 0},
            "policy": {"hidden": 64, "layers": 2, "heads": 4, "context": 32},
            "sampler": {"max_tokens": 2},
            "loss": {"aggregate": "sequence", "dual_clip": 3.0},
            "warm_start": {
                "updates": bench.pick(full=120, smoke=40),
                "tasks": 2_000,
                "noise": 0.0,
                "lr": 3e-3,
            },
            "evaluation": {"every": 15, "episodes": 8},
        }
    )


def rated(names: Sequence[str], rates: Mapping[str, float]) -> dict[str, Mapping[str, Any]]:
    """Arms with the learning rate of their family."""
    return {
        name: {
            **ARMS[name],
            "optimiser": {"lr": rates["COPO" if ARMS[name]["algorithm"]["name"] == "copo" else
                                      "GRPO"]},
        }
        for name in names
    }  # fmt: skip


def chosen_rates(bench: Bench, base: RunConfig) -> dict[str, float]:
    """The rate with the larger area on seeds that are not tested, for GRPO and for COPO."""
    if bench.smoke:
        return dict.fromkeys(("GRPO", "COPO"), RATES[0])
    arms = {
        f"{name} {rate}": {**ARMS[name], "optimiser": {"lr": rate}}
        for name in ("GRPO", "COPO")
        for rate in RATES
    }
    seeds = [bench.seed + 1_000, bench.seed + 1_001]
    found = compared(bench, base, arms, seeds, "learning rates")
    areas = {arm: float(np.mean(found.aucs(arm))) for arm in arms}
    rates = {name: max(RATES, key=lambda r: areas[f"{name} {r}"]) for name in ("GRPO", "COPO")}
    for name, rate in rates.items():
        bench.arm(
            f"learning rate of {name}",
            chosen=rate,
            **{f"area_at_{each:g}": areas[f"{name} {each}"] for each in RATES},
        )
    return rates


def told(bench: Bench, workload: str, found: Comparison, names: Sequence[str]) -> None:
    """What each arm reached, and what became of its groups."""
    start = [one.success for one in found.starts]
    bench.arm(f"{workload}, warm start", mean_at_8=mean_interval(start, seed=bench.seed))
    for name in names:
        curves = found.of(name)
        bench.arm(
            f"{workload}, {name}",
            mean_at_8_area=found.area(name),
            final_mean_at_8=mean_interval(found.finals(name), seed=bench.seed),
            final_maj_at_8=mean_interval(
                [curve.held_out["held_out.majority"] for curve in curves], seed=bench.seed
            ),
            lost_at_the_end=float(np.mean([late_loss(curve.success) for curve in curves])),
            all_wrong_groups=found.metric(name, "groups.all_wrong"),
            all_right_groups=found.metric(name, "groups.all_right"),
            credit_of_dead_groups=found.metric(name, "credit.dead"),
            rows_learned_from=found.metric(name, "rows.kept"),
            gate_mean=found.metric(name, "copo.gate_mean"),
            unparsed_answers=found.metric(name, "answers.unparsed"),
        )


def late_loss(success: Sequence[float]) -> float:
    """Best minus last of the last fifth of a curve."""
    late = success[-max(2, len(success) // 5) :]
    return max(late) - late[-1]


def judged(bench: Bench, found: Comparison, names: Sequence[str]) -> None:
    """COPO beside each other arm over paired seeds."""
    for name in names:
        if name == "COPO":
            continue
        area = found.difference("COPO", name)
        final = difference_interval(found.finals("COPO"), found.finals(name), paired=True)
        wins = sum(a > b for a, b in zip(found.aucs("COPO"), found.aucs(name), strict=True))
        bench.arm(
            f"strategies, COPO - {name}", mean_at_8_area=area, final_mean_at_8=final, seeds_won=wins
        )
        if name in ("GRPO", "GRPO, filtered", "GRPO, resampled"):
            bench.verdict(f"strategies: COPO - {name}, mean@8 area", area, at_least=0.0)


def gradients(bench: Bench, base: RunConfig, starts: Sequence[Start]) -> None:
    """Norm of the gradient from dead groups over the sum of both norms, at the warm start."""
    shares: dict[str, list[float]] = {"GRPO": [], "COPO": []}
    dead_groups: list[float] = []
    for start in starts:
        for name, found in shares.items():
            trainer = build(merged(base, {**ARMS[name], "seed": start.seed}))
            set_weights(
                trainer.policy,
                {key: torch.from_numpy(array) for key, array in start.weights.items()},
            )
            rollout = asyncio.run(trainer.runner.run(trainer.tasks(0), 6, name=("train", 0)))
            rows, credit, metrics = trainer.credit(rollout)
            dead, alive = (
                trainer.learner.gradient_norm(rows, credit.only(credit.dead_R == which))
                for which in (True, False)
            )
            found.append(dead / (dead + alive))
        dead_groups.append(1 - metrics["groups.mixed"])
    bench.arm("degenerate groups at the start", share=mean_interval(dead_groups, seed=bench.seed))
    for name, values in shares.items():
        bench.arm(f"gradient at the start, {name}",
                  share_from_dead_groups=mean_interval(values, seed=bench.seed))  # fmt: skip
    bench.verdict(
        "degenerate groups at the start, share", float(np.mean(dead_groups)), at_least=0.4
    )
    bench.verdict(
        "share of GRPO's gradient that comes from degenerate groups",
        float(np.mean(shares["GRPO"])),
        at_most=0.0,
    )
    share = mean_interval(shares["COPO"], seed=bench.seed)
    bench.verdict("share of COPO's gradient that comes from degenerate groups", share, at_least=0.1)


def control(
    bench: Bench, base: RunConfig, rates: Mapping[str, float], seeds: Sequence[int]
) -> None:
    """Arithmetic: questions that share nothing, so that nothing is to be gained between them."""
    plain = merged(
        base,
        {
            "environment": {"name": "arithmetic", "options": {"error": 0.5}},
            "sampler": {"max_tokens": 1},
            "warm_start": {"updates": 150, "tasks": 4_000, "noise": 0.3},
            "env_steps": 28_800,
        },
    )
    found = compared(bench, plain, rated(CONTROL, rates), seeds, "arithmetic")
    told(bench, "arithmetic", found, CONTROL)
    apart = found.difference("COPO", "GRPO")
    bench.arm("arithmetic, COPO - GRPO", mean_at_8_area=apart)
    bench.verdict(
        "arithmetic, the control: COPO - GRPO, mean@8 area", apart, at_least=-0.03, at_most=0.03
    )


def drawn(bench: Bench, found: Comparison, names: Sequence[str]) -> None:
    """Held-out accuracy over answers, and areas by seed."""
    answers = np.linspace(0, found.budget, GRID)
    with bench.plot("accuracy", "Held-out mean@8 over answers; areas by seed", panels=2) as (
        curves,
        areas,
    ):
        for place, name in enumerate(names):
            rows = np.array([curve.at(found.budget) for curve in found.of(name)])
            (line,) = curves.plot(answers, rows.mean(axis=0), label=name)
            values = found.aucs(name)
            areas.plot([place] * len(values), values, "o", color=line.get_color(), ms=4)
        curves.set(xlabel="sampled answers", ylabel="held-out mean@8", ylim=(0, 1))
        curves.legend(fontsize=7)
        areas.set(ylabel="area under mean@8", xticks=range(len(names)))
        areas.set_xticklabels(names, rotation=30, fontsize=6, ha="right")
