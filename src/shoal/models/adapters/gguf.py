"""Adapters as GGUF files, for llama.cpp (``--lora FILE``).

Tensors are called after those they are added to, with ``.lora_a`` [r, inputs] and ``.lora_b``
[outputs, r]. Files of the "llama" architecture hold the rows of query and key projections permuted
for a RoPE that pairs neighbours, so rows of B go that way, too. The scale is written into B, with
α = r, because such a file has one α for all its tensors.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import torch

from shoal.core.errors import ModelError
from shoal.core.files import atomic_path
from shoal.models.adapters.adapter import Adapter
from shoal.models.adapters.peft import plain
from shoal.models.decoder import DecoderConfig
from shoal.models.gguf import NAMING

_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}


@torch.no_grad()
def export_gguf(adapter: Adapter, path: Path, config: DecoderConfig) -> None:
    """Write an adapter of a decoder with this configuration as plain LoRA.

    Raises :class:`ModelError` where ranks differ or the file cannot be written.
    """
    found = plain(adapter)
    ranks = {len(factors.A_RI) for _, factors in found.values()}
    if len(ranks) > 1:
        raise ModelError(f"A GGUF adapter has one rank, but this one has {sorted(ranks)}.")
    architecture = _ARCHITECTURES[config.family]
    try:
        with atomic_path(path) as temporary:
            writer = gguf.GGUFWriter(temporary, architecture)
            writer.add_string("general.type", "adapter")
            writer.add_string("adapter.type", "lora")
            writer.add_float32("adapter.lora.alpha", float(ranks.pop()))
            for name, (site, (A_RI, B_OR, scale)) in found.items():
                B_OR = B_OR.float() * scale
                if architecture == "llama" and site.kind in ("q", "k"):
                    B_OR = _paired(B_OR, config.head_dim)
                tensor = NAMING.of(name)
                writer.add_tensor(f"{tensor}.lora_a", A_RI.float().cpu().contiguous().numpy())
                writer.add_tensor(f"{tensor}.lora_b", B_OR.cpu().contiguous().numpy())
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
    except OSError as error:
        raise ModelError(f"Cannot write the adapter {path}: {error}.") from error


def _paired(B_OR: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows (i, i + d/2) of every head to (2i, 2i + 1)."""
    halves = B_OR.reshape(-1, 2, head_dim // 2, B_OR.shape[-1])
    return halves.transpose(1, 2).reshape(B_OR.shape)
