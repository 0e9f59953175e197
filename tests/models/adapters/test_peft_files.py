"""Adapters written for others and read from them, held to transformers and, if there, to PEFT."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_lora import CONFIG, decoder, stirred

from shoal.core.errors import ModelError
from shoal.models.adapters.adapter import Adapter
from shoal.models.adapters.gguf import export_gguf
from shoal.models.adapters.peft import CONFIG as CONFIG_FILE
from shoal.models.adapters.peft import WEIGHTS, export_peft, load_peft
from shoal.models.adapters.registry import new
from shoal.models.decoder import Decoder, causal_attend
from shoal.models.folder import ModelFolder
from shoal.models.gguf import _unpermuted

IDS = torch.tensor([[5, 80, 3, 97, 12, 44]])

KINDS = [
    ("lora", {"rank": 3, "alpha": 5}),
    ("lora", {"rank": 4, "rooted": True, "targets": ["q", "v"]}),
    ("lora", {"rank": 2, "targets": ["qkv", "gate_up"]}),
    ("mos", {"e": 2, "r": 4, "p": 1, "l": 4}),
]


def logits(model: Decoder) -> torch.Tensor:
    ids = IDS[0]
    return model.logits(model.forward(ids, torch.arange(len(ids)), causal_attend))


@pytest.fixture
def tiny(save_tiny: Callable[..., Any]) -> tuple[Any, Decoder]:
    """A random Llama as transformers has it, and as we have it."""
    reference, path = save_tiny("llama")
    folder = ModelFolder(path)
    config = folder.describe().config
    return reference, Decoder(config, dict(folder.weights(config, torch.float32)))


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_what_is_exported_gives_the_same_logits_in_transformers(
    kind: str, options: dict[str, Any], tiny: tuple[Any, Decoder], tmp_path: Path
) -> None:
    reference, model = tiny
    adapter = stirred(new(kind, model, **options))
    export_peft(adapter, tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    tensors = load_file(tmp_path / WEIGHTS)
    weights = dict(reference.named_parameters())
    with torch.no_grad():
        for key, A in tensors.items():
            if ".lora_A." in key:
                B = tensors[key.replace("lora_A", "lora_B")]
                name = key.removeprefix("base_model.model.").replace(".lora_A", "")
                weights[name] += config["lora_alpha"] / config["r"] * (B @ A)
        expected = reference(IDS).logits[0]
        torch.testing.assert_close(logits(adapter.over(model)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_what_is_exported_is_read_back(
    kind: str, options: dict[str, Any], tiny: tuple[Any, Decoder], tmp_path: Path
) -> None:
    _, model = tiny
    adapter = stirred(new(kind, model, **options))
    export_peft(adapter, tmp_path)
    again = load_peft(tmp_path, model)
    assert again.kind == "lora"
    torch.testing.assert_close(logits(again.over(model)), logits(adapter.over(model)))


def test_peft_loads_and_merges_what_is_exported(tiny: tuple[Any, Decoder], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    reference, model = tiny
    adapter = stirred(new("mos", model, e=2, r=4, p=1, l=4))
    export_peft(adapter, tmp_path)
    ours = logits(adapter.over(model)).detach()
    theirs = peft.PeftModel.from_pretrained(reference, str(tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits[0], ours, atol=1e-5, rtol=1e-5)
        merged = theirs.merge_and_unload()
        torch.testing.assert_close(merged(IDS).logits[0], ours, atol=1e-4, rtol=1e-4)


def test_gradients_are_those_of_peft(tiny: tuple[Any, Decoder], tmp_path: Path) -> None:
    """With p = e = r and the same beginning, MoS has LoRA's gradients as PEFT computes them."""
    peft = pytest.importorskip("peft")
    reference, model = tiny
    adapter = stirred(new("mos", model, e=2, r=2, p=2, l=1, targets=["v", "down"]))
    export_peft(adapter, tmp_path)
    theirs = peft.PeftModel.from_pretrained(reference, str(tmp_path), is_trainable=True)
    target = torch.randn(6, 258, generator=torch.Generator().manual_seed(1)) / 258
    (theirs(IDS).logits[0] * target).sum().backward()
    (logits(adapter.over(model)) * target).sum().backward()
    found = dict(theirs.named_parameters())
    for kind, place in (("v", "self_attn.v_proj"), ("down", "mlp.down_proj")):
        for half in ("A", "B"):
            dense = [
                found[f"base_model.model.model.layers.{k}.{place}.lora_{half}.default.weight"].grad
                for k in range(3)
            ]
            expected = torch.cat([g if half == "A" else g.T for g in dense])
            ours = adapter.tensors[f"{kind}.{half}"].grad
            torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-4)


def test_an_adapter_that_peft_made_is_read_with_its_patterns(
    tiny: tuple[Any, Decoder], tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    reference, model = tiny
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["q_proj", "down_proj"],
        rank_pattern={"layers.1.self_attn.q_proj": 2},
        alpha_pattern={"down_proj": 9},
        init_lora_weights=False,
    )
    theirs = peft.get_peft_model(reference, config)
    theirs.save_pretrained(tmp_path)
    adapter = load_peft(tmp_path, model)
    assert adapter.rank("layers.1.q") == 2
    with torch.no_grad():
        torch.testing.assert_close(
            logits(adapter.over(model)), theirs(IDS).logits[0], atol=1e-5, rtol=1e-5
        )


def test_an_adapter_trained_on_transformers_runs_in_our_decoder(tiny: tuple[Any, Decoder]) -> None:
    reference, model = tiny
    adapter = stirred(new("mos", reference, e=2, r=4, p=1, l=4, targets=["q_proj", "up_proj"]))
    adapter.attach(reference)
    with torch.no_grad():
        expected = reference(IDS).logits[0]
    adapter.detach()
    assert next(iter(adapter.sites)) == "layers.0.q"
    torch.testing.assert_close(logits(adapter.over(model)), expected, atol=1e-5, rtol=1e-5)


def small(tmp_path: Path, **changes: Any) -> Path:
    adapter: Adapter = stirred(new("lora", decoder(), rank=2, targets=["q"]))
    export_peft(adapter, tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text()) | changes
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "VERA"}, "no plain LoRA .peft_type VERA."),
        ({"use_dora": True}, "no plain LoRA .use_dora."),
        ({"bias": "all"}, "no plain LoRA .bias."),
        ({"r": "many"}, "cannot be read: r: "),
    ],
)
def test_what_is_no_plain_lora_is_refused(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=said):
        load_peft(small(tmp_path, **changes), decoder())


def test_pickles_and_parts_of_adapters_are_refused(tmp_path: Path) -> None:
    folder = small(tmp_path)
    tensors = load_file(folder / WEIGHTS)
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file({f"{name}.lora_A.weight": torch.zeros(2, 24)}, folder / WEIGHTS)
    with pytest.raises(ModelError, match=r"only one half of the update of layers\.0\.q"):
        load_peft(folder, decoder())
    save_file(tensors | {f"{name}.lora_magnitude_vector": torch.zeros(2)}, folder / WEIGHTS)
    with pytest.raises(ModelError, match="no part of a plain LoRA"):
        load_peft(folder, decoder())
    wrong = {key: torch.zeros(2, 7) if "_A" in key else t for key, t in tensors.items()}
    save_file(wrong, folder / WEIGHTS)
    with pytest.raises(ModelError, match="does not fit the model: it is of another base"):
        load_peft(folder, decoder())
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(ModelError, match="only as a pickle"):
        load_peft(folder, decoder())


@pytest.mark.parametrize(("kind", "options"), KINDS[:1] + KINDS[2:])
def test_a_gguf_adapter_has_llama_cpps_names_shapes_and_order(
    kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    adapter = stirred(new(kind, decoder(), **options))
    export_gguf(adapter, path := tmp_path / "one.gguf", CONFIG)
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.type"].contents() == "adapter"
    assert reader.fields["adapter.type"].contents() == "lora"
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    alpha = reader.fields["adapter.lora.alpha"].contents()
    for ours, theirs, kind_ in (("q", "attn_q", "qkv"), ("gate", "ffn_gate", "gate_up")):
        A = torch.from_numpy(np.array(tensors[f"blk.1.{theirs}.weight.lora_a"].data))
        B = torch.from_numpy(np.array(tensors[f"blk.1.{theirs}.weight.lora_b"].data))
        assert A.shape == (int(alpha), 24)
        delta = B @ A
        if ours == "q":
            delta = _unpermuted(delta, CONFIG.head_dim)
        site = f"layers.1.{ours}"
        whole = site if site in adapter.sites else f"layers.1.{kind_}"
        torch.testing.assert_close(delta, adapter.delta(whole).detach()[: len(delta)])
