"""Rewards for tool calls that are taken apart teach where all-or-nothing ones are silent.

    shoal reproduce toolrl [--smoke]

ToolRL's reward beside coarse and binary ones and its other variants, in a world of typed tools
whose names change with every request; the scorer on BFCL's ground truths; SmolLM2 with an adapter
on BFCL.
"ToolRL: Reward is All Tool Learning Needs" (arXiv 2504.13958).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from calling.accuracies import ends
from calling.bfcl import real_model, scorer
from calling.telling import beside, drawn, judged, told
from calling.world import (
    FEWER_UPDATES,
    LESSONS,
    MAIN,
    NOISE,
    OTHERS,
    chosen_rates,
    compared,
    rated,
    reader,
    slipping,
    tool_world,
)
from shoal.core.claims import Bench
from shoal.training.compare import Comparison, merged
from shoal.training.config import RunConfig
from shoal.training.supervised import supervise

FEWER = 2
"""Seeds of variants that no verdict is about."""


def run(bench: Bench) -> None:
    """Exact match on held-out tools over sampled answers, five paired seeds."""
    scorer(bench)
    if not bench.smoke:
        real_model(bench)
    with tempfile.TemporaryDirectory() as folder:
        play(bench, tool_world(bench), Path(folder))


def play(bench: Bench, base: RunConfig, folder: Path) -> None:
    """All arms in the world of tools."""
    base, answers = reader(bench, base, folder)
    bench.workload = workload(base, answers)
    seeds = [bench.seed + n for n in range(bench.pick(full=5, smoke=2))]
    rates = chosen_rates(bench, base)
    found = compared(bench, base, rated(MAIN, rates), seeds, "main arms")
    told(bench, found, MAIN)
    judged(bench, found)
    if not bench.smoke:
        few, short = found.starts[:FEWER], merged(base, {"env_steps": 96 * FEWER_UPDATES})
        more = compared(bench, short, rated(OTHERS, rates), seeds[:FEWER], "other variants", few)
        told(bench, more, OTHERS)
        beside(bench, found.on(seeds[:FEWER]), more)
        imitation(bench, base, found, rates["SFT"])
    drawn(bench, found)


def workload(base: RunConfig, answers: int) -> str:
    """What is measured, in words."""
    world, groups, policy = base.environment.options, base.groups, base.policy
    return (
        f"Tool world: 36 tools to train on (12 verbs with {world['parameters'][0]} to "
        f"{world['parameters'][1]} parameters of six types), 12 held out with verbs that are "
        "known and parameters that none had. A tool is called its verb and a number, which is "
        "drawn anew for every request and stands in the prompt's schema alone; "
        f"{world['offered']} tools are offered a request, {world['calls'][0]} to "
        f"{world['calls'][1]} calls wanted, none in a fifth of requests. A transformer of words "
        f"(hidden {policy.hidden}, {policy.layers} layers) learns from {answers:,} demonstrations, "
        f"once for all seeds: first names and parameters, until {LESSONS[0].enough:.0%} of the "
        "names it samples are right, with values of the right type at random; then from all of "
        f"it, with {NOISE['value']:.0%} of values and {NOISE['name']:.0%} of names and parameters "
        f"drawn at random, until {LESSONS[1].enough:.0%} of its likeliest values are right. So it "
        "names tools and has just begun to copy values, and all-right answers are rare. Each seed "
        "is then warm-started on its own with such demonstrations. "
        f"{groups.tasks} requests x {groups.episodes} answers an update until "
        f"{base.env_steps:,} answers are sampled. All arms of a seed start from the same weights "
        "and see the same requests. Rates of original, coarse, binary and SFT are chosen from the "
        f"same two by {FEWER_UPDATES} updates on seeds that are not tested and requests for tools "
        "of training; this world was chosen on such requests, too. Other variants take the "
        f"original's rate and are run on {FEWER} seeds for {FEWER_UPDATES} updates, over which "
        "they are compared with the original. Exact match is on held-out tools only: "
        "sampled at temperature 1, and of the likeliest answer. The length variants are not run: "
        "answers of this world hold no thinking. SFT sees the same requests, once each, with "
        "right answers."
    )


def imitation(bench: Bench, base: RunConfig, found: Comparison, rate: float) -> None:
    """SFT on right answers to the same requests, from the same weights."""
    arms = {"SFT": {**slipping(base, 0.0), "optimiser": {"lr": rate}}}
    seeds = [start.seed for start in found.starts]
    sft = compared(bench, base, arms, seeds, "SFT", found.starts, how=supervise)
    bench.arm(
        "SFT",
        exact_area=sft.area("SFT"),
        **ends([curve.held_out for curve in sft.of("SFT")], bench.seed),
        cpu_seconds_a_run=float(np.mean([curve.cpu_seconds for curve in sft.of("SFT")])),
    )
