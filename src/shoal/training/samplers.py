"""Samplers: prompts as tokens in, answers as tokens and their log-probabilities out.

Text is never tokenised again into what is learned from. A sampler says which version of the
weights it answers with; after an update its version must advance and a canary's log-probability
must move, or training would go on while old weights are served.

Shapes: B rows, S cached tokens, V vocabulary, H heads, K key-value heads, d head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional as F

from shoal.core import rng
from shoal.core.errors import ShoalError
from shoal.training.forward import Tokens, padded
from shoal.training.policies import Policy


class StaleSampler(ShoalError):
    """A sampler that still answers with old weights after an update."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """How answers are drawn. Truncation is not here: what it hides cannot be corrected for."""

    max_tokens: int = 16
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class Sample:
    """An answer: its tokens with the end, their log-probabilities, the weights' version."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    version: int


class Sampler(Protocol):
    """Answers prompts with the newest weights it was given.

    exact       its log-probabilities are those the trainer would compute, so that they need not be
                computed again
    concurrent  prompts may come one by one; otherwise they had better come together
    """

    @property
    def version(self) -> int: ...
    @property
    def exact(self) -> bool: ...
    @property
    def concurrent(self) -> bool: ...

    async def generate(
        self, prompts: Sequence[Tokens], seeds: Sequence[int], drawing: Drawing
    ) -> list[Sample]:
        """One answer a prompt; what is drawn depends on its seed alone."""
        ...

    async def update(self, policy: Policy) -> None:
        """Take the policy's weights; from now on its version is answered with."""
        ...

    async def canary(self) -> float:
        """A log-probability that changes whenever the weights do."""
        ...

    async def close(self) -> None:
        """Free what it holds."""
        ...


class DirectSampler:
    """The policy itself, in this process: equal prompts are computed once.

    For small models; its log-probabilities are the trainer's up to rounding.
    """

    exact = True
    concurrent = False

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    @property
    def version(self) -> int:
        return self._policy.version

    async def generate(
        self, prompts: Sequence[Tokens], seeds: Sequence[int], drawing: Drawing
    ) -> list[Sample]:
        return draw(self._policy, prompts, seeds, drawing)

    async def update(self, policy: Policy) -> None:
        self._policy = policy

    async def canary(self) -> float:
        return canary(self._policy)

    async def close(self) -> None:
        """Nothing is held."""


@torch.no_grad()
def canary(policy: Policy) -> float:
    """Mean log-probability of every token after the end token: it moves with any weight."""
    cache = _Cache(policy, [(policy.end,)])
    return float(torch.log_softmax(cache.logits_BV.double(), -1).mean())


@torch.no_grad()
def draw(
    policy: Policy, prompts: Sequence[Tokens], seeds: Sequence[int], drawing: Drawing
) -> list[Sample]:
    """One answer a prompt, all at once; a row draws from its seed and place alone."""
    if not prompts:
        return []
    unique: dict[tuple[int, ...], int] = {}
    which = [unique.setdefault(tuple(prompt), len(unique)) for prompt in prompts]
    cache = _Cache(policy, list(unique), room=drawing.max_tokens - 1)
    cache.take(which)
    tokens: list[list[int]] = [[] for _ in prompts]
    logprobs: list[list[float]] = [[] for _ in prompts]
    alive = list(range(len(prompts)))
    for index in range(drawing.max_tokens):
        chosen, logp = choose(cache.logits_BV, [seeds[row] for row in alive], index, drawing)
        for row, token, value in zip(alive, chosen, logp, strict=True):
            tokens[row].append(token)
            logprobs[row].append(value)
        going = [b for b, token in enumerate(chosen) if token != policy.end]
        if not going or index + 1 == drawing.max_tokens:
            break
        cache.take(going)
        alive = [alive[b] for b in going]
        cache.append([chosen[b] for b in going])
    version = policy.version
    return [
        Sample(tuple(row), tuple(logp), version) for row, logp in zip(tokens, logprobs, strict=True)
    ]


def choose(
    logits_BV: torch.Tensor, seeds: Sequence[int], index: int, drawing: Drawing
) -> tuple[list[int], list[float]]:
    """Tokens [B] by inverting the cumulative distribution, and their log-probabilities.

    The likeliest at temperature 0. A draw depends on its seed and ``index`` alone.
    """
    logp_BV = torch.log_softmax(logits_BV.float() / (drawing.temperature or 1.0), -1)
    if drawing.temperature == 0:
        chosen_B1 = logp_BV.argmax(-1, keepdim=True)
    else:
        cumulative_BV = logp_BV.double().exp().cumsum(-1)
        uniform_B = torch.tensor(
            [rng.uniform("token", seed, index) for seed in seeds],
            dtype=torch.float64,
            device=logits_BV.device,
        )
        target_B1 = (uniform_B * cumulative_BV[:, -1])[:, None]
        chosen_B1 = torch.searchsorted(cumulative_BV, target_B1, right=True)
        chosen_B1 = chosen_B1.clamp_max(logp_BV.shape[-1] - 1)
    return chosen_B1[:, 0].tolist(), logp_BV.gather(1, chosen_B1)[:, 0].tolist()


class _Cache:
    """Keys and values of rows that are read once and then grow by a token a step."""

    def __init__(self, policy: Policy, prompts: Sequence[Tokens], room: int = 0) -> None:
        self._policy = policy
        self._lengths = torch.tensor([len(prompt) for prompt in prompts], device=policy.device)
        ids_BS = padded(prompts, policy.device)
        B, S = ids_BS.shape
        self._kv: list[torch.Tensor] = []

        def attend(layer: int, q_THd: torch.Tensor, kv_T2Kd: torch.Tensor) -> torch.Tensor:
            kv = kv_T2Kd.reshape(B, S, *kv_T2Kd.shape[1:])
            self._kv.append(F.pad(kv, (0, 0, 0, 0, 0, 0, 0, room)))
            q = q_THd.reshape(B, S, *q_THd.shape[1:]).transpose(1, 2)
            k, v = (part.transpose(1, 2) for part in kv.unbind(2))
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            return out.transpose(1, 2).reshape(q_THd.shape)

        positions_T = torch.arange(S, device=policy.device).repeat(B)
        hidden_TD = policy.decoder.forward(ids_BS.reshape(-1), positions_T, attend)
        last_B = torch.arange(B, device=policy.device) * S + self._lengths - 1
        self.logits_BV = policy.decoder.logits(hidden_TD[last_B])

    def take(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; a row may be taken more than once."""
        if list(rows) == list(range(len(self._lengths))):
            return
        index = torch.tensor(rows, device=self._policy.device)
        self._lengths = self._lengths[index]
        self._kv = [kv[index] for kv in self._kv]
        self.logits_BV = self.logits_BV[index]

    def append(self, tokens: Sequence[int]) -> None:
        """Read one more token a row."""
        policy, lengths_B = self._policy, self._lengths
        rows_B = torch.arange(len(lengths_B), device=policy.device)
        S = self._kv[0].shape[1]
        seen_B11S = (torch.arange(S, device=policy.device) <= lengths_B[:, None])[:, None, None]

        def attend(layer: int, q_THd: torch.Tensor, kv_T2Kd: torch.Tensor) -> torch.Tensor:
            kv = self._kv[layer]
            kv[rows_B, lengths_B] = kv_T2Kd
            k, v = (part.transpose(1, 2) for part in kv.unbind(2))
            out = F.scaled_dot_product_attention(
                q_THd[:, :, None], k, v, attn_mask=seen_B11S, enable_gqa=True
            )
            return out[:, :, 0]

        ids_B = torch.tensor(tokens, device=policy.device)
        hidden_BD = policy.decoder.forward(ids_B, lengths_B, attend)
        self._lengths = lengths_B + 1
        self.logits_BV = policy.decoder.logits(hidden_BD)
