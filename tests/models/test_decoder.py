"""The decoder against transformers, for every family and RoPE scaling."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.models.decoder import causal_attend
from shoal.models.loading import load

SaveTiny = Callable[..., tuple[Any, Path]]

LLAMA3 = {
    "rope_theta": 10_000.0,
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_theta": 10_000.0,
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    ("llama", {"rope_parameters": LLAMA3}),
    ("llama", {"rope_parameters": YARN}),
    ("mistral", {"sliding_window": None}),
    ("qwen2", {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}),
    ("qwen3", {"head_dim": 24}),
]
IDS = ["llama", "llama-tied", "llama3", "yarn", "mistral", "qwen2", "qwen3"]


@pytest.mark.parametrize(("family", "settings"), VARIANTS, ids=IDS)
@torch.inference_mode()
def test_logits_and_greedy_tokens_equal_transformers(
    family: str, settings: dict[str, Any], save_tiny: SaveTiny
) -> None:
    reference, folder = save_tiny(family, **settings)
    decoder = load(str(folder), dtype="fp32").decoder
    ids = torch.randint(0, 258, (1, 120), generator=torch.Generator().manual_seed(3))
    answer = reference.generate(ids, max_new_tokens=64, min_new_tokens=64, do_sample=False)[0]
    expected = reference(answer[None]).logits[0]
    ours = decoder.logits(decoder.forward(answer, torch.arange(len(answer)), causal_attend))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
    without_end = ours[119:-1].clone()
    without_end[:, 257] = float("-inf")  # min_new_tokens forbids the end of the text
    assert without_end.argmax(-1).tolist() == answer[120:].tolist()


def test_gradients_equal_transformers(save_tiny: SaveTiny) -> None:
    reference, folder = save_tiny("qwen3")
    model = load(str(folder), dtype="fp32")
    weights = model.decoder.weights
    for weight in weights.values():
        weight.requires_grad_()
    ids = torch.randint(0, 258, (20,), generator=torch.Generator().manual_seed(5))
    hidden = model.decoder.forward(ids, torch.arange(20), causal_attend)
    torch.nn.functional.cross_entropy(model.decoder.logits(hidden)[:-1], ids[1:]).backward()
    reference.zero_grad()
    torch.nn.functional.cross_entropy(reference(ids[None]).logits[0, :-1], ids[1:]).backward()

    layer = reference.model.layers[1]
    attention = layer.self_attn
    for name, theirs in {
        "embed": [reference.model.embed_tokens],
        "head": [reference.lm_head],
        "layers.1.qkv": [attention.q_proj, attention.k_proj, attention.v_proj],
        "layers.1.q_norm": [attention.q_norm],
        "layers.1.gate_up": [layer.mlp.gate_proj, layer.mlp.up_proj],
        "layers.1.mlp_norm": [layer.post_attention_layernorm],
    }.items():
        expected = torch.cat([module.weight.grad for module in theirs])
        torch.testing.assert_close(weights[name].grad, expected, rtol=1e-4, atol=1e-6)


@torch.inference_mode()
def test_rows_of_several_sequences_do_not_disturb_each_other(save_tiny: SaveTiny) -> None:
    """Two sequences side by side, attention block-diagonal, give what each gives alone."""
    _, folder = save_tiny("llama")
    decoder = load(str(folder), dtype="fp32").decoder
    first, second = torch.arange(7), torch.arange(100, 112)
    alone = [decoder.forward(ids, torch.arange(len(ids)), causal_attend) for ids in (first, second)]

    def attend(layer: int, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        parts = [slice(0, 7), slice(7, 19)]
        return torch.cat([causal_attend(layer, q[part], kv[part]) for part in parts])

    positions = torch.cat([torch.arange(7), torch.arange(12)])
    together = decoder.forward(torch.cat([first, second]), positions, attend)
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_attention_sees_only_distances_between_positions(save_tiny: SaveTiny) -> None:
    """RoPE: the same text 200 positions further on has the same hidden states."""
    _, folder = save_tiny("llama")
    decoder = load(str(folder), dtype="fp32").decoder
    ids = torch.arange(30)
    here = decoder.forward(ids, torch.arange(30), causal_attend)
    there = decoder.forward(ids, torch.arange(200, 230), causal_attend)
    torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-3)
