"""MoS held to loops in plain Python, to LoRA where both are the same, and to its own rules."""

from __future__ import annotations

import json
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from safetensors import safe_open
from safetensors.torch import save_file
from test_lora import CONFIG, decoder, logits, stirred
from torch import nn

from shoal.core.errors import ConfigError, ModelError
from shoal.models.adapters.adapter import Adapter
from shoal.models.adapters.files import KEY, load, save
from shoal.models.adapters.mos import MoS, MoSOptions, index_table
from shoal.models.adapters.registry import new


def mos(**options: object) -> MoS:
    made = new("mos", decoder(), **options)
    assert isinstance(made, MoS)
    return made


def by_hand(adapter: MoS, site: str, half: str) -> list[list[float]]:
    """The r x d matrix of one factor, shard by shard."""
    pool = adapter.tensors[f"{adapter.sites[site].kind}.{half}"].tolist()
    table = adapter.table(site, half).tolist()  # type: ignore[arg-type]
    l = adapter.options.l  # noqa: E741
    rows = []
    for j in range(adapter.options.r):
        row: list[float] = []
        for s in range(l):
            row += pool[table[j * l + s]]
        rows.append(row)
    return rows


@pytest.mark.parametrize("options", [{"e": 2, "r": 4, "p": 1, "l": 4}, {"e": 2, "r": 3, "p": 0}])
def test_factors_are_shards_side_by_side(options: dict[str, int]) -> None:
    adapter = mos(**options)
    stirred(adapter)
    for site in ("layers.0.q", "layers.2.v", "layers.1.down"):
        A, B, scale = adapter.materialise(site)
        assert A.tolist() == by_hand(adapter, site, "A")
        assert B.T.tolist() == by_hand(adapter, site, "B")
        assert scale == 16 / options["r"]


def test_the_worked_layout_of_thirty_layers() -> None:
    """L=30, e=2, r=8, p=1, l=4: 240 shards, 120 public, 28 + 4 of them a layer's."""
    options = MoSOptions(e=2, r=8, p=1, l=4)
    tables = [index_table(options, "q", k, 30, "A") for k in range(30)]
    for k, table in enumerate(tables):
        assert len(table) == 32
        assert len(set(table[:28])) == 28 and table[:28].max() < 120
        assert table[28:].tolist() == [120 + 4 * k + s for s in range(4)]


@settings(max_examples=60)
@given(
    e=st.integers(1, 6), p=st.integers(0, 6), extra=st.integers(0, 12), l=st.integers(1, 6),
    layers=st.integers(1, 9), seed=st.integers(0, 2**40),
)  # fmt: skip
def test_index_tables_keep_their_rules(
    e: int,
    p: int,
    extra: int,
    l: int,  # noqa: E741
    layers: int,
    seed: int,
) -> None:
    p = min(p, e)
    r = e if p == e else p + min(extra, (e - p) * layers)
    if r < 1:
        return
    options = MoSOptions(e=e, r=r, p=p, l=l, seed=seed)
    public, owners = (e - p) * layers * l, list[int]()
    for k in range(layers):
        for half in ("A", "B"):
            table = index_table(options, "up", k, layers, half).tolist()  # type: ignore[arg-type]
            assert len(table) == len(set(table)) == r * l
            assert all(0 <= row < e * layers * l for row in table)
            own = [row for row in table if row >= public]
            assert len(own) == p * l
            owners += own if half == "A" else []
    assert len(owners) == len(set(owners)) == p * layers * l
    assert (
        index_table(options, "up", 0, layers, "A").tolist()
        == index_table(options, "up", 0, layers, "A").tolist()
    )


def test_the_same_seed_gives_these_tables_on_every_machine() -> None:
    options = MoSOptions(e=2, r=4, p=1, l=2, seed=7)
    assert index_table(options, "q", 1, 4, "A").tolist() == TABLE_A
    assert index_table(options, "q", 1, 4, "B").tolist() == TABLE_B


TABLE_A = [6, 7, 5, 1, 4, 3, 10, 11]
TABLE_B = [1, 7, 6, 4, 2, 0, 10, 11]


def test_a_and_b_have_tables_of_their_own_unless_that_is_turned_off() -> None:
    apart, together = mos(e=2, r=4, p=1, l=4), mos(e=2, r=4, p=1, l=4, dissociated=False)
    for site in apart.sites:
        assert not torch.equal(apart.table(site, "A"), apart.table(site, "B"))
        assert torch.equal(together.table(site, "A"), together.table(site, "B"))


def test_all_private_is_lora_with_the_same_gradients() -> None:
    shards, plain = mos(e=3, r=3, p=3, l=1), new("lora", decoder(), rank=3)
    assert shards.parameters == plain.parameters
    stirred(plain)
    with torch.no_grad():
        for kind in ("q", "k", "v", "out", "gate", "up", "down"):
            names = [f"layers.{k}.{kind}" for k in range(3)]
            shards.tensors[f"{kind}.A"].copy_(torch.cat([plain.tensors[f"{n}.A"] for n in names]))
            rows = [plain.tensors[f"{n}.B"].T for n in names]
            shards.tensors[f"{kind}.B"].copy_(torch.cat(rows))
    model = decoder()
    for adapter in (shards, plain):
        logits(adapter.over(model)).square().sum().backward()
    for kind in ("q", "v", "down"):
        names = [f"layers.{k}.{kind}" for k in range(3)]
        for half, turn in (("A", False), ("B", True)):
            ours = shards.tensors[f"{kind}.{half}"].grad
            theirs = [plain.tensors[f"{n}.{half}"].grad for n in names]
            dense = torch.cat([g.T if turn else g for g in theirs])  # type: ignore[union-attr]
            torch.testing.assert_close(ours, dense, atol=1e-4, rtol=1e-5)


def test_cutting_vectors_changes_nothing_where_pieces_stay_in_order() -> None:
    """With all shards private and in their own order, l only changes how the pool is stored."""
    whole, cut = mos(e=2, r=2, p=2, l=1), mos(e=2, r=2, p=2, l=8)
    stirred(whole)
    with torch.no_grad():
        for name, tensor in cut.tensors.items():
            tensor.copy_(whole.tensors[name].view(tensor.shape))
    for site in whole.sites:
        assert torch.equal(whole.delta(site), cut.delta(site))


def test_a_shards_gradient_is_the_sum_over_the_layers_that_use_it() -> None:
    adapter = mos(e=2, r=5, p=0, l=2, targets=["v"])
    stirred(adapter)
    dense = {}
    expected = torch.zeros_like(adapter.tensors["v.A"])
    for k in range(3):
        site = f"layers.{k}.v"
        A = adapter.materialise(site).A_RI.detach().requires_grad_()
        B = adapter.materialise(site).B_OR.detach()
        (B @ A).square().sum().backward()
        dense[site] = A.grad
        shards = A.grad.reshape(-1, 12)  # type: ignore[union-attr]
        for row, shard in zip(adapter.table(site, "A").tolist(), shards, strict=True):
            expected[row] += shard
    loss = torch.zeros(())
    for site in adapter.sites:
        A, B, _ = adapter.materialise(site)
        loss = loss + (B.detach() @ A).square().sum()
    loss.backward()
    torch.testing.assert_close(adapter.tensors["v.A"].grad, expected)
    used = torch.bincount(torch.cat([adapter.table(s, "A") for s in adapter.sites]), minlength=12)
    assert used.max() > 1


def test_pure_sharing_gives_all_layers_one_update() -> None:
    adapter = mos(e=2, r=6, p=0, l=1, dissociated=False)
    stirred(adapter)
    first = adapter.delta("layers.0.up")
    assert torch.linalg.matrix_rank(first) == 6
    for k in (1, 2):
        torch.testing.assert_close(adapter.delta(f"layers.{k}.up"), first)


def test_mos_tells_layers_apart() -> None:
    adapter = mos(e=2, r=4, p=1, l=4)
    stirred(adapter)
    assert not torch.allclose(adapter.delta("layers.0.up"), adapter.delta("layers.1.up"), atol=0.01)


def test_the_start_uses_the_fan_of_the_whole_vector() -> None:
    A = mos(e=2, r=4, p=1, l=4).tensors["down.A"].detach()
    assert A.shape == (2 * 3 * 4, 10)
    assert 0.9 / 40**0.5 < A.abs().max() <= 1 / 40**0.5
    assert not mos(e=2, r=4).tensors["down.B"].any()


@pytest.mark.parametrize("e", [1, 2])
def test_parameters_are_those_of_lora_of_rank_e(e: int) -> None:
    adapter = mos(e=e, r=3, p=0, l=8)
    assert adapter.parameters == new("lora", decoder(), rank=e).parameters
    assert adapter.nbytes == 4 * adapter.parameters
    assert adapter.assembled_bytes == 3 * adapter.nbytes // e


def test_keys_and_values_are_smaller_and_have_pools_of_their_size() -> None:
    adapter = mos(e=2, r=4, p=1, l=4)
    assert CONFIG.kv_heads < CONFIG.heads
    assert adapter.tensors["k.B"].shape == (24, 4)
    assert adapter.tensors["q.B"].shape == (24, 8)
    fused = mos(e=2, r=4, p=1, l=4, targets=["qkv"])
    assert fused.tensors["qkv.B"].shape == (24, 16)


def test_any_module_with_linear_layers_will_do() -> None:
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    model = nn.ModuleDict({str(k): nn.ModuleDict({"fc": model[k]}) for k in range(4)})
    adapter = stirred(new("mos", model, e=1, r=2, p=0, l=2, targets=["fc"]))
    assert adapter.tensors["fc.A"].shape == (8, 4)
    x = torch.ones(1, 8)
    bare = model["2"]["fc"](x)
    adapter.attach(model)
    torch.testing.assert_close(model["2"]["fc"](x), bare + x @ adapter.delta("2.fc").T)


def test_merging_agrees_and_is_undone() -> None:
    model, adapter = decoder(), mos(e=2, r=4, p=1, l=4)
    stirred(adapter)
    bare = logits(model)
    adapter.attach(model)
    attached = logits(model)
    adapter.merge()
    torch.testing.assert_close(logits(model), attached, atol=1e-4, rtol=0)
    adapter.detach()
    assert torch.equal(logits(model), bare)


def test_a_file_holds_pools_and_no_tables(tmp_path: Path) -> None:
    adapter = mos(e=2, r=4, p=1, l=4, seed=3)
    stirred(adapter)
    save(adapter, path := tmp_path / "one.safetensors")
    assert path.stat().st_size < adapter.nbytes + 6_000
    loaded = load(path, decoder())
    assert all(torch.equal(loaded.delta(site), adapter.delta(site)) for site in adapter.sites)


def rewritten(path: Path, **changes: object) -> None:
    """Change what a file says about its adapter."""
    with safe_open(path, framework="pt") as opened:
        card = json.loads(opened.metadata()[KEY])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    card["options"] |= changes
    save_file(tensors, path, metadata={KEY: json.dumps(card)})


def test_another_seed_in_the_file_is_refused_and_the_file_stays(tmp_path: Path) -> None:
    save(mos(e=2, r=4, p=1, l=4, seed=3), path := tmp_path / "one.safetensors")
    rewritten(path, seed=4)
    before = path.read_bytes()
    with pytest.raises(ModelError, match="index tables that its seed 4 does not give"):
        load(path, decoder())
    assert path.read_bytes() == before


def test_another_size_in_the_file_is_refused(tmp_path: Path) -> None:
    save(new("lora", decoder(), rank=2), path := tmp_path / "one.safetensors")
    rewritten(path, rank=3)
    with pytest.raises(ModelError, match=r"has layers\.0\.down\.A of \(2, 40\), but its options"):
        load(path, decoder())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"l": 5},
            "24 inputs and 32 outputs of 'q' cannot be cut into l = 5 .* take l of 1, 2, 4, 8.",
        ),
        ({"p": 3}, "p = 3 is more than the budget e = 2: p <= e"),
        ({"r": 1, "p": 2, "e": 3}, "r = 1 is less than the private p = 2: r >= p"),
        ({"r": 5, "p": 1}, r"r - p = 4 public vectors, but 'q' has .* = 3: r - p <= \(e - p\) L"),
        ({"p": 2, "r": 3}, "With p = e = 2 nothing is public, so the rank in use must be 2"),
        ({"e": 0}, "e cannot be used"),
        ({"l": 0}, "l cannot be used"),
        ({"targets": []}, "targets cannot be used"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        mos(**({"e": 2, "r": 4, "p": 1, "l": 4} | options))


def test_gradients_that_are_no_numbers_are_skipped_and_counted() -> None:
    from shoal.training.optimiser import Optimiser, OptimiserOptions

    adapter: Adapter = mos(e=2, r=4, p=1, l=4)
    optimiser = Optimiser(adapter.trainable(), OptimiserOptions(lr=0.1))
    before = adapter.tensors["q.A"].detach().clone()
    (adapter.tensors["q.A"].sum() * torch.nan).backward()
    assert optimiser.step()["skipped_steps"] == 1.0
    assert torch.equal(adapter.tensors["q.A"], before) and optimiser.skipped == 1
