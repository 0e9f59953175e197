"""Small checkpoints of every family, as folders and GGUF files, and the packaged model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
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

GGUF_NAMES = {
    "embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}

SaveTiny = Callable[..., tuple[PreTrainedModel, Path]]


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SHOAL_CACHE", str(folder))
    return folder


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


@pytest.fixture
def save_gguf(tmp_path: Path) -> Callable[..., Path]:
    """Writes a checkpoint as llama.cpp's converter would: ``save_gguf(reference, quant)``."""

    def save(
        reference: PreTrainedModel,
        quant: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
        rope_divisors: np.ndarray | None = None,
        **metadata: Any,
    ) -> Path:
        config = reference.config
        path = tmp_path / f"{config.model_type}-{quant.name}.gguf"
        writer = gguf.GGUFWriter(path, config.model_type)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(config.head_dim)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        for key, value in metadata.items():
            writer.add_key_value(
                f"{config.model_type}.{key.replace('__', '.')}",
                value,
                gguf.GGUFValueType.get_type(value),
            )
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        alphabet[-2:] = ["ab", "abc"]  # the letters of two bytes that no text has
        writer.add_token_list([*alphabet, "<|im_start|>", "<|im_end|>"])
        writer.add_token_types([1] * 256 + [3, 3])
        writer.add_token_merges(["a b", "ab c"])
        writer.add_eos_token_id(257)
        for name, weight in reference.state_dict().items():
            if name == "lm_head.weight" and config.tie_word_embeddings:
                continue
            _add_tensor(writer, config, name, weight.numpy(), quant)
        if rope_divisors is not None:
            writer.add_tensor("rope_freqs.weight", rope_divisors)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return save


def _add_tensor(
    writer: gguf.GGUFWriter,
    config: Any,
    name: str,
    weight: np.ndarray,
    quant: gguf.GGMLQuantizationType,
) -> None:
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    kind = name.split(".")[-2]
    if config.model_type == "llama" and kind in heads:
        halves = weight.reshape(heads[kind], 2, config.head_dim // 2, -1)
        weight = halves.swapaxes(1, 2).reshape(weight.shape)  # pairs side by side
    if weight.ndim == 1:
        quant = gguf.GGMLQuantizationType.F32
    for theirs, ours in GGUF_NAMES.items():
        name = name.replace(theirs, ours)
    name = name.removeprefix("model.")
    writer.add_tensor(name, gguf.quantize(weight, quant), raw_dtype=quant)


@pytest.fixture(scope="session")
def smollm2_fp32() -> Model:
    """The packaged model in fp32; its weights are mapped, not read."""
    return load(dtype="fp32")


@pytest.fixture(scope="session")
def smollm2_bf16() -> Model:
    """The packaged model as it runs by default."""
    return load(dtype="bf16")
