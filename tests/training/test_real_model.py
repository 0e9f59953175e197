"""The same loop with the packaged model: chat template, engine in bf16, correction."""

from __future__ import annotations

import asyncio

import pytest
import torch

from shoal.training.config import parse_run
from shoal.training.setup import build

RUN = {
    "iterations": 1,
    "environment": {
        "name": "reasoning",
        "options": {"config": {"min_terms": 2, "max_terms": 2, "max_digits": 1}, "tags": True},
        "train": [0, 2],
    },
    "groups": {"tasks": 2, "episodes": 2},
    "context": {"instructions": True},
    "policy": {"model": "smollm2-135m"},
    "sampler": {"kind": "engine", "dtype": "bf16", "max_tokens": 12},
    "algorithm": {"name": "step_return", "options": {"scale": False}},
    "loss": {"entropy_weight": 0.01},
    "optimiser": {"lr": 1e-5, "micro": 2},
}


@pytest.mark.model
def test_an_iteration_with_the_packaged_model_moves_what_is_served() -> None:
    trainer = build(parse_run(RUN))
    before = trainer.policy.decoder.weights["layers.3.qkv"].detach().clone()
    canary = asyncio.run(trainer.sampler.canary())
    found = asyncio.run(trainer.iterate())
    told = found.metrics
    assert "<|im_start|>" in trainer.policy.tokenizer.decode(found.rows[0].prompt)
    assert 0 < told["mismatch.kl"] < 0.05  # bf16 samples, fp32 learns
    assert 0.9 < told["mismatch.ratio_p99"] < 2
    assert not torch.equal(before, trainer.policy.decoder.weights["layers.3.qkv"])
    assert trainer.sampler.version == 1 and asyncio.run(trainer.sampler.canary()) != canary
    asyncio.run(trainer.sampler.close())
