"""Model folders: whole or sharded, in both spellings of the configuration, never pickled."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shoal.core.errors import ModelError
from shoal.core.records import Message
from shoal.models.hf_config import config_from_hf
from shoal.models.loading import load

SaveTiny = Callable[..., tuple[Any, Path]]

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 300,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
}


def edit(path: Path, **changes: Any) -> None:
    settings = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(settings | changes))


def test_shards_are_one_model(save_tiny: SaveTiny) -> None:
    reference, folder = save_tiny("qwen2")
    whole = load(str(folder), dtype="fp32").decoder.weights
    (folder / "model.safetensors").unlink()
    reference.save_pretrained(folder, max_shard_size="30KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    sharded = load(str(folder), dtype="fp32").decoder.weights
    assert whole.keys() == sharded.keys()
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)


def test_names_of_shards_do_not_leave_the_folder(save_tiny: SaveTiny, tmp_path: Path) -> None:
    _, folder = save_tiny("llama")
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    index = {"weight_map": {"lm_head.weight": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"no elsewhere\.safetensors"):
        load(str(folder))


def test_a_missing_shard_is_named(save_tiny: SaveTiny) -> None:
    reference, folder = save_tiny("llama")
    (folder / "model.safetensors").unlink()
    reference.save_pretrained(folder, max_shard_size="30KB")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelError, match=shard.name):
        load(str(folder))


def test_pickled_weights_are_refused(save_tiny: SaveTiny) -> None:
    reference, folder = save_tiny("llama")
    (folder / "model.safetensors").unlink()
    torch.save(reference.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickle") as raised:
        load(str(folder))
    assert "pytorch_model.bin" in str(raised.value)


def test_a_truncated_safetensors_file_is_refused(save_tiny: SaveTiny) -> None:
    _, folder = save_tiny("llama")
    path = folder / "model.safetensors"
    content = path.read_bytes()
    for length in (0, 5, 100, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ModelError, match="not a complete safetensors file"):
            load(str(folder))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(name: str, save_tiny: SaveTiny) -> None:
    _, folder = save_tiny("llama")
    (folder / name).unlink()
    with pytest.raises(ModelError, match=f"no {name}"):
        load(str(folder))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_broken_json_file_is_named(name: str, save_tiny: SaveTiny) -> None:
    _, folder = save_tiny("llama")
    (folder / name).write_text("{")
    with pytest.raises(ModelError, match=name):
        load(str(folder))


def test_biases_nobody_would_add_are_refused(save_tiny: SaveTiny) -> None:
    _, folder = save_tiny("llama", attention_bias=True)
    with pytest.raises(ModelError, match=r"o_proj\.bias"):
        load(str(folder))


def test_end_tokens_come_from_all_that_name_them(save_tiny: SaveTiny) -> None:
    _, folder = save_tiny("llama", eos_token_id=[5, 6])
    (folder / "generation_config.json").write_text('{"eos_token_id": 7}')
    model = load(str(folder))
    assert model.config.eos_ids == (5, 6, 7, 257)
    assert model.tokenizer.eos_ids == {5, 6, 7, 257}


def test_the_template_file_wins_over_the_setting(save_tiny: SaveTiny) -> None:
    _, folder = save_tiny("llama")
    messages = [Message("user", "hi")]
    edit(
        folder / "tokenizer_config.json",
        chat_template=[
            {"name": "tool_use", "template": "tools"},
            {"name": "default", "template": "{{ bos_token }}default"},
        ],
        bos_token={"content": "<|im_start|>"},
    )
    assert load(str(folder)).chat.render(messages) == "<|im_start|>default"
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}{{ eos_token }}")
    assert load(str(folder)).chat.render(messages) == "hi<|im_end|>"


def test_what_a_tokenizer_puts_before_a_text_is_its_beginning(save_tiny: SaveTiny) -> None:
    from tokenizers import Tokenizer, processors

    _, folder = save_tiny("llama")
    assert load(str(folder)).tokenizer.bos_id is None
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 256)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    model = load(str(folder))
    assert model.tokenizer.bos_id == 256
    assert 256 not in model.tokenizer.encode("text")


def test_a_fingerprint_follows_every_file_that_matters(save_tiny: SaveTiny) -> None:
    _, folder = save_tiny("llama")
    first = load(str(folder)).fingerprint
    (folder / "README.md").write_text("about")
    assert load(str(folder)).fingerprint == first
    (folder / "chat_template.jinja").write_text("x")
    assert load(str(folder)).fingerprint != first


def test_old_and_new_spellings_of_rope_agree() -> None:
    scaling = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    }
    old = LLAMA | {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **scaling}}
    new = LLAMA | {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **scaling}}
    assert config_from_hf(old) == config_from_hf(new)


def test_a_sliding_window_bounds_the_context() -> None:
    mistral = LLAMA | {"model_type": "mistral", "sliding_window": 1024}
    assert config_from_hf(mistral).context == 1024
    qwen = LLAMA | {"model_type": "qwen2", "sliding_window": 1024, "use_sliding_window": False}
    assert config_from_hf(qwen).context == 4096


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "mamba"}, "'mamba'"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, "'dynamic'"),
        ({"rope_scaling": {"type": "linear"}}, "incomplete"),
        ({"hidden_size": None}, "incomplete"),
    ],
)
def test_what_is_not_supported_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        config_from_hf(LLAMA | change)
