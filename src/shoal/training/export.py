"""A policy as a folder that others can load: transformers, vLLM, and shoal itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from shoal.core.errors import ModelError
from shoal.models.adapters.peft import export_peft
from shoal.models.export import unfuse, write_folder
from shoal.training.policies import Policy


def unfused(policy: Policy) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors as the hub has them: the weights, or those with the adapter merged in."""
    return unfuse(policy.config, _weights(policy))


def export(policy: Policy, folder: Path) -> None:
    """Write configuration, tokenizer and weights.

    Raises :class:`ModelError` for a model whose positions are scaled.
    """
    write_folder(
        folder,
        policy.config,
        _weights(policy),
        tokenizer=policy.tokenizer.backend.to_str(),
        chat_template=policy.chat.template if policy.chat else None,
    )


def export_adapter(policy: Policy, folder: Path) -> None:
    """Write a policy's adapter alone, as plain LoRA in PEFT's layout, for a server to load.

    What :func:`shoal.training.remote_sampler.adapters_for` saves with. Raises :class:`ModelError`
    for a policy without one.
    """
    if policy.adapter is None:
        raise ModelError(f"All weights of {policy.name} learn: there is no adapter to export.")
    export_peft(policy.adapter, folder, base_name=policy.name)


def _weights(policy: Policy) -> Mapping[str, torch.Tensor]:
    if policy.adapter is None:
        return policy.decoder.weights
    return policy.adapter.merged_weights(policy.decoder)
