"""GGUF files: exact tensors, known architectures, and one sentence for every broken file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Quant

from shoal.core.errors import ModelError
from shoal.models.decoder import causal_attend
from shoal.models.gguf import GGUFFile
from shoal.models.gguf_tokenizer import PRE_TOKENIZERS, tokenizer_of
from shoal.models.loading import load

SaveTiny = Callable[..., tuple[Any, Path]]
SaveGGUF = Callable[..., Path]
WIDE = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 96}  # blocks of 32 fit


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@torch.inference_mode()
def test_logits_equal_transformers(
    family: str, save_tiny: SaveTiny, save_gguf: SaveGGUF, own_cache: Path
) -> None:
    """Rows of the llama architecture are stored permuted, those of qwen are not."""
    reference, _ = save_tiny(family, **WIDE)
    decoder = load(str(save_gguf(reference)), dtype="fp32").decoder
    ids = torch.randint(0, 258, (90,), generator=torch.Generator().manual_seed(1))
    ours = decoder.logits(decoder.forward(ids, torch.arange(90), causal_attend))
    torch.testing.assert_close(ours, reference(ids[None]).logits[0], rtol=1e-5, atol=1e-4)


@torch.inference_mode()
def test_llama3_scaling_comes_as_a_tensor_of_divisors(
    save_tiny: SaveTiny, save_gguf: SaveGGUF, own_cache: Path
) -> None:
    scaling = {
        "rope_theta": 10_000.0,
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    reference, _ = save_tiny("llama", rope_parameters=scaling, **WIDE)
    plain = 10_000.0 ** (-torch.arange(8) / 8)
    divisors = (plain / reference.model.rotary_emb.inv_freq).numpy()
    decoder = load(str(save_gguf(reference, rope_divisors=divisors)), dtype="fp32").decoder
    ids = torch.randint(0, 258, (90,), generator=torch.Generator().manual_seed(1))
    ours = decoder.logits(decoder.forward(ids, torch.arange(90), causal_attend))
    torch.testing.assert_close(ours, reference(ids[None]).logits[0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("quant", "error"),
    [
        (Quant.F16, 1e-3),
        (Quant.BF16, 8e-3),
        (Quant.Q8_0, 1e-2),
        (Quant.Q5_1, 0.1),
        (Quant.Q4_1, 0.2),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_quantised_tensors_are_close_to_the_originals(
    quant: Quant, error: float, save_tiny: SaveTiny, save_gguf: SaveGGUF, own_cache: Path
) -> None:
    reference, folder = save_tiny("llama", **WIDE)
    exact = load(str(folder), dtype="fp32").decoder.weights
    quantised = load(str(save_gguf(reference, quant)), dtype="fp32").decoder.weights
    for name, weight in quantised.items():
        scale = exact[name].abs().max()
        assert (weight - exact[name]).abs().max() < error * scale, name


def test_k_quants_are_dequantised(tmp_path: Path) -> None:
    """A Q4_K block by hand: scale 1, no minimum, so that the values are the nibbles."""
    scales = bytes([1] * 4 + [0] * 4 + [1] * 4)
    nibbles = bytes(0x21 + 0x11 * (i % 8) for i in range(128))
    block = np.frombuffer(np.array([1, 0], np.float16).tobytes() + scales + nibbles, np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "k.gguf", "llama")
    writer.add_tensor("w", block[None], raw_dtype=Quant.Q4_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    values = GGUFFile(tmp_path / "k.gguf")._dequantised("w").view(4, 2, 32)
    low, high = torch.arange(32) % 8 + 1, torch.arange(32) % 8 + 2
    assert (values[:, 0] == low).all()
    assert (values[:, 1] == high).all()


def test_rope_scaling_is_read(save_tiny: SaveTiny, save_gguf: SaveGGUF) -> None:
    reference, _ = save_tiny("qwen2", **WIDE)
    yarn = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}
    path = save_gguf(reference, **yarn, rope__scaling__original_context_length=128)
    rope = GGUFFile(path).config().rope
    assert (rope.scaling, rope.factor, rope.original_context) == ("yarn", 4.0, 128)
    assert rope.attention_factor == pytest.approx(0.1 * np.log(4) + 1)
    path = save_gguf(reference, rope__scaling__type="linear", rope__scaling__factor=2.0)
    assert GGUFFile(path).config().rope.frequencies(16)[0] == 0.5
    with pytest.raises(ModelError, match="longrope"):
        GGUFFile(save_gguf(reference, rope__scaling__type="longrope")).config()


def test_tokenizer_is_rebuilt(save_tiny: SaveTiny, save_gguf: SaveGGUF, own_cache: Path) -> None:
    reference, _ = save_tiny("llama", **WIDE)
    model = load(str(save_gguf(reference)))
    assert model.tokenizer.eos_ids == {257}
    assert model.tokenizer.encode("<|im_start|>x<|im_end|>")[::2] == [256, 257]
    assert len(model.tokenizer.encode("abcab")) == 2, "merged"
    assert model.tokenizer.decode(model.tokenizer.encode("naïve 🙂 123")) == "naïve 🙂 123"


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("gpt-2", ["It", "'s", "Ġ12345", "Ġkm", "ĊĊĠ", "ĠnaÃ¯ve", "!"]),
        ("smollm", ["It", "'s", "Ġ", "1", "2", "3", "4", "5", "Ġkm", "ĊĊĠ", "ĠnaÃ¯ve", "!"]),
        ("qwen2", ["It", "'s", "Ġ", "1", "2", "3", "4", "5", "Ġkm", "ĊĊ", "Ġ", "ĠnaÃ¯ve", "!"]),
        ("llama-bpe", ["It", "'s", "Ġ", "123", "45", "Ġkm", "ĊĊ", "Ġ", "ĠnaÃ¯ve", "!"]),
    ],
)
def test_text_is_split_by_the_named_rule(rule: str, words: list[str]) -> None:
    """As the models' own tokenizer files split it, with bytes spelled as letters."""
    found = PRE_TOKENIZERS[rule]().pre_tokenize_str("It's 12345 km\n\n  naïve!")
    assert [word for word, _ in found] == words


def test_unknown_architectures_and_tokenizers_are_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.add_tokenizer_model("llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    file = GGUFFile(tmp_path / "m.gguf")
    with pytest.raises(ModelError, match="'mamba'"):
        file.config()
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        tokenizer_of(file)


def test_a_file_cut_short_anywhere_is_refused(
    save_tiny: SaveTiny, save_gguf: SaveGGUF, tmp_path: Path, own_cache: Path
) -> None:
    reference, _ = save_tiny("llama", num_hidden_layers=1, **WIDE)
    whole = save_gguf(reference).read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in [0, 3, 10, 24, 100, 1000, len(whole) // 2, len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(ModelError, match="not a complete GGUF file") as raised:
            load(str(cut))
        assert "\n" not in str(raised.value)
    assert not list(own_cache.rglob("*.safetensors"))


def test_a_damaged_header_is_refused_or_harmless(
    save_tiny: SaveTiny, save_gguf: SaveGGUF, tmp_path: Path
) -> None:
    """Whatever byte is wrong, nothing but a ModelError comes out."""
    reference, _ = save_tiny("llama", num_hidden_layers=1, **WIDE)
    whole = save_gguf(reference).read_bytes()
    draw = np.random.default_rng(5)
    damaged = tmp_path / "damaged.gguf"
    refused = 0
    for _ in range(200):
        content = bytearray(whole)
        for place in draw.integers(0, 6000, 3):
            content[place] = draw.integers(256)
        damaged.write_bytes(content)
        try:
            file = GGUFFile(damaged)
            config = file.config()
            tokenizer_of(file)
            for _ in file.weights(config, torch.float32):
                pass
        except ModelError:
            refused += 1
    assert refused > 50


def test_another_file_with_this_name_is_refused(tmp_path: Path, own_cache: Path) -> None:
    path = tmp_path / "page.gguf"
    path.write_text("<!doctype html><title>Please sign in</title>" * 20)
    with pytest.raises(ModelError, match="not a complete GGUF file"):
        load(str(path))


def test_tensors_that_do_not_fit_the_metadata_are_refused(
    save_tiny: SaveTiny, save_gguf: SaveGGUF, own_cache: Path
) -> None:
    reference, _ = save_tiny("llama", **WIDE)
    reference.config.num_hidden_layers = 4
    with pytest.raises(ModelError, match=r"lacks the tensor 'blk\.3"):
        load(str(save_gguf(reference)))
    reference.config.num_hidden_layers = 2
    with pytest.raises(ModelError, match=r"unknown tensor 'blk\.2"):
        load(str(save_gguf(reference)))
    reference.config.num_hidden_layers = 3
    reference.config.intermediate_size = 128
    with pytest.raises(ModelError, match="the shape is"):
        load(str(save_gguf(reference)))
