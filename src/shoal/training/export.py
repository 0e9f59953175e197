"""A policy as a folder that others can load: transformers, vLLM, and shoal itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from shoal.models.export import unfuse, write_folder
from shoal.training.policies import Policy


def unfused(policy: Policy) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors as the hub has them; views of the policy's own weights."""
    return unfuse(policy.config, policy.decoder.weights)


def export(policy: Policy, folder: Path) -> None:
    """Write configuration, tokenizer and weights.

    Raises :class:`ModelError` for a model whose positions are scaled.
    """
    write_folder(
        folder,
        policy.config,
        policy.decoder.weights,
        tokenizer=policy.tokenizer.backend.to_str(),
        chat_template=policy.chat.template if policy.chat else None,
    )
