"""Agents that learn, by being rewarded, what to contribute in a sequential public goods game.

"Everyone Contributes!" (arXiv 2508.02076) with the contribution itself as the decision: what PPO
finds can then be held against the equilibrium. Each agent is an actor-critic of its own that sees
its predecessors' contributions, as far as it may, and is told its own reward.

Legend: S seeds (groups that never meet), n agents, B episodes of each group; learners L = S n.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from shoal.core.rng import generator
from shoal.mechanisms.goods.contribution_game import Floats, Game
from shoal.mechanisms.goods.public_goods import Observe
from shoal.training.bandit import BanditOptions, Bandits, Draw


@dataclass(frozen=True, slots=True)
class Learnt:
    """What groups came to contribute.

    contributions  of the policies' middles, [S, n]
    history        mean contribution of the middles over groups and agents, by epoch
    """

    contributions: Floats
    history: tuple[float, ...]


def learn_contributions(
    game: Game,
    *,
    observe: Observe = "all",
    groups: int = 20,
    epochs: int = 200,
    episodes: int = 50,
    options: BanditOptions = BanditOptions(),
    seed: int = 0,
    track: Callable[[range], Iterable[int]] = lambda span: span,
) -> Learnt:
    """Let groups of agents learn the game by PPO, each group from its own draws."""
    n = game.agents
    agents = Bandits(groups * n, n + 1, 1, options, seed=seed)
    history = []
    for epoch in track(range(epochs)):
        rng = generator(seed, "contributions", epoch)
        noise = torch.from_numpy(rng.standard_normal((groups * n, episodes, 1)).astype(np.float32))
        state, draw, c_SnB = _play(agents, game, observe, noise)
        rewards_SBn = game.rewards(np.moveaxis(c_SnB, 1, 2))
        reward_LB = torch.from_numpy(np.moveaxis(rewards_SBn, 2, 1).copy()).float()
        agents.learn(state, draw, reward_LB.reshape(groups * n, episodes))
        history.append(float(_middle(agents, game, observe, groups).mean()))
    return Learnt(_middle(agents, game, observe, groups), tuple(history))


def _middle(agents: Bandits, game: Game, observe: Observe, groups: int) -> Floats:
    none = torch.zeros(groups * game.agents, 1, 1)
    return _play(agents, game, observe, none)[2][:, :, 0]


def _play(
    agents: Bandits, game: Game, observe: Observe, noise_LB1: torch.Tensor
) -> tuple[torch.Tensor, Draw, Floats]:
    """States [L, B, F], decisions, and contributions [S, n, B] of one play of each episode."""
    n, (L, B, _) = game.agents, noise_LB1.shape
    c_SnB = np.zeros((L // n, n, B))
    state = torch.zeros(L // n, n, B, n + 1)
    state[..., n] = 1.0
    parts = []
    for i in range(n):
        first = {"none": i, "last": max(0, i - 1), "all": 0}[observe]
        if first < i:
            seen = np.moveaxis(c_SnB[:, first:i], 1, 2)
            state[:, i, :, first:i] = torch.from_numpy(seen.copy()).float()
        draw = agents.act(state.reshape(L, B, n + 1), noise_LBO=noise_LB1)
        own = draw.outputs.reshape(L // n, n, B)[:, i].double().numpy()
        c_SnB[:, i] = game.low + (game.high - game.low) * own
        parts.append(Draw(*(part.reshape(L // n, n, B, -1)[:, i] for part in draw)))
    raw, outputs, logp = (
        torch.stack(part, dim=1).reshape(L, B, -1) for part in zip(*parts, strict=True)
    )
    return state.reshape(L, B, n + 1), Draw(raw, outputs, logp[..., 0]), c_SnB
