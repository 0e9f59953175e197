"""A model of transformers as a sampler: what it answers does not come from our decoder at all.

Slower than the others on a CPU; for models that run on a GPU, and as an independent reference.
Draws are by each prompt's own seed, so batches do not change them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from shoal.models.export import hub_config
from shoal.training.export import unfused
from shoal.training.forward import Tokens
from shoal.training.policies import Policy
from shoal.training.samplers import Drawing, Sample, choose


class TransformersSampler:
    """Answers with transformers' own implementation of the policy's architecture."""

    exact = False
    concurrent = False

    def __init__(self, policy: Policy, *, device: str | None = None) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        settings = hub_config(policy.config)
        config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        auto: Any = AutoModelForCausalLM
        self._model: Any = auto.from_config(config).to(device or policy.device)
        self._model.eval()
        self._end = policy.end
        self.version = policy.version
        self._copy(policy)

    def _copy(self, policy: Policy) -> None:
        own = dict(self._model.named_parameters())
        with torch.no_grad():
            for name, tensor in unfused(policy):
                own[name].copy_(tensor)

    async def generate(
        self, prompts: Sequence[Tokens], seeds: Sequence[int], drawing: Drawing
    ) -> list[Sample]:
        """See :class:`shoal.training.samplers.Sampler`."""
        return self._generate(prompts, seeds, drawing)

    @torch.no_grad()
    def _generate(
        self, prompts: Sequence[Tokens], seeds: Sequence[int], drawing: Drawing
    ) -> list[Sample]:
        """One answer a prompt; rows are padded on the left."""
        device = self._model.device
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(one)) + list(one) for one in prompts])
        mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in prompts])
        ids, mask = ids.to(device), mask.to(device)
        tokens: list[list[int]] = [[] for _ in prompts]
        logprobs: list[list[float]] = [[] for _ in prompts]
        cache: Any = None
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        for index in range(drawing.max_tokens):
            out = self._model(
                input_ids=ids, attention_mask=mask, position_ids=positions,
                past_key_values=cache, use_cache=True,
            )  # fmt: skip
            cache = out.past_key_values
            chosen, values = choose(out.logits[:, -1], seeds, index, drawing)
            for row, (token, value) in enumerate(zip(chosen, values, strict=True)):
                if not tokens[row] or tokens[row][-1] != self._end:
                    tokens[row].append(token)
                    logprobs[row].append(value)
            if all(row[-1] == self._end for row in tokens):
                break
            ids = torch.tensor(chosen, device=device)[:, None]
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
            positions = positions[:, -1:] + 1
        return [
            Sample(tuple(row), tuple(values), self.version)
            for row, values in zip(tokens, logprobs, strict=True)
        ]

    async def update(self, policy: Policy) -> None:
        """Copy the weights over."""
        self._copy(policy)
        self.version = policy.version

    async def canary(self) -> float:
        """Mean log-probability of every token after the end token."""
        return self._canary()

    @torch.no_grad()
    def _canary(self) -> float:
        ids = torch.tensor([[self._end]], device=self._model.device)
        logits = self._model(input_ids=ids).logits[0, -1]
        return float(torch.log_softmax(logits.double(), -1).mean())

    async def close(self) -> None:
        """Nothing is held but memory."""
