"""Policies over decoding settings that learn by PPO from sums of their own."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from deciding.trio import NAMES, RANGES, Room
from shoal.core.claims import Bench
from shoal.mechanisms.goods.features import state_of
from shoal.training.bandit import BanditOptions
from shoal.training.decoding_policy import DecodingPolicies
from shoal.training.spgg import Epoch, train

LEARN = BanditOptions(hidden=(4, 4), lr=0.06, epochs=8, entropy=0.0, target_kl=0.3)
"""For few and large batches, as answers cost more than steps; tried on a game without a model."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """What was learnt, and how."""

    policies: DecodingPolicies
    history: list[Epoch]


async def teach(bench: Bench, name: str, room: Room, *, epochs: int, episodes: int) -> Lesson:
    """Policies that learn from the room's sums, the last seen and all seen in turn.

    Their state tells what was seen, so one set serves both.
    """
    policies = DecodingPolicies(NAMES, RANGES, LEARN, seed=bench.seed_of("policies"))
    groups = room.group("last"), room.group("all")
    started, made, done = time.perf_counter(), room.known.made, []
    for epoch in bench.track(range(epochs), f"policies, {name}"):
        done += await train(
            groups[epoch % 2], policies, room.tasks, epochs=epoch + 1, episodes=episodes
        )
    few = max(1, epochs // 6)
    for when, part in (("first", done[:few]), ("last", done[-few:])):
        bench.arm(
            f"learning, {name}: {when} {few} of {epochs} epochs",
            rewards=float(np.mean([sum(one.summary.rewards) for one in part])),
            right=float(np.mean([one.summary.accuracy for one in part])),
            tokens=float(np.mean([one.summary.tokens for one in part])),
            bar_hit=float(np.mean([one.summary.bar_hit for one in part])),
            free_riders=float(np.mean([one.summary.free_riders for one in part])),
        )
    bench.arm(
        f"learning, {name}: what it took",
        answers=epochs * episodes * 3,
        generated=room.known.made - made,
        seconds=time.perf_counter() - started,
    )
    _settings(bench, name, policies, room)
    return Lesson(policies, done)


def _settings(bench: Bench, name: str, policies: DecodingPolicies, room: Room) -> None:
    """The settings that each was left with, before anybody spoke."""
    decide = policies.decide()
    state = state_of(room.tasks[0].question, 1, len(NAMES), [])
    for place, agent in enumerate(NAMES):
        (one,) = decide(place, [state])
        bench.arm(
            f"learnt settings, {name}: {agent}",
            temperature=one.temperature,
            top_p=one.top_p,
            top_k=one.top_k,
            max_tokens=one.max_tokens,
            repetition_penalty=one.repetition_penalty,
            presence_penalty=one.presence_penalty,
        )
