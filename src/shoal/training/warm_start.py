"""Warm starts: noisy imitation of an environment's own expert, so that there is something to learn.

From no success at all no group method learns; from a solved task none differs. The imitation stops
at a wanted share of success, and the share it reached is part of the run's metrics.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from shoal.core.errors import ConfigError
from shoal.core.rng import generator
from shoal.envs.protocol import Demonstrates, Environment
from shoal.training.config import RunConfig
from shoal.training.context import Context, Turn
from shoal.training.forward import Forward
from shoal.training.policies import Policy
from shoal.training.rollout import GroupRunner

Pair = tuple[tuple[int, ...], tuple[int, ...]]
PROBE = 10
"""Updates between two looks at the success, where the run file says when to stop."""
PROBED = 256
"""Tasks that are looked at, at most."""


def demonstrate(
    env: Environment,
    policy: Policy,
    context: Context,
    tasks: Sequence[int],
    noise: float,
    seed: int,
) -> list[Pair]:
    """Prompts and actions of the expert, who errs with probability ``noise``.

    What is imitated is what was done, errors included. Raises :class:`ConfigError` for an
    environment without an expert.
    """
    if not isinstance(env, Demonstrates):
        raise ConfigError(
            f"{env.name} has no expert to imitate: leave warm_start out, or start from a model "
            "that solves the task now and then."
        )
    pairs = []
    for task in tasks:
        rng = generator("demonstration", seed, task)
        observation, past = env.reset(task), list[Turn]()
        for _ in range(env.max_steps):
            actions = env.admissible_actions()
            wrong = rng.random() < noise
            action = str(rng.choice(actions)) if wrong else env.expert_action()
            tokens = policy.tokenizer.encode(action)
            pairs.append(
                (policy.encode(context.prompt(env, past, observation)), (*tokens, policy.end))
            )
            past.append(Turn(observation, action))
            found = env.step(action)
            observation = found.observation
            if found.done:
                break
    return pairs


def imitate(
    policy: Policy,
    pairs: Sequence[Pair],
    forward: Forward,
    *,
    updates: int,
    rows: int,
    lr: float,
    max_tokens: int,
    seed: int = 0,
    first: int = 0,
) -> float:
    """Maximum likelihood on ``rows`` pairs an update, numbered from ``first``; the last loss.

    Only the tokens that the sampler may draw are learned: with one token an answer, no end is.
    """
    optimiser = torch.optim.AdamW(policy.trained.values(), lr=lr, weight_decay=0.0)
    told = 0.0
    for update in range(first, first + updates):
        rng = generator("imitation", seed, update)
        chosen = rng.integers(0, len(pairs), min(rows, len(pairs)))
        prompts = [pairs[at][0] for at in chosen]
        actions = [pairs[at][1][:max_tokens] for at in chosen]
        loss = -forward(policy, prompts, actions).logp_A.mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        told = float(loss.detach())
    return told


async def warm_start(
    config: RunConfig, policy: Policy, runner: GroupRunner, forward: Forward
) -> dict[str, float]:
    """The warm start a run file asks for, and what came of it; nothing where it asks for none."""
    part = config.warm_start
    if not part.updates:
        return {}
    first, _ = config.environment.train
    tasks = range(first, first + part.tasks)
    env, context = runner.environment, runner.context
    pairs = demonstrate(env, policy, context, tasks, part.noise, config.seed)
    done, loss, success = 0, 0.0, 0.0
    while done < part.updates:
        count = min(PROBE, part.updates - done) if part.until else part.updates
        loss = imitate(
            policy,
            pairs,
            forward,
            updates=count,
            rows=part.rows,
            lr=part.lr,
            max_tokens=config.sampler.max_tokens,
            seed=config.seed,
            first=done,
        )
        done += count
        policy.version += 1
        await runner.sampler.update(policy)  # one with weights or caches of its own has old ones
        found = await runner.run(tasks[:PROBED], 1, name=("warm start", done))
        success = sum(one.solved for one in found.played) / len(found.played)
        if part.until is not None and success >= part.until:
            break
    return {
        "warm_start.loss": loss,
        "warm_start.updates": float(done),
        "warm_start.success": success,
    }
