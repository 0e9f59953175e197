"""Small checkpoints of every family, saved by transformers, and the packaged model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    set_seed,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from shoal.models.loading import Model, load

CONFIGS = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
}

SaveTiny = Callable[..., tuple[PreTrainedModel, Path]]


@pytest.fixture
def save_tiny(tiny_model: Path, tmp_path: Path) -> SaveTiny:
    """Makes a random checkpoint: ``save_tiny(family, **settings) -> (reference, folder)``."""

    def save(family: str, **settings: Any) -> tuple[PreTrainedModel, Path]:
        folder = tmp_path / family
        shutil.copytree(tiny_model, folder)
        (folder / "model.safetensors").unlink()
        shape = {
            "vocab_size": 258,
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 512,
            "bos_token_id": None,
            "eos_token_id": 257,
            "pad_token_id": None,
            "tie_word_embeddings": False,
            "initializer_range": 0.3,
        }
        set_seed(11)
        reference = AutoModelForCausalLM.from_config(CONFIGS[family](**(shape | settings)))
        for name, weight in reference.named_parameters():
            if weight.ndim == 1:  # norms and biases start as ones and zeros, which hide mistakes
                torch.nn.init.normal_(weight.data, mean=float("norm" in name), std=0.3)
        reference.eval().save_pretrained(folder)
        return reference, folder

    return save


@pytest.fixture(scope="session")
def smollm2_fp32() -> Model:
    """The packaged model in fp32; its weights are mapped, not read."""
    return load(dtype="fp32")


@pytest.fixture(scope="session")
def smollm2_bf16() -> Model:
    """The packaged model as it runs by default."""
    return load(dtype="bf16")
