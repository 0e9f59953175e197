"""Policies of a sequence of models learn to spend tokens by the reward of a public goods game.

"Everyone Contributes!" (arXiv 2508.02076): in each episode the agents answer one task in order,
with settings their policies draw; when all have spoken each is rewarded by R_i, and each policy
learns by PPO on what is a bandit to it. Models stay frozen, and answers are generated once for the
same task, history and settings, so later epochs cost little.

Departures: a task's generation seed is its place, the same in each epoch, so that equal settings
give equal answers; an episode whose score is none, or in which an agent failed, is left out.

Legend: B episodes, n agents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from shoal.core.errors import ConfigError
from shoal.core.rng import generator
from shoal.mechanisms.goods.sequence import Group, Play, play
from shoal.mechanisms.goods.tasks import Task
from shoal.training.bandit import Draw
from shoal.training.decoding_policy import DecodingPolicies


@dataclass(frozen=True, slots=True)
class Summary:
    """Plays in numbers; means over those that were settled, but ``accuracy`` and tokens over all.

    contributions, efforts, rewards  by agent
    """

    plays: int
    refused: int
    accuracy: float
    tokens: float
    prompt_tokens: float
    contributions: tuple[float, ...]
    efforts: tuple[float, ...]
    rewards: tuple[float, ...]
    free_riders: float
    bar_hit: float
    welfare: float


@dataclass(frozen=True, slots=True)
class Epoch:
    """One round of learning: what was played, and how far policies moved (KL, spread)."""

    number: int
    summary: Summary
    kl: tuple[float, ...]
    spread: float
    generated: int
    """Answers that were generated so far; all others were known."""


async def train(
    group: Group,
    policies: DecodingPolicies,
    tasks: Sequence[Task],
    *,
    epochs: int,
    episodes: int,
    checkpoint: Path | None = None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> list[Epoch]:
    """Learn until ``epochs`` updates are made, going on from where the policies are.

    ``checkpoint`` is written after each. Raises :class:`ConfigError` for agents other than the
    group's, and for token limits beyond the group's.
    """
    if policies.agents != group.agents:
        raise ConfigError(
            f"The policies are of {', '.join(policies.agents)}, "
            f"but the order is {', '.join(group.agents)}."
        )
    if policies.ranges.longest > group.longest:
        raise ConfigError(
            f"The policies choose up to {policies.ranges.longest} tokens, but the group's effort "
            f"counts to {group.longest}."
        )
    if not tasks or episodes < 2:
        raise ConfigError("Learning takes at least one task and 2 episodes an epoch.")
    done = []
    while policies.bandits.updates < epochs:
        number = policies.bandits.updates
        places = _drawn(len(tasks), episodes, policies.bandits.seed, number)
        decider = policies.decide(f"epoch {number}")
        chosen = [tasks[place] for place in places]
        plays = await play(group, chosen, decider, name=f"epoch {number}", seeds=places)
        state = torch.stack(
            [
                torch.from_numpy(np.stack([one.turns[i].state for one in plays]))
                for i in range(len(group.agents))
            ]
        )
        draw = Draw(*(torch.stack(part) for part in zip(*decider.draws, strict=True)))
        reward = torch.tensor([[one.reward(agent) for one in plays] for agent in group.agents])
        moved = policies.bandits.learn(state, draw, reward)
        epoch = Epoch(
            number,
            summary(group, plays),
            tuple(moved["kl"].tolist()),
            float(moved["spread"].mean()),
            sum({id(one): one.made for one in group.generations.values()}.values()),
        )
        done.append(epoch)
        if checkpoint is not None:
            policies.save(checkpoint)
        on_epoch(epoch)
    return done


def summary(group: Group, plays: Sequence[Play]) -> Summary:
    """Plays in numbers."""
    settled = [one for one in plays if one.settlement is not None]

    def by_agent(name: str) -> tuple[float, ...]:
        return tuple(
            _mean([one.details[name][agent] for one in settled if agent in one.details[name]])
            for agent in group.agents
        )

    contributions = [c for one in settled for c in one.details["contributions"].values()]
    return Summary(
        plays=len(plays),
        refused=len(plays) - len(settled),
        accuracy=_mean([one.right for one in plays]),
        tokens=_mean([one.tokens for one in plays]),
        prompt_tokens=_mean([one.prompt_tokens for one in plays]),
        contributions=by_agent("contributions"),
        efforts=by_agent("efforts"),
        rewards=tuple(
            _mean([reward for one in plays if math.isfinite(reward := one.reward(agent))])
            for agent in group.agents
        ),
        free_riders=_mean([group.mechanism.game.rides_free(c) for c in contributions]),
        bar_hit=_mean([one.details["reaches_bar"] for one in settled]),
        welfare=_mean([one.details["welfare"] for one in settled]),
    )


def _drawn(tasks: int, episodes: int, seed: int, epoch: int) -> list[int]:
    """Places of tasks, each about equally often, in a drawn order."""
    rng = generator(seed, "tasks", epoch)
    rounds = [rng.permutation(tasks) for _ in range(math.ceil(episodes / tasks))]
    places: list[int] = np.concatenate(rounds)[:episodes].tolist()
    return places


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan
