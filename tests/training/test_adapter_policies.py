"""An adapter as a policy: its base stays, and everything a run does works through it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from worlds import Walk

from shoal.core.errors import ConfigError, InputError, ModelError
from shoal.models.adapters.peft import load_peft
from shoal.training.checkpoints import restore, save
from shoal.training.config import RunConfig, parse_run
from shoal.training.engine_sampler import EngineSampler
from shoal.training.export import export_adapter, unfused
from shoal.training.forward import distinct
from shoal.training.loop import Trainer
from shoal.training.policies import Policy, adapted, word_policy
from shoal.training.samplers import Drawing, canary
from shoal.training.setup import build

SMALL: dict[str, Any] = {
    "iterations": 4,
    "environment": {"name": "taxi", "options": {"max_steps": 6}, "train": [0, 8]},
    "groups": {"tasks": 4, "episodes": 8},
    "policy": {
        "hidden": 16, "layers": 1, "heads": 2, "context": 64,
        "adapter": "lora", "adapter_options": {"rank": 2},
    },
    "optimiser": {"lr": 1e-2},
    "sampler": {"max_tokens": 1},
}  # fmt: skip


def walking(**changes: Any) -> Trainer:
    return build(parse_run(SMALL | changes), make=lambda: Walk(2))


def run(trainer: Trainer, iterations: int) -> None:
    async def go() -> None:
        for _ in range(iterations):
            await trainer.iterate()

    asyncio.run(go())


def small_policy() -> Policy:
    made = word_policy(Walk().words(), hidden=16, layers=2, heads=2, context=64, seed=3)
    with torch.no_grad():
        for tensor in made.trained.values():
            tensor.mul_(3)
    policy = adapted(made, "lora", {"rank": 2})
    nudge(policy)
    return policy


def nudge(policy: Policy) -> None:
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for tensor in policy.trained.values():
            tensor.add_(torch.randn(tensor.shape, generator=random) * 0.3)
    policy.version += 1


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"loss": {"kl": "k3", "kl_weight": 0.01}},
        {"sampler": {"kind": "engine", "max_tokens": 1}},
    ],
)
def test_training_moves_the_adapter_and_nothing_else(changes: dict[str, Any]) -> None:
    trainer = walking(**changes)
    before = {name: t.clone() for name, t in trainer.policy.decoder.weights.items()}
    start = {name: t.detach().clone() for name, t in trainer.policy.trained.items()}
    run(trainer, 3)
    weights = trainer.policy.decoder.weights
    assert all(torch.equal(tensor, weights[name]) for name, tensor in before.items())
    assert any(not torch.equal(t, start[name]) for name, t in trainer.policy.trained.items())
    asyncio.run(trainer.sampler.close())


def test_a_checkpoint_holds_the_adapter_alone_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"loss": {"kl": "k3", "kl_weight": 0.01}}
    through, first = walking(**changes), walking(**changes)
    run(through, 4)
    run(first, 2)
    folder = save(first, tmp_path)
    for file in ("weights", "reference"):
        assert load_file(folder / f"{file}.safetensors").keys() == first.policy.trained.keys()
    resumed = walking(**changes)
    restore(resumed, folder)
    run(resumed, 2)
    for name, tensor in through.policy.trained.items():
        assert torch.equal(tensor, resumed.policy.trained[name])


def test_a_checkpoint_of_another_adapter_is_refused(tmp_path: Path) -> None:
    first = walking()
    folder = save(first, tmp_path)
    other = walking(policy=SMALL["policy"] | {"adapter_options": {"rank": 2, "alpha": 1}})
    with pytest.raises(InputError, match="another policy"):
        restore(other, folder)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_engine_answers_through_the_newest_adapter(dtype: Any) -> None:
    policy = small_policy()
    prompts, seeds = [(5, 6, 7), (5, 6, 7), (5, 6, 8, 9, 3), (4,)], [11, 12, 13, 14]

    async def go() -> None:
        sampler = EngineSampler(policy, dtype=dtype)
        for _ in range(2):
            found = await sampler.generate(prompts, seeds, Drawing(6))
            ours = distinct(policy, prompts, [one.tokens for one in found]).logp_A.tolist()
            theirs = [value for one in found for value in one.logprobs]
            tolerance = 1e-4 if dtype == "fp32" else 0.8  # of weights this large, in bf16
            assert theirs == pytest.approx(ours, abs=tolerance)
            before, own = await sampler.canary(), canary(policy)
            nudge(policy)
            await sampler.update(policy)
            assert await sampler.canary() != before
            assert canary(policy) != own
        await sampler.close()

    asyncio.run(go())


def test_a_frozen_copy_shares_the_base_and_stays() -> None:
    policy = small_policy()
    frozen = policy.frozen()
    before = canary(frozen)
    assert before == canary(policy)
    assert frozen.decoder.weights["embed"] is policy.decoder.weights["embed"]
    nudge(policy)
    assert canary(frozen) == before != canary(policy)


def test_what_is_exported_has_the_adapter_in_it() -> None:
    policy = small_policy()
    assert policy.adapter is not None
    found = dict(unfused(policy))
    q = found["model.layers.1.self_attn.q_proj.weight"]
    base = policy.decoder.weights["layers.1.qkv"][: len(q)]
    torch.testing.assert_close(q, base + policy.adapter.delta("layers.1.q").detach())


def test_an_adapter_is_published_alone(tmp_path: Path) -> None:
    policy = small_policy()
    assert policy.adapter is not None
    export_adapter(policy, tmp_path)
    again = load_peft(tmp_path, policy.decoder.adapted(None))
    for site in policy.adapter.sites:
        torch.testing.assert_close(again.delta(site), policy.adapter.delta(site))
    with pytest.raises(ModelError, match="no adapter to export"):
        export_adapter(word_policy(Walk().words(), hidden=16, heads=2), tmp_path)


def config(policy: dict[str, Any]) -> RunConfig:
    return parse_run(SMALL | {"policy": policy})


def test_wrong_adapter_options_are_refused_before_anything_is_computed() -> None:
    with pytest.raises(ConfigError, match="no adapter: name its kind"):
        config({"adapter_options": {"rank": 2}})
    for options, message in (
        ({"rank": 0}, "rank cannot be used"),
        ({"dropout": 0.1}, "what is sampled must be what is learned from"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(config({"adapter": "lora", "adapter_options": options}), make=Walk)
    with pytest.raises(ConfigError, match="no kind of adapter 'mose'"):
        build(config({"adapter": "mose"}), make=Walk)
