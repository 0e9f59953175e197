"""The local engine as a sampler: one cache for a group, weights updated where they lie.

In fp32 the engine reads the very tensors that learn. In bf16 it has a copy, which is overwritten in
place after every update. Cache of old weights is never found again: the salt of a request names
the version.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from shoal.core.errors import EngineError
from shoal.core.protocols import Request, Sampling, Segment
from shoal.engine.local import KV_BYTES, LocalEngine
from shoal.models.chat import ChatTemplate
from shoal.models.decoder import Decoder
from shoal.models.loading import Model
from shoal.training.forward import Tokens
from shoal.training.policies import Policy, fingerprint
from shoal.training.samplers import Drawing, Sample


class EngineSampler:
    """Answers with :class:`LocalEngine`.

    concurrent  every episode asks by itself, and the engine batches what it finds; what is
                computed together then depends on timing, and last digits with it
    """

    def __init__(
        self,
        policy: Policy,
        *,
        dtype: Literal["fp32", "bf16"] = "fp32",
        kv_bytes: int = KV_BYTES,
        concurrent: bool = False,
    ) -> None:
        self.concurrent = concurrent
        self.exact = dtype == "fp32"
        self.version = policy.version
        self._policy = policy
        wanted = torch.float32 if self.exact else torch.bfloat16
        decoder = policy.decoder if self.exact else _copied(policy.decoder, wanted)
        self.engine = LocalEngine(
            Model(
                name=policy.name,
                config=policy.config,
                decoder=decoder,
                tokenizer=policy.tokenizer,
                chat=policy.chat or ChatTemplate(None),
                dtype=wanted,
                fingerprint=fingerprint(policy),
                path=Path(),
            ),
            kv_bytes=kv_bytes,
        )

    async def generate(
        self, prompts: Sequence[Tokens], seeds: Sequence[int], drawing: Drawing
    ) -> list[Sample]:
        """See :class:`shoal.training.samplers.Sampler`; raises :class:`EngineError`."""
        requests = [
            Request(
                (Segment(tokens=tuple(prompt)),),
                Sampling(
                    max_tokens=drawing.max_tokens,
                    temperature=drawing.temperature,
                    seed=seed,
                    logprobs=0,
                ),
                salt=f"version {self.version}",
            )
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        found = await self.engine.generate(requests)
        if failed := [one.error for one in found if one.error]:
            raise EngineError(f"{len(failed)} of {len(found)} prompts had no answer: {failed[0]}")
        return [
            Sample(one.tokens, tuple(token.logprob for token in one.logprobs), self.version)
            for one in found
        ]

    async def update(self, policy: Policy) -> None:
        """Overwrite the engine's weights, if it has its own, and forget its cache by name."""
        if not self.exact and policy.adapter is None:
            with torch.no_grad():
                for name, tensor in self.engine.model.decoder.weights.items():
                    tensor.copy_(policy.decoder.weights[name])
        self.version = policy.version

    async def canary(self) -> float:
        """Log-probability of one fixed token after the end token."""
        end = self._policy.end
        salt = f"version {self.version}"
        (score,) = await self.engine.score(
            (Segment(tokens=(end, end)),), [self._policy.tokenizer.decode([end + 1])], salt
        )
        return score.logprob

    async def close(self) -> None:
        """Close the engine."""
        await self.engine.close()


def _copied(decoder: Decoder, dtype: torch.dtype) -> Decoder:
    """A decoder with tensors of its own; norms and divisors stay as they are, adapters shared."""
    weights = {
        name: tensor.detach().to(tensor.dtype if tensor.dim() == 1 else dtype, copy=True)
        for name, tensor in decoder.weights.items()
    }
    return Decoder(decoder.config, weights).adapted(decoder.adapting)
