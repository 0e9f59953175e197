"""Frequencies against transformers' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from shoal.models.hf_config import config_from_hf

SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 4.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    {
        "rope_type": "yarn",
        "factor": 16.0,
        "original_max_position_embeddings": 512,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "truncate": False,
        "mscale": 0.7,
        "mscale_all_dim": 1.3,
    },
    {
        "rope_type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 2048,
        "attention_factor": 1.25,
    },
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: scaling["rope_type"])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_scaled_frequencies_equal_transformers(scaling: dict[str, Any], head_dim: int) -> None:
    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        max_position_embeddings=8192,
        rope_parameters={"rope_theta": 500_000.0, **scaling},
    )
    reference, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, torch.device("cpu"))
    rope = config_from_hf(config.to_dict()).rope
    torch.testing.assert_close(rope.frequencies(head_dim), reference, rtol=1e-5, atol=0)
    assert rope.attention_factor == pytest.approx(factor)


def test_plain_frequencies_are_powers_of_theta() -> None:
    config = config_from_hf(LlamaConfig(hidden_size=256, num_attention_heads=4).to_dict())
    exact = [10_000.0 ** (-i / 32) for i in range(32)]
    torch.testing.assert_close(config.rope.frequencies(64), torch.tensor(exact))
