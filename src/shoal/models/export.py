"""Weights as the hub lays them out: for transformers, vLLM, and shoal itself.

The decoder's fused matrices are cut into the projections that checkpoints keep apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from shoal.core.errors import ModelError
from shoal.core.files import atomic_path, write_text
from shoal.models.decoder import DecoderConfig
from shoal.models.folder import NAMING
from shoal.models.weights import layout

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mistral": "MistralForCausalLM",
}


def unfuse(
    config: DecoderConfig, weights: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors as the hub has them; views of the decoder's own weights."""
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    rows = {
        "q": q, "k": kv, "v": kv, "q_bias": q, "k_bias": kv, "v_bias": kv,
        "gate": config.intermediate, "up": config.intermediate,
    }  # fmt: skip
    for name, fused in layout(config).items():
        tensor, first = weights[name].detach(), 0
        for part in fused.parts:
            size = rows.get(part.rpartition(".")[2], len(tensor))
            yield NAMING.of(part), tensor[first : first + size]
            first += size


def hub_config(config: DecoderConfig, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """``config.json``; raises :class:`ModelError` for positions that are scaled."""
    if config.rope.scaling != "none":
        raise ModelError(
            f"A model whose positions are scaled ({config.rope.scaling}) cannot be exported: "
            "export its adapter instead."
        )
    return {
        "architectures": [_ARCHITECTURES[config.family]],
        "model_type": config.family,
        "vocab_size": config.vocab,
        "hidden_size": config.hidden,
        "intermediate_size": config.intermediate,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.eps,
        "max_position_embeddings": config.context,
        "rope_theta": config.rope.theta,
        "tie_word_embeddings": config.tied_head,
        "eos_token_id": list(config.eos_ids),
        "bos_token_id": config.bos_id,
        "hidden_act": "silu",
        "attention_bias": False,
        "dtype": str(dtype).removeprefix("torch."),
    }


def write_folder(
    folder: Path,
    config: DecoderConfig,
    weights: Mapping[str, torch.Tensor],
    *,
    tokenizer: str,
    chat_template: str | None,
) -> int:
    """Write configuration, tokenizer and weights; the bytes of the weights.

    ``tokenizer`` is the text of a tokenizer.json. Raises :class:`ModelError` as
    :func:`hub_config` does.
    """
    settings = hub_config(config, weights["embed"].dtype)
    folder.mkdir(parents=True, exist_ok=True)
    named = {name: t.cpu().contiguous().clone() for name, t in unfuse(config, weights)}
    with atomic_path(folder / "model.safetensors") as temporary:
        save_file(named, temporary, metadata={"format": "pt"})
    write_text(folder / "tokenizer.json", tokenizer)
    told = {"chat_template": chat_template} if chat_template else {}
    write_text(folder / "tokenizer_config.json", json.dumps(told))
    write_text(folder / "config.json", json.dumps(settings, indent=2))
    return sum(tensor.numel() * tensor.element_size() for tensor in named.values())
