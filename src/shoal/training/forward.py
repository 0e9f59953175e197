"""Log-probabilities of answers, with gradient: what to compute, and the plain way to do it.

A :class:`Forward` gets prompts and answers and gives one log-probability per token of the answers.
``distinct`` computes equal inputs once, each in a row of its own: the plain forward, which
:mod:`shoal.training.shared_prefix` is held against and falls back to. Rows are padded to the right,
where causal attention never looks.

Shapes: A tokens of all actions side by side, B rows of a batch, S their length, U distinct
positions, V vocabulary, T = B·S, H heads, K key-value heads, d head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional as F

from shoal.core.errors import InputError
from shoal.training.policies import Policy
from shoal.training.rows import Ints

Tokens = Sequence[int]
CHUNK = 16_384
"""Tokens that go through the decoder at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Logprobs:
    """Of every token of the actions, in order, [A]; natural log, after temperature.

    ``told`` is what the forward tells of itself, as metrics that add up over calls.
    """

    logp_A: torch.Tensor
    entropy_A: torch.Tensor | None = None
    told: Mapping[str, float] = field(default_factory=dict)


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


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """What is to be computed: distinct inputs, and where in them each answer's tokens come up.

    inputs      token ids, none of them twice and none empty
    input_A     which input predicts a token of the answers
    position_A  the position in it whose state does: the last of the prompt for the first token
    target_A    the token
    """

    inputs: tuple[tuple[int, ...], ...]
    input_A: Ints
    position_A: Ints
    target_A: Ints


def asked(policy: Policy, prompts: Sequence[Tokens], actions: Sequence[Tokens]) -> Asked:
    """What these rows ask for; an empty answer asks for nothing.

    Raises :class:`InputError`, naming the row, for a prompt that is empty or beyond the context.
    """
    known: dict[tuple[int, ...], int] = {}
    which, first, lengths, targets = [], [], [], list[int]()
    for row, (prompt, action) in enumerate(zip(prompts, actions, strict=True)):
        check_row(policy, row, prompt, action)
        if action:
            which.append(known.setdefault((*prompt, *action[:-1]), len(known)))
            first.append(len(prompt) - 1)
            lengths.append(len(action))
            targets += action
    starts = np.repeat(np.cumsum(lengths, dtype=np.int64) - lengths, lengths)
    return Asked(
        tuple(known),
        np.repeat(np.array(which, dtype=np.int64), lengths),
        np.repeat(np.array(first, dtype=np.int64), lengths) + np.arange(len(targets)) - starts,
        np.array(targets, dtype=np.int64),
    )


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
    what = asked(policy, prompts, actions)
    if not len(what.target_A):
        return nothing(policy, entropy=entropy)
    return separate(policy, what, temperature=temperature, entropy=entropy)


def separate(
    policy: Policy, what: Asked, *, temperature: float = 1.0, entropy: bool = False
) -> Logprobs:
    """Every input in a row of its own; at least one token is asked for."""
    states_TD, row_A = _padded_states(policy, what)
    return head(policy, states_TD, row_A, what.target_A, temperature=temperature, entropy=entropy)


def nothing(policy: Policy, *, entropy: bool) -> Logprobs:
    """The log-probabilities of no tokens at all."""
    empty = torch.zeros(0, device=policy.device)
    return Logprobs(empty, empty if entropy else None)


def head(
    policy: Policy,
    states_TD: torch.Tensor,
    row_A: Ints,
    target_A: Ints,
    *,
    temperature: float,
    entropy: bool,
) -> Logprobs:
    """Log-probabilities from final states; every row that predicts anything meets the head once."""
    row_U, which = np.unique(row_A, return_inverse=True)
    which_A = torch.from_numpy(which).to(policy.device)
    logits_UV = policy.decoder.logits(states_TD[torch.from_numpy(row_U).to(policy.device)])
    if temperature != 1:
        logits_UV = logits_UV / temperature
    logp_UV = torch.log_softmax(logits_UV, -1)
    logp_A = logp_UV[which_A, torch.from_numpy(target_A).to(policy.device)]
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


def _padded_states(policy: Policy, what: Asked) -> tuple[torch.Tensor, Ints]:
    """Final states, padding and all, of inputs that each have a row, and the row of each token."""
    states, starts, done = [], np.empty(len(what.inputs), dtype=np.int64), 0
    for chunk in chunks([len(tokens) for tokens in what.inputs]):
        hidden_BSD = causal(policy, [what.inputs[index] for index in chunk])
        B, S, _ = hidden_BSD.shape
        states.append(hidden_BSD.flatten(0, 1))
        starts[chunk] = done + S * np.arange(B)
        done += B * S
    return torch.cat(states), starts[what.input_A] + what.position_A


def chunks(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places of inputs, by length, as many as fit when padded."""
    chunk: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if chunk and (len(chunk) + 1) * lengths[index] > CHUNK:
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
