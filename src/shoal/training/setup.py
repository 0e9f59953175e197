"""From a run file to a trainer: the one place where names become parts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from shoal.core.errors import ConfigError
from shoal.core.rng import seed_of
from shoal.envs.catalog import open_environment
from shoal.envs.protocol import Environment, Spells
from shoal.training.config import RunConfig
from shoal.training.context import Context
from shoal.training.estimators import estimator
from shoal.training.forward import Forward
from shoal.training.loop import Trainer
from shoal.training.optimiser import Optimiser, OptimiserOptions
from shoal.training.policies import Policy, adapted, hub_policy, read_weights, word_policy
from shoal.training.ranks import Ranks
from shoal.training.rewards import variant
from shoal.training.rollout import GroupRunner, Reward
from shoal.training.samplers import DirectSampler, Drawing, Sampler
from shoal.training.shared_prefix import SharedPrefix
from shoal.training.update import Learner


def build(
    config: RunConfig,
    *,
    policy: Policy | None = None,
    forward: Forward | None = None,
    reward: Reward | None = None,
    make: Callable[[], Environment] | None = None,
    sampler: Sampler | None = None,
    ranks: Ranks | None = None,
) -> Trainer:
    """The trainer of a run file; what is given is taken in place of what the file names.

    Raises :class:`ConfigError` for names and options there are not, and for fewer tasks than ranks.
    """
    if ranks is not None and config.groups.tasks < ranks.world:
        raise ConfigError(
            f"{config.groups.tasks} tasks an iteration cannot be shared by {ranks.world} ranks: "
            "raise groups.tasks."
        )
    estimate = estimator(config.algorithm.name, config.algorithm.options)
    make = make or partial(open_environment, config.environment.name, config.environment.options)
    env = make()
    policy = policy or open_policy(config, env)
    sampler = sampler or open_sampler(config, policy)
    runner = GroupRunner(
        make,
        policy,
        sampler,
        context=Context(**config.context.model_dump()),
        drawing=Drawing(config.sampler.max_tokens, config.sampler.temperature),
        reward=reward or open_reward(config),
        retries=config.groups.retries,
        seed=config.seed,
    )
    runner.give(env)
    setting = config.optimiser
    optimiser = Optimiser(
        policy.trained,
        OptimiserOptions(
            lr=setting.lr,
            weight_decay=setting.weight_decay,
            max_norm=setting.max_norm,
            warm_up=setting.warm_up,
            schedule=setting.schedule,
            steps=config.iterations * setting.epochs,
        ),
    )
    reference = policy.frozen() if config.loss.kl != "none" else None
    learner = Learner(
        config,
        policy=policy,
        optimiser=optimiser,
        forward=forward or SharedPrefix(config.forward.share, check=config.forward.check),
        reference=reference,
        ranks=ranks,
    )
    return Trainer(
        config, policy=policy, sampler=sampler, runner=runner, estimate=estimate, learner=learner
    )


def open_policy(config: RunConfig, env: Environment) -> Policy:
    """The policy a run file names; "words" is made for the environment's own vocabulary.

    Raises :class:`InputError` where the weights to begin with are missing or of another policy.
    """
    part = config.policy
    policy = _open_base(config, env)
    if part.adapter is not None:
        options = {"seed": seed_of(config.seed, "adapter"), **part.adapter_options}
        policy = adapted(policy, part.adapter, options)
    if part.weights is not None:
        read_weights(policy, Path(part.weights))
    return policy


def _open_base(config: RunConfig, env: Environment) -> Policy:
    part = config.policy
    if part.model != "words":
        return hub_policy(part.model, device=part.device, learns=part.adapter is None)
    if not isinstance(env, Spells):
        raise ConfigError(
            f"{env.name} does not say which words it uses, so that a policy of words cannot be "
            "made for it: name a model with a tokenizer in policy.model."
        )
    return word_policy(
        env.words(),
        hidden=part.hidden,
        layers=part.layers,
        heads=part.heads,
        context=part.context,
        seed=seed_of(config.seed, "weights"),
    )


def open_reward(config: RunConfig) -> Reward | None:
    """The reward a run file names; None for the environment's own."""
    part = config.reward
    if part.kind == "environment":
        return None
    return variant(part.variant, **part.model_dump(exclude={"kind", "variant"}))


def open_sampler(config: RunConfig, policy: Policy) -> Sampler:
    """The sampler a run file names. A remote one is given, as it needs a way to new weights.

    Raises :class:`ConfigError` for a sampler that cannot be opened by name.
    """
    part = config.sampler
    if part.kind == "engine":
        from shoal.training.engine_sampler import EngineSampler

        return EngineSampler(policy, dtype=part.dtype, concurrent=part.concurrent)
    if part.kind == "transformers":
        from shoal.training.transformers_sampler import TransformersSampler

        return TransformersSampler(policy)
    if part.kind == "remote":
        raise ConfigError(
            "A remote sampler needs a way to hand it new weights: build one with "
            "shoal.training.remote_sampler and give it to shoal.training.setup.build."
        )
    return DirectSampler(policy)
