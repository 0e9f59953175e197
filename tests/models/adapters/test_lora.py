"""LoRA and the protocol of all adapters, held to dense formulas and to plain weights."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from shoal.core.errors import ConfigError, ModelError
from shoal.models.adapters.adapter import Adapter
from shoal.models.adapters.files import load, read, save
from shoal.models.adapters.registry import new
from shoal.models.adapters.sites import SEVEN, decoder_sites, from_hub, to_hub
from shoal.models.decoder import Decoder, DecoderConfig, causal_attend
from shoal.models.rope import Rope
from shoal.models.weights import layout

CONFIG = DecoderConfig(
    "llama",
    layers=3,
    hidden=24,
    heads=4,
    kv_heads=2,
    head_dim=8,
    intermediate=40,
    vocab=31,
    context=64,
    eps=1e-5,
    rope=Rope(1_000.0),
    tied_head=True,
)
IDS = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])


def weights(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    made = {}
    for name, tensor in layout(CONFIG).items():
        values = torch.randn(tensor.shape, generator=random) * 0.2
        made[name] = values + 1 if len(tensor.shape) == 1 else values.to(dtype)
    return made


def decoder(seed: int = 0, dtype: torch.dtype = torch.float32) -> Decoder:
    return Decoder(CONFIG, weights(seed, dtype))


def stirred(adapter: Adapter, seed: int = 1) -> Adapter:
    """The adapter as if it had learned something."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in adapter.tensors.values():
            tensor.add_(torch.randn(tensor.shape, generator=random) * 0.1)
    return adapter


def logits(model: Decoder, ids: torch.Tensor = IDS) -> torch.Tensor:
    return model.logits(model.forward(ids, torch.arange(len(ids)), causal_attend))


def with_deltas(adapter: Adapter) -> Decoder:
    """The model whose weights are W + ΔW, put together by hand from q, k, v and so on."""
    changed = {name: tensor.clone() for name, tensor in weights().items()}
    sizes = {site.name: site.outputs for site in decoder_sites(CONFIG).values()}
    for layer in range(CONFIG.layers):
        for matrix, parts in (
            ("qkv", ("q", "k", "v")), ("out", ("out",)),
            ("gate_up", ("gate", "up")), ("down", ("down",)),
        ):  # fmt: skip
            first = 0
            for part in parts:
                name = f"layers.{layer}.{part}"
                last = first + sizes[name]
                if name in adapter.sites:
                    A, B, scale = adapter.materialise(name)
                    changed[f"layers.{layer}.{matrix}"][first:last] += scale * (B @ A).detach()
                first = last
    return Decoder(CONFIG, changed)


def test_a_new_adapter_changes_nothing() -> None:
    model = decoder()
    bare = logits(model)
    new("lora", model, rank=4).attach(model)
    assert torch.equal(logits(model), bare)


def test_an_attached_adapter_computes_what_changed_weights_compute() -> None:
    model = decoder()
    bare = logits(model)
    adapter = stirred(new("lora", model, rank=4, alpha=8))
    adapter.attach(model)
    expected = logits(with_deltas(adapter))
    assert (expected - bare).abs().max() > 0.1
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)
    adapter.detach()
    assert torch.equal(logits(model), bare)


def test_a_fused_target_is_a_site_of_its_own() -> None:
    model = decoder()
    adapter = stirred(new("lora", model, rank=2, targets=["qkv", "gate_up"]))
    assert adapter.materialise("layers.0.qkv").B_OR.shape == (32 + 2 * 16, 2)
    dense = weights()
    for layer in range(3):
        for matrix in ("qkv", "gate_up"):
            dense[f"layers.{layer}.{matrix}"] += adapter.delta(f"layers.{layer}.{matrix}").detach()
    torch.testing.assert_close(logits(adapter.over(model)), logits(Decoder(CONFIG, dense)))


def test_looking_through_an_adapter_leaves_the_decoder_bare() -> None:
    model = decoder()
    bare = logits(model)
    adapter = stirred(new("lora", model, rank=4))
    seen = logits(adapter.over(model))
    assert not torch.equal(seen, bare)
    assert torch.equal(logits(model), bare)


def test_gradients_are_those_of_the_dense_formula() -> None:
    """dL/dA = s Bᵀ G xᵀ and dL/dB = s G (A x)ᵀ, summed over rows, with G the gradient of y."""
    linear = nn.Linear(6, 5, bias=False)
    adapter = stirred(new("lora", linear_model := nn.Sequential(linear), rank=3, targets=["0"]))
    adapter.attach(linear_model)
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(2))
    G = torch.randn(7, 5, generator=torch.Generator().manual_seed(3))
    (linear_model(x) * G).sum().backward()
    A, B, scale = adapter.materialise("0")
    torch.testing.assert_close(adapter.tensors["0.A"].grad, scale * B.T @ G.T @ x)
    torch.testing.assert_close(adapter.tensors["0.B"].grad, scale * G.T @ (x @ A.T))
    assert scale == pytest.approx(16 / 3)


def test_the_start_is_uniform_by_the_inputs_and_the_seed_alone() -> None:
    adapter = new("lora", decoder(), rank=4, seed=5)
    again = new("lora", decoder(9), rank=4, seed=5)
    other = new("lora", decoder(), rank=4, seed=6)
    A = adapter.tensors["layers.1.down.A"]
    assert torch.equal(A, again.tensors["layers.1.down.A"])
    assert not torch.equal(A, other.tensors["layers.1.down.A"])
    assert A.abs().max() <= 1 / math.sqrt(40)
    assert float(A.detach().std()) == pytest.approx(1 / math.sqrt(40) / math.sqrt(3), rel=0.1)
    assert not adapter.tensors["layers.1.down.B"].any()


def test_parameters_and_bytes_follow_from_the_shapes() -> None:
    adapter = new("lora", decoder(), rank=4)
    per_layer = (24 + 32) + 2 * (24 + 16) + (32 + 24) + 2 * (24 + 40) + (40 + 24)
    assert adapter.parameters == 3 * 4 * per_layer
    assert adapter.nbytes == adapter.assembled_bytes == 4 * adapter.parameters


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_and_back_restores_every_bit(dtype: torch.dtype) -> None:
    model = decoder(dtype=dtype)
    before = {name: tensor.clone() for name, tensor in model.weights.items()}
    bare = logits(model)
    adapter = stirred(new("lora", model, rank=4))
    adapter.attach(model)
    attached = logits(model)
    adapter.merge()
    tolerance = 1e-4 if dtype == torch.float32 else 0.3
    torch.testing.assert_close(logits(model), attached, atol=tolerance, rtol=0)
    with pytest.raises(ModelError, match="unmerge it first"):
        adapter.trainable()
    adapter.unmerge()
    assert torch.equal(logits(model), attached)
    adapter.detach()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.weights.items())
    assert torch.equal(logits(model), bare)


def test_merging_reaches_the_kernels_copies() -> None:
    model = Decoder(CONFIG, weights(dtype=torch.bfloat16), kernels="blocked")
    bare = logits(model)
    adapter = stirred(new("lora", model, rank=4))
    adapter.attach(model)
    adapter.merge()
    assert not torch.equal(logits(model), bare)
    adapter.detach()
    assert torch.equal(logits(model), bare)


def test_saving_and_loading_keeps_every_bit(tmp_path: Path) -> None:
    model = decoder()
    adapter = stirred(new("lora", model, rank=4, alpha=3, targets=["q_proj", "down"]))
    save(adapter, tmp_path / "one.safetensors")
    loaded = load(tmp_path / "one.safetensors", model)
    assert loaded.options == adapter.options
    assert all(torch.equal(loaded.tensors[name], t) for name, t in adapter.tensors.items())
    assert torch.equal(logits(loaded.over(model)), logits(adapter.over(model)))


def test_another_base_is_refused_unless_that_is_wanted(tmp_path: Path) -> None:
    save(stirred(new("lora", decoder(), rank=2)), tmp_path / "one.safetensors")
    with pytest.raises(ModelError, match="other weights"):
        load(tmp_path / "one.safetensors", decoder(seed=4))
    load(tmp_path / "one.safetensors", decoder(seed=4), any_base=True)
    narrow = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(ModelError, match=r"another base: it sits at layers\.0\.q"):
        load(tmp_path / "one.safetensors", narrow)


def test_a_base_is_the_same_in_every_number_format() -> None:
    one, other = new("lora", decoder()), new("lora", decoder(dtype=torch.bfloat16))
    assert one.base == other.base != new("lora", decoder(seed=1)).base


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "one.safetensors"
    save(new("lora", decoder(), rank=2), path)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shoal.models.adapters.files.save_file", full)
    with pytest.raises(ModelError, match="No space left"):
        save(stirred(new("lora", decoder(), rank=2)), path)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["one.safetensors"]


def test_a_file_that_is_no_adapter_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(ModelError, match="does not say what adapter"):
        read(tmp_path / "plain.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(ModelError, match="no adapter that can be read"):
        read(tmp_path / "torn.safetensors")


def test_what_a_model_lacks_is_said_with_what_it_has() -> None:
    with pytest.raises(ModelError, match=r"no linear map 'query'; it has down, gate, gate_up, k"):
        new("lora", decoder(), targets=["query"])
    with pytest.raises(ModelError, match=r"no nn\.Linear layers, only Embedding"):
        new("lora", nn.Embedding(3, 3))
    with pytest.raises(ConfigError, match="'q' and a fused map"):
        new("lora", decoder(), targets=["q", "qkv"])


def test_wrong_options_are_named() -> None:
    with pytest.raises(ConfigError, match=r"rank cannot be used: .*greater than or equal to 1"):
        new("lora", decoder(), rank=0)
    with pytest.raises(ConfigError, match=r"alfa cannot be used: there is no such option"):
        new("lora", decoder(), alfa=1)
    with pytest.raises(ConfigError, match=r"no kind of adapter 'lorra'.*Did you mean 'lora'"):
        new("lorra", decoder())


def test_two_adapters_cannot_be_attached_at_once() -> None:
    model = decoder()
    first, second = new("lora", model, rank=2), new("lora", model, rank=2)
    first.attach(model)
    with pytest.raises(ModelError, match="carries an adapter already"):
        second.attach(model)
    with pytest.raises(ModelError, match="attached already"):
        first.attach(decoder())
    with pytest.raises(ModelError, match="not attached"):
        second.merge()


def test_dropout_depends_on_its_seed_alone() -> None:
    model = decoder()
    adapter = stirred(new("lora", model, rank=4, dropout=0.5))
    seen = adapter.over(model)
    plain = logits(seen)
    with adapter.dropping(1):
        first = logits(seen)
    with adapter.dropping(1):
        again = logits(seen)
    with adapter.dropping(2):
        other = logits(seen)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, plain)
    assert torch.equal(logits(seen), plain)


def test_a_layer_that_shares_its_weight_is_not_merged_into() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(7, 5), "head": nn.Linear(5, 7, bias=False)})
    model["head"].weight = model["embed"].weight
    adapter = stirred(new("lora", model, rank=2, targets=["head"]))
    adapter.attach(model)
    x = torch.randn(2, 5, generator=torch.Generator().manual_seed(1))
    expected = x @ (model["embed"].weight + adapter.delta("head")).T
    torch.testing.assert_close(model["head"](x), expected)
    with pytest.raises(ModelError, match="shared with another layer"):
        adapter.merge()


def test_layers_that_end_alike_but_differ_in_size_are_kinds_of_their_own() -> None:
    first, second = (nn.ModuleDict({"proj": nn.Linear(*size)}) for size in ((4, 6), (6, 4)))
    model = nn.ModuleDict({"a": first, "b": second})
    adapter = new("lora", model, rank=2, targets=["proj[6x4]"])
    assert list(adapter.sites) == ["a.proj"]


@pytest.mark.parametrize("kind", SEVEN)
def test_names_translate_to_the_hubs_and_back(kind: str) -> None:
    name = f"layers.11.{kind}"
    assert from_hub(to_hub(name)) == name
    assert from_hub("model.lm_head") == "model.lm_head"
