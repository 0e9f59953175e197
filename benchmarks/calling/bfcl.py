"""BFCL's items: the scorer on their ground truths, and a real model with an adapter."""

from __future__ import annotations

import asyncio
import importlib.util
import time

import numpy as np

from calling.accuracies import MARKS
from shoal.core.claims import Bench
from shoal.training.config import parse_run
from shoal.training.rewards import VARIANTS
from shoal.training.setup import build


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
            "iterations": bench.pick(full=2, smoke=1),
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
