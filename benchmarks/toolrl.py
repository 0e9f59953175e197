"""Rewards for tool calls that are taken apart teach where all-or-nothing ones are silent.

    shoal reproduce toolrl [--smoke]

ToolRL's reward beside coarse and binary ones and its other variants, in a world of typed tools
whose names change with every request; the scorer on BFCL's ground truths; SmolLM2 with an adapter
on BFCL.
"ToolRL: Reward is All Tool Learning Needs" (arXiv 2504.13958).
"""

from __future__ import annotations

import asyncio
import importlib.util
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from shoal.core.claims import Bench
from shoal.core.stats import Interval, difference_interval, mean_interval
from shoal.training.compare import GRID, Comparison, Start, begin, compare, merged
from shoal.training.config import RunConfig, parse_run
from shoal.training.rewards import VARIANTS
from shoal.training.rewards.hacking import drift
from shoal.training.setup import build
from shoal.training.supervised import supervise

RATES = (4e-4, 1e-3)
MARKS = {
    "right_format": "format",
    "right_names": "name",
    "right_parameters": "parameter",
    "right_values": "value",
    "silent_when_irrelevant": "irrelevance",
}
"""Accuracies that are told, and the marks they are."""


def by(variant: str, **changes: Any) -> dict[str, Any]:
    """What an arm changes in the run file."""
    return {"reward": {"kind": "tool-call", "variant": variant, **changes}}


MAIN: Mapping[str, Mapping[str, Any]] = {
    "original": by("original"),
    "coarse": by("coarse"),
    "binary": by("binary"),
}
OTHERS: Mapping[str, Mapping[str, Any]] = {
    "finegrained": by("finegrained"),
    "intermediate": by("intermediate"),
    "equal-max": by("equal-max"),
    "dynamic": by("dynamic"),
    "not calling scored": by("original", no_call="score"),
}
"""Run on fewer seeds, with the rate of the original."""
FEWER = 2


def run(bench: Bench) -> None:
    """Exact match on held-out tools over sampled answers, five paired seeds."""
    scorer(bench)
    if not bench.smoke:
        real_model(bench)
    with tempfile.TemporaryDirectory() as folder:
        play(bench, tool_world(bench), Path(folder))


def play(bench: Bench, base: RunConfig, folder: Path) -> None:
    """All arms in the world of tools."""
    world, groups, reader = base.environment.options, base.groups, reading(bench)
    bench.workload = (
        f"Tool world: 36 tools to train on (12 verbs with {world['parameters'][0]} to "
        f"{world['parameters'][1]} parameters of six types), 12 held out with verbs that are "
        f"known and parameters that none had (names of tools mean nothing and are drawn anew for "
        f"every request; parameters keep theirs); {world['offered']} offered a request, "
        f"{world['calls'][0]} to {world['calls'][1]} calls wanted, none in a fifth of requests. "
        "A transformer of words "
        f"(hidden {base.policy.hidden}, {base.policy.layers} layers) learns to read such schemas "
        f"from {reader['updates'] * reader['rows']:,} right answers at most, once for all seeds; "
        "each seed is then warm-started on its own with demonstrations that get each name, "
        f"parameter and value wrong {world['slips']:.0%} of the time. {groups.tasks} requests x "
        f"{groups.episodes} answers an iteration until {base.env_steps:,} answers are sampled. "
        "All arms of a seed start from the same weights and see the same requests. Rates of "
        "original, coarse and binary are chosen from the same two on seeds that are not tested; "
        f"other variants take the original's and are run on {FEWER} seeds. Exact match is on "
        "held-out tools only: sampled at temperature 1, and of the likeliest answer. The length "
        "variants are not run: answers of this world hold no thinking. SFT sees the same "
        "requests, once each, with right answers."
    )
    base = read_first(bench, base, folder)
    seeds = [bench.seed + n for n in range(bench.pick(full=5, smoke=2))]
    rates = chosen_rates(bench, base)
    found = compared(bench, base, rated(MAIN, rates), seeds, "main arms")
    told(bench, found, MAIN)
    judged(bench, found)
    everything = found
    if not bench.smoke:
        few = found.starts[:FEWER]
        more = compared(bench, base, rated(OTHERS, rates), seeds[:FEWER], "other variants", few)
        told(bench, more, OTHERS)
        beside(bench, found.on(seeds[:FEWER]), more)
        everything = Comparison(found.curves + more.curves, found.starts, found.budget)
        imitation(bench, base, found)
    drawn(bench, everything)


def tool_world(bench: Bench) -> RunConfig:
    """The run file that all arms change."""
    return parse_run(
        {
            "iterations": 1_000,
            "env_steps": bench.pick(full=9_600, smoke=480),
            "environment": {
                "name": "tool-world",
                "options": {
                    "calls": bench.pick(full=[2, 2], smoke=[1, 1]),
                    "parameters": bench.pick(full=[1, 2], smoke=[1, 1]),
                    "offered": bench.pick(full=3, smoke=2),
                    "masked": "tools",
                    "slips": 0.3,
                },
                "train": [0, 20_000],
                "held_out": [1_000_000, bench.pick(full=1_000_100, smoke=1_000_020)],
            },
            "groups": {"tasks": 24, "episodes": 4},
            "context": {"history": 0},
            "policy": {"hidden": 48, "layers": 2, "heads": 4, "context": 96},
            "sampler": {"max_tokens": 14},
            "reward": {"kind": "tool-call"},
            "algorithm": {"name": "grpo"},
            "warm_start": {
                "updates": bench.pick(full=60, smoke=20),
                "tasks": bench.pick(full=3_000, smoke=500),
                "noise": 0.0,
                "rows": 64,
                "lr": 1e-3,
            },
            "evaluation": {"every": bench.pick(full=25, smoke=5), "greedy": True},
        }
    )


def reading(bench: Bench) -> dict[str, Any]:
    """How the policy that all seeds begin with learns to read schemas."""
    return {
        "updates": bench.pick(full=1_500, smoke=500),
        "tasks": bench.pick(full=12_000, smoke=6_000),
        "noise": 0.0,
        "rows": 64,
        "lr": 3e-3,
    }


def read_first(bench: Bench, base: RunConfig, folder: Path) -> RunConfig:
    """The run file that begins with a policy which has learned to read schemas."""
    options = {**base.environment.options, "slips": 0.0}
    changes = {"environment": {"options": options}, "warm_start": reading(bench)}
    start = begin(merged(base, {"seed": bench.seed, **changes}))
    bench.arm("reader, before noise", **ends([start.told], bench.seed))
    path = folder / "reader.safetensors"
    save_file(start.weights, path)
    return merged(base, {"policy": {"weights": str(path)}})


def rated(
    arms: Mapping[str, Mapping[str, Any]], rates: Mapping[str, float]
) -> dict[str, Mapping[str, Any]]:
    """Arms with their own learning rate, or the original's."""
    return {
        name: {**changes, "optimiser": {"lr": rates.get(name, rates["original"])}}
        for name, changes in arms.items()
    }


def compared(
    bench: Bench,
    base: RunConfig,
    arms: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    label: str,
    starts: Sequence[Start] = (),
    **how: Any,
) -> Comparison:
    """A comparison whose progress is the bench's."""
    steps = iter(bench.track(range(len(arms) * len(seeds) + len(seeds) - len(starts)), label))
    return compare(
        base,
        arms,
        seeds,
        workers=min(2, torch.get_num_threads()),
        on_done=lambda *_: next(steps, None),
        starts=starts,
        **how,
    )


def chosen_rates(bench: Bench, base: RunConfig) -> dict[str, float]:
    """The rate with the larger area on seeds that are not tested, over half of the budget."""
    if bench.smoke:
        return dict.fromkeys(MAIN, RATES[-1])
    assert base.env_steps is not None
    half = merged(base, {"env_steps": base.env_steps // 2})
    arms = {
        f"{name} {rate}": {**changes, "optimiser": {"lr": rate}}
        for name, changes in MAIN.items()
        for rate in RATES
    }
    seeds = [bench.seed + 1_000, bench.seed + 1_001]
    found = compared(bench, half, arms, seeds, "learning rates")
    areas = {arm: float(np.mean(found.aucs(arm))) for arm in arms}
    rates = {name: max(RATES, key=lambda rate: areas[f"{name} {rate}"]) for name in MAIN}
    for name, rate in rates.items():
        bench.arm(
            f"learning rate of {name}",
            chosen=rate,
            **{f"area_at_{each:g}": areas[f"{name} {each}"] for each in RATES},
        )
    return rates


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


def ends(measured: Sequence[Mapping[str, float]], seed: int) -> dict[str, float | Interval]:
    """Last measurements: exact match with intervals, and means of the accuracies."""

    def mean(name: str) -> float | Interval:
        values = [one[f"held_out.{name}"] for one in measured]
        return mean_interval(values, seed=seed) if len(values) > 1 else values[0]

    return {
        "exact_sampled": mean("success"),
        "exact_greedy": mean("greedy"),
        **{
            label: float(np.mean([one.get(f"held_out.{mark}", 0.0) for one in measured]))
            for label, mark in MARKS.items()
        },
    }


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
    """Other variants less the original, on the seeds they share."""
    both = Comparison(found.curves + more.curves, found.starts, min(found.budget, more.budget))
    for name in OTHERS:
        bench.arm(f"{name} - original", exact_area=both.difference(name, "original"))


def imitation(bench: Bench, base: RunConfig, found: Comparison) -> None:
    """SFT on right answers to the same requests, from the same weights."""
    options = {**base.environment.options, "slips": 0.0}
    arms = {
        "SFT": {"environment": {"options": options}, "optimiser": {"lr": RATES[-1]}},
    }
    seeds = [start.seed for start in found.starts]
    sft = compared(bench, base, arms, seeds, "SFT", found.starts, how=supervise)
    bench.arm(
        "SFT",
        exact_area=sft.area("SFT"),
        **ends([curve.held_out for curve in sft.of("SFT")], bench.seed),
        cpu_seconds_a_run=float(np.mean([curve.cpu_seconds for curve in sft.of("SFT")])),
    )


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
            thin = {} if name in MAIN else {"lw": 0.8, "ls": "--"}
            for axes, mark in ((sampled, "success"), (greedy, "greedy")):
                rows = found.measured(name, f"held_out.{mark}")
                (line,) = axes.plot(answers, rows.mean(axis=0), label=name, **thin)
                if name in MAIN:
                    axes.fill_between(answers, rows.min(axis=0), rows.max(axis=0), alpha=0.12)
            shares = [[1 - one["groups.mixed"] for one in curve.told] for curve in found.of(name)]
            size = max(min(map(len, shares)) // 10, 1)
            count = min(map(len, shares)) // size
            rows = np.array([row[: size * count] for row in shares])
            mean = rows.reshape(len(rows), count, size).mean(axis=(0, 2))
            places = (np.arange(count) + 0.5) * found.budget / count
            silent.plot(places, mean, color=line.get_color(), **thin)
        sampled.set(ylabel="sampled exact match", xlabel="answers", ylim=(0, 1))
        greedy.set(ylabel="greedy exact match", xlabel="answers", ylim=(0, 1))
        silent.set(ylabel="zero-variance groups", xlabel="answers", ylim=(0, 1))
        sampled.legend(fontsize=6)


# -- BFCL -------------------------------------------------------------------------------------


def scorer(bench: Bench) -> None:
    """Ground truths of BFCL get everything; a call too many, a wrong name what the formula says."""
    if importlib.util.find_spec("bfcl_eval") is None:
        return
    from shoal.envs.bfcl import CATEGORIES, data_folder, read_items
    from shoal.envs.calls import Answer, Call, dialect

    spoken, reward = dialect("hermes"), VARIANTS["original"]
    right, as_predicted, items, rejected = 0, [], 0, 0
    began = time.process_time()
    for category in CATEGORIES:
        found, refused = read_items(data_folder(), category)
        rejected += len(refused)
        for item in found:
            items += 1
            truth = item.wanted.example()
            if not item.wanted.calls:
                truth = Answer((), ("response",), response="No tool fits.")
            said = spoken.read(spoken.write(truth))
            right += reward.score(item.wanted, said, spoken).marks["exact"] == 1
            if not item.wanted.calls:
                continue
            G = len(truth.calls)
            most = 1 + G + sum(len(call.arguments) for call in truth.calls)
            twice = Answer((*truth.calls, truth.calls[0]), ("calls",))
            other = Answer(tuple(Call("?" + c.name, c.arguments) for c in truth.calls), ("calls",))
            for answer, share in ((twice, (most - 1 + G / (G + 1)) / most), (other, 0.0)):
                got = reward.score(item.wanted, answer, spoken).parts["original"]
                as_predicted.append(abs(got - (6 * share - 3)) < 1e-9)
    bench.arm(
        "scorer on BFCL",
        items=items,
        rejected_truths=rejected,
        ground_truths_exact=right / items,
        perturbed_as_predicted=float(np.mean(as_predicted)),
        microseconds_an_answer=1e6 * (time.process_time() - began) / (items + len(as_predicted)),
    )
    bench.verdict("scorer: BFCL's ground truths that are exactly right", right / items,
                  at_least=1.0)  # fmt: skip
    bench.verdict(
        "scorer: perturbed calls that get what the formula predicts",
        float(np.mean(as_predicted)),
        at_least=1.0,
    )


def real_model(bench: Bench) -> None:
    """A few updates of SmolLM2's adapter on BFCL's items: that the path works, not a ranking."""
    if importlib.util.find_spec("bfcl_eval") is None:
        return
    config = parse_run(
        {
            "seed": bench.seed,
            "iterations": bench.pick(full=3, smoke=1),
            "environment": {
                "name": "bfcl",
                "options": {"categories": ["simple_python"], "longest": 520},
                "train": [0, 40],
                "held_out": [1_000_000, bench.pick(full=1_000_008, smoke=1_000_001)],
            },
            "groups": {"tasks": bench.pick(full=2, smoke=1), "episodes": 4},
            "context": {"history": 0, "instructions": True},
            "policy": {
                "model": "smollm2-135m",
                "adapter": "lora",
                "adapter_options": {"rank": 8},
            },
            "sampler": {"kind": "engine", "dtype": "bf16", "max_tokens": 56},
            "reward": {"kind": "tool-call"},
            "algorithm": {"name": "grpo"},
            "warm_start": {
                "updates": bench.pick(full=6, smoke=1),
                "tasks": bench.pick(full=8, smoke=2),
                "noise": 0.0,
                "rows": 2,
                "lr": 2e-3,
            },
            "optimiser": {"lr": 5e-4, "micro": 8},
            "evaluation": {"every": 6, "temperature": 0.0},
        }
    )

    async def go() -> None:
        trainer = build(config)
        try:
            before = await trainer.evaluate()
            warm_start = await trainer.warm_up()
            warm = await trainer.evaluate()
            iterations = [
                (await trainer.iterate()).metrics
                for _ in bench.track(range(config.iterations), "SmolLM2 on BFCL")
            ]
            after = await trainer.evaluate()
        finally:
            trainer.runner.close()
            await trainer.sampler.close()
        for label, one in (("as it comes", before), ("warm-started", warm), ("trained", after)):
            bench.arm(
                f"SmolLM2 + LoRA on BFCL, {label}",
                exact=one["held_out.success"],
                **{
                    name: one[f"held_out.{mark}"]
                    for name, mark in MARKS.items()
                    if f"held_out.{mark}" in one
                },
            )
        bench.arm(
            "SmolLM2 + LoRA on BFCL, updates",
            warm_start_loss=warm_start["warm_start.loss"],
            mean_reward_first=iterations[0]["reward"],
            mean_reward_last=iterations[-1]["reward"],
            zero_variance_groups=float(np.mean([1 - one["groups.mixed"] for one in iterations])),
            seconds_an_update=float(np.mean([one["seconds.update"] for one in iterations])),
            seconds_a_rollout=float(np.mean([one["seconds.rollout"] for one in iterations])),
        )

    asyncio.run(go())
