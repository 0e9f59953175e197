"""COPO: a second advantage between prompts, for the groups whose answers all agree.

"COPO: Consistency-Aware Policy Optimization" (arXiv 2508.04138). The local advantage is GRPO's. The
global one is the prompt's mean reward, standardised over the prompts of the batch and shared by
all its answers. A sigmoid of the entropy of a group's final answers (in bits) weighs the two
clipped losses: disagreement is learned from locally, consensus globally. A group that is all wrong
goes to the global loss whatever its entropy.

Departures: the released recipe sends every wrong answer of a *mixed* group to the global loss,
which takes its own signal away; here the rule is the group's, as the text describes it, and the
released one is ``gate="per_response"``. Answers are compared in the environment's canonical form,
and all that cannot be read are one answer. "Wrong" is the least reward the environment declares.

Shapes: R rows, E episodes, G groups.
"""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np

from shoal.core.errors import ConfigError
from shoal.training.advantage import (
    EPS,
    Advantages,
    all_wrong,
    centred_by,
    dead_groups,
    group_stats,
    mean_by,
)
from shoal.training.rows import Batch, Floats

Gate = Literal["group", "per_response", "soft", "forced", "global"]


def copo(
    batch: Batch,
    *,
    gamma: float = 5.0,
    rho: float = 1.0,
    gate: Gate = "group",
    consistency: bool = False,
) -> Advantages:
    """Two columns, local and global, and their weights w and 1 - w.

    gamma, rho   steepness and place of the gate, in bits of entropy
    gate         "group" is COPO; "per_response" its released recipe; "soft" the sigmoid alone;
                 "forced" the global loss on dead groups only; "global" nothing but it
    consistency  scale a prompt's reward down to 1/G of it as its answers disagree

    Raises :class:`ConfigError` for an environment without final answers.
    """
    if not batch.answers:
        raise ConfigError(
            f"COPO compares final answers, and {batch.environment} has none: "
            "take another algorithm, or an environment whose episodes end in an answer."
        )
    entropy_G = answer_entropy(batch)
    local_E = centred_by(batch.group_E, batch.return_E, batch.groups, std=True)
    global_G = global_advantage(batch, entropy_G if consistency else None)
    weight_E = gate_weights(batch, entropy_G, gamma, rho, gate)
    columns_CE = np.stack([local_E, global_G[batch.group_E]])
    weights_CE = np.stack([weight_E, 1 - weight_E])
    size_G = np.bincount(batch.group_E, minlength=batch.groups)
    return Advantages(
        columns_CE[:, batch.episode_R],
        weights_CE[:, batch.episode_R],
        dead_groups(batch)[batch.group_R],
        {
            **group_stats(batch),
            "copo.gate_mean": float(weight_E.mean()),
            "copo.entropy_bits": float(entropy_G.mean()),
            "copo.entropy_relative": float((entropy_G / np.log2(np.maximum(size_G, 2))).mean()),
            "answers.unparsed": float((batch.answer_E < 0).mean()),
        },
    )


def answer_entropy(batch: Batch) -> Floats:
    """Entropy in bits of the final answers of each group, [G]; unreadable ones are one answer."""
    answers = int(batch.answer_E.max(initial=-1)) + 2
    pair, group_P = np.unique(batch.group_E * answers + batch.answer_E + 1, return_counts=True)
    code_P = pair // answers
    share_P = group_P / np.bincount(batch.group_E, minlength=batch.groups)[code_P]
    terms_P = -share_P * np.log2(share_P)
    entropy: Floats = np.bincount(code_P, terms_P, minlength=batch.groups).astype(np.float64)
    return np.abs(entropy)  # -0.0 where all agree


def global_advantage(batch: Batch, entropy_G: Floats | None = None) -> Floats:
    """Mean reward of each prompt, standardised over the prompts, [G]; 0 where all are equal."""
    reward_G = mean_by(batch.group_E, batch.return_E, batch.groups)
    if entropy_G is not None:
        size_G = np.bincount(batch.group_E, minlength=batch.groups)
        strength_G = (1 - 1 / size_G) / np.log2(np.maximum(size_G, 2))
        reward_G = reward_G * (1 - strength_G * entropy_G)
    if (reward_G == reward_G[0]).all():
        warnings.warn(
            "All prompts of the batch have the same mean reward, so that COPO's global advantage "
            "is 0: give it more prompts a batch.",
            stacklevel=3,
        )
        return np.zeros(batch.groups)
    between_G: Floats = (reward_G - reward_G.mean()) / (reward_G.std(ddof=1) + EPS)
    return between_G


def gate_weights(batch: Batch, entropy_G: Floats, gamma: float, rho: float, gate: Gate) -> Floats:
    """Weight of the local loss of each episode, [E]."""
    if gate == "global":
        return np.zeros(batch.episodes)
    if gate == "forced":
        return (~dead_groups(batch)).astype(np.float64)[batch.group_E]
    weight_E: Floats = (1 / (1 + np.exp(-gamma * (entropy_G - rho))))[batch.group_E]
    if gate == "group":
        weight_E[all_wrong(batch)[batch.group_E]] = 0.0
    elif gate == "per_response":
        weight_E[batch.return_E <= batch.reward_min] = 0.0
    return weight_E
