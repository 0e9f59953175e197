"""Log-probabilities of answers, with gradient: where a shared-prefix forward plugs in.

A :class:`Forward` gets prompts and answers and gives one log-probability per token of the answers.
``distinct`` computes equal inputs once: in a group many steps see the same prompt. Rows are padded
to the right, where causal attention never looks.

Shapes: A tokens of all actions side by side, B rows of a batch, S their length, U distinct
positions, T = B·S, H heads, K key-value heads, d head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional as F

from shoal.core.errors import InputError
from shoal.training.policies import Policy

Tokens = Sequence[int]
CHUNK = 16_384
"""Tokens that go through the decoder at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Logprobs:
    """Of every token of the actions, in order, [A]; natural log, after temperature."""

    logp_A: torch.Tensor
    entropy_A: torch.Tensor | None = None


class Forward(Protocol):
    """Computes what a policy thinks of answers."""

    def __call__(
        self,
        policy: Policy,
        prompts: Sequence[Tokens],
        actions: Sequence[Tokens],
        *,
        temperature: float = 1.0,
        entropy: bool = False,
    ) -> Logprobs: ...


def distinct(
    policy: Policy,
    prompts: Sequence[Tokens],
    actions: Sequence[Tokens],
    *,
    temperature: float = 1.0,
    entropy: bool = False,
) -> Logprobs:
    """Every different input once, in chunks of rows of similar length.

    Raises :class:`InputError`, naming the row, for a prompt that is empty or beyond the context.
    """
    inputs: dict[tuple[int, ...], int] = {}
    places: dict[tuple[int, int], int] = {}
    which, targets = [], []
    for row, (prompt, action) in enumerate(zip(prompts, actions, strict=True)):
        check_row(policy, row, prompt, action)
        if not action:
            continue
        key = (*prompt, *action[:-1])
        index = inputs.setdefault(key, len(inputs))
        for t, token in enumerate(action):
            which.append(places.setdefault((index, len(prompt) - 1 + t), len(places)))
            targets.append(token)
    if not targets:
        empty = torch.zeros(0, device=policy.device)
        return Logprobs(empty, empty if entropy else None)
    hidden_UD = _hidden(policy, list(inputs), list(places))
    logp_UV = torch.log_softmax(policy.decoder.logits(hidden_UD) / temperature, -1)
    which_A = torch.tensor(which, device=policy.device)
    logp_A = logp_UV[which_A, torch.tensor(targets, device=policy.device)]
    if not entropy:
        return Logprobs(logp_A)
    entropy_U = -(logp_UV.exp() * logp_UV).sum(-1)
    return Logprobs(logp_A, entropy_U[which_A])


def check_row(policy: Policy, row: int, prompt: Tokens, action: Tokens) -> None:
    """Raises :class:`InputError` for a row that the model cannot read."""
    if not prompt:
        raise InputError(f"Row {row} has an empty prompt, after which nothing can be predicted.")
    if len(prompt) + len(action) > policy.config.context:
        raise InputError(
            f"Row {row} has {len(prompt)} + {len(action)} tokens, but the context of "
            f"{policy.name} holds {policy.config.context}: shorten the history or the answer."
        )


def _hidden(
    policy: Policy, inputs: list[tuple[int, ...]], places: list[tuple[int, int]]
) -> torch.Tensor:
    """Final states of the places (input, position), in their order: [U, D]."""
    wanted: dict[int, list[tuple[int, int]]] = {}
    for u, (index, position) in enumerate(places):
        wanted.setdefault(index, []).append((position, u))
    states, order = [], []
    for chunk in _chunks(inputs):
        hidden_BSD = causal(policy, [inputs[index] for index in chunk])
        rows = [b for b, index in enumerate(chunk) for _ in wanted[index]]
        columns = [position for index in chunk for position, _ in wanted[index]]
        order += [u for index in chunk for _, u in wanted[index]]
        states.append(hidden_BSD[rows, columns])
    back_U = torch.empty(len(order), dtype=torch.int64, device=policy.device)
    back_U[order] = torch.arange(len(order), device=policy.device)
    return torch.cat(states)[back_U]


def _chunks(inputs: list[tuple[int, ...]]) -> Iterator[list[int]]:
    """Places of inputs, by length, as many as fit when padded."""
    chunk: list[int] = []
    for index in sorted(range(len(inputs)), key=lambda index: len(inputs[index])):
        if chunk and (len(chunk) + 1) * len(inputs[index]) > CHUNK:
            yield chunk
            chunk = []
        chunk.append(index)
    if chunk:
        yield chunk


def padded(inputs: Sequence[Tokens], device: torch.device) -> torch.Tensor:
    """Token ids [B, S], filled up with 0 on the right."""
    S = max(map(len, inputs))
    ids = [[*tokens, *([0] * (S - len(tokens)))] for tokens in inputs]
    return torch.tensor(ids, dtype=torch.int64, device=device)


def causal(policy: Policy, inputs: Sequence[Tokens]) -> torch.Tensor:
    """Final states [B, S, D] of rows that each are one sequence from its beginning."""
    ids_BS = padded(inputs, policy.device)
    B, S = ids_BS.shape
    positions_T = torch.arange(S, device=policy.device).repeat(B)

    def attend(layer: int, q_THd: torch.Tensor, kv_T2Kd: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            x.reshape(B, S, *x.shape[1:]).transpose(1, 2)
            for x in (q_THd, kv_T2Kd[:, 0], kv_T2Kd[:, 1])
        )
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2).reshape(q_THd.shape)

    return policy.decoder.forward(ids_BS.reshape(-1), positions_T, attend).view(B, S, -1)
