"""Imitation as an arm of a comparison: what the right answers alone would have taught.

It sees the prompts that a run of the same file would play, in the same order, once each, with the
right answer instead of rewards; it is counted as many answers as that run would have sampled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import torch

from shoal.training.compare import Curve, Start
from shoal.training.config import RunConfig
from shoal.training.policies import set_weights
from shoal.training.setup import build
from shoal.training.warm_start import demonstrate


def supervise(name: str, config: RunConfig, start: Start) -> Curve:
    """Learn from an expert's answers until the budget is spent; see :func:`shoal.training.compare`.

    The environment's expert is taken as it is: give options under which it is right. Raises
    :class:`ConfigError` for an environment without one.
    """

    async def run() -> Curve:
        trainer = build(config)
        policy, learner = trainer.policy, trainer.learner
        set_weights(policy, {key: torch.from_numpy(array) for key, array in start.weights.items()})
        began, told = time.process_time(), list[Mapping[str, float]]()
        steps, measured = [0], [start.told]
        while not trainer.ended:
            tasks = trainer.tasks(trainer.done)
            pairs = demonstrate(
                trainer.runner.environment, policy, trainer.runner.context, tasks, 0.0, config.seed
            )
            prompts = [prompt for prompt, _ in pairs]
            actions = [action[: config.sampler.max_tokens] for _, action in pairs]
            loss = -learner.forward(policy, prompts, actions).logp_A.mean()
            loss.backward()  # type: ignore[no-untyped-call]
            learner.optimiser.step()
            policy.version += 1
            await trainer.sampler.update(policy)
            told.append({"loss": float(loss.detach())})
            trainer.done += 1
            trainer.env_steps += len(pairs) * config.groups.episodes
            if trainer.ended or trainer.done % config.evaluation.every == 0:
                steps.append(trainer.env_steps)
                measured.append(await trainer.evaluate())
        success = (start.success, *(one["held_out.success"] for one in measured[1:]))
        seconds = time.process_time() - began
        return Curve(
            name, config.seed, tuple(steps), success, {}, tuple(measured), tuple(told), seconds
        )

    return asyncio.run(run())
