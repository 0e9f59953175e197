"""A remote server as a sampler: token ids in, token ids and log-probabilities out.

For OpenAI-compatible servers that answer prompts of token ids and return the ids of what they
wrote, as vLLM does (``return_token_ids``). Text is never tokenised again: what would be learned
from then need not be what was sampled.

New weights reach the server as adapters: a folder in PEFT's layout that both sides can see, and a
call that loads it (vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING). Another way can be given.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
from pydantic import BaseModel, ValidationError

from shoal.core.errors import ConfigError, RemoteError
from shoal.engine.endpoint import Endpoint, garbage, parse
from shoal.training.forward import Tokens
from shoal.training.policies import Policy
from shoal.training.samplers import Drawing, Sample

Publish = Callable[[Policy], Awaitable[str]]
"""Hands weights to the server; the name of the model to ask from now on."""


class _Logprobs(BaseModel):
    token_logprobs: list[float | None] = []


class _Choice(BaseModel):
    token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _Answer(BaseModel):
    choices: list[_Choice]


class RemoteSampler:
    """Answers with a server.

    after_temperature  whether the server's log-probabilities are taken after temperature (vLLM:
                       ``--logprobs-mode processed_logprobs``); without it only temperature 1 is
                       allowed, where both are the same
    """

    exact = False
    concurrent = True

    def __init__(
        self,
        endpoint: Endpoint,
        model: str,
        policy: Policy,
        *,
        publish: Publish | None = None,
        after_temperature: bool = False,
    ) -> None:
        self.version = policy.version
        self._endpoint, self._model, self._end = endpoint, model, policy.end
        self._publish, self._after_temperature = publish, after_temperature

    async def generate(
        self, prompts: Sequence[Tokens], seeds: Sequence[int], drawing: Drawing
    ) -> list[Sample]:
        """See :class:`shoal.training.samplers.Sampler`; raises :class:`RemoteError`."""
        if drawing.temperature != 1 and not self._after_temperature:
            raise ConfigError(
                f"{self._endpoint} draws at temperature {drawing.temperature:g}, and does not say "
                "that its log-probabilities are taken after temperature: sample at 1, or start "
                "it so and set sampler.after_temperature."
            )
        asked = [
            self._one(prompt, seed, drawing) for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        return list(await asyncio.gather(*asked))

    async def _one(self, prompt: Tokens, seed: int, drawing: Drawing) -> Sample:
        version = self.version
        body = {
            "model": self._model,
            "prompt": list(prompt),
            "max_tokens": drawing.max_tokens,
            "temperature": drawing.temperature,
            "top_p": 1.0,
            "seed": seed % 2**31,
            "logprobs": 1,
            "return_token_ids": True,
        }
        choice = (await self._endpoint.post("/completions", body, _read)).choices[0]
        if choice.token_ids is None:
            raise RemoteError(
                f"{self._endpoint} returns no token ids, and text cannot be learned from: use a "
                "server that knows return_token_ids, such as vLLM."
            )
        values = choice.logprobs.token_logprobs if choice.logprobs else []
        tokens = list(choice.token_ids)
        if len(values) == len(tokens) + 1 and choice.finish_reason == "stop":
            tokens.append(self._end)  # some leave the end out of the ids they return
        if len(values) != len(tokens) or any(value is None for value in values):
            raise RemoteError(
                f"{self._endpoint} returns {len(values)} log-probabilities for {len(tokens)} "
                "tokens: every token needs one."
            )
        return Sample(tuple(tokens), tuple(float(value or 0.0) for value in values), version)

    async def update(self, policy: Policy) -> None:
        """Hand the weights over; raises :class:`ConfigError` where no way to do so was given."""
        if self._publish is None:
            raise ConfigError(
                f"{self._endpoint} cannot be given new weights: say how, or what is sampled "
                "would never be what was learned."
            )
        self._model = await self._publish(policy)
        self.version = policy.version

    async def canary(self) -> float:
        """Log-probability of the likeliest token after the end token."""
        sample = await self._one((self._end,), 0, Drawing(1, 0.0))
        return sample.logprobs[0]

    async def close(self) -> None:
        """Close connections."""
        await self._endpoint.close()


async def _read(response: httpx.Response) -> _Answer:
    await response.aread()
    try:
        answer = _Answer.model_validate(parse(response))
    except ValidationError as error:
        raise garbage(response, "no completion") from error
    if not answer.choices:
        raise garbage(response, "no choice")
    return answer


def adapters_for(endpoint: Endpoint, folder: Path, save: Callable[[Policy, Path], None]) -> Publish:
    """Publish by loading adapters at run time: ``save`` writes a policy's into a folder."""

    async def publish(policy: Policy) -> str:
        name = f"version-{policy.version}"
        save(policy, folder / name)
        body: dict[str, Any] = {"lora_name": name, "lora_path": str((folder / name).resolve())}
        await endpoint.post("/load_lora_adapter", body, _ignore)
        return name

    return publish


async def _ignore(response: httpx.Response) -> None:
    await response.aread()
