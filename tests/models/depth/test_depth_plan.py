"""Depth plans: what they may say, and that executing one copies nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.errors import ConfigError
from shoal.core.records import from_json, to_json
from shoal.models.decoder import Decoder, causal_attend
from shoal.models.depth.arrange import arrange, planned
from shoal.models.depth.footprint import footprint
from shoal.models.depth.plan import DepthPlan, Step, check_shares
from shoal.models.depth.stack import language_loss, next_logits, run
from shoal.models.loading import Model, load


def folded(layers: int, *pairs: tuple[int, int]) -> DepthPlan:
    plan = DepthPlan.whole(layers)
    for left, _ in pairs:
        place = next(i for i, group in enumerate(plan.groups) if group[0].origin == left)
        plan = plan.merged(place, left)
    return plan


def test_a_plan_says_what_is_removed_stored_and_shared() -> None:
    plan = folded(6, (2, 3)).without([4])
    assert plan.kept == (0, 1, 2, 3, 5)
    assert plan.removed == (4,)
    assert plan.stored == (0, 1, 2, 5)
    assert plan.folded == (2, 3)
    assert str(plan) == "0 1 2=3 5"


@given(st.data())
def test_steps_always_stay_in_order_and_groups_share_one_of_their_own(data: st.DataObject) -> None:
    layers = data.draw(st.integers(4, 12))
    plan = DepthPlan.whole(layers)
    for _ in range(data.draw(st.integers(0, layers - 3))):
        left = data.draw(st.integers(0, len(plan.groups) - 2))
        either = (plan.groups[left][0].block, plan.groups[left + 1][0].block)
        plan = plan.merged(left, data.draw(st.sampled_from(either)))
    assert plan.kept == tuple(range(layers))
    assert all(group[0].block in {s.origin for s in group} for group in plan.groups)
    assert len(plan.stored) + sum(len(g) - 1 for g in plan.groups) == layers
    assert from_json(DepthPlan, to_json(plan)) == plan
    assert from_json(DepthPlan, to_json(plan)).key == plan.key


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ((Step(0, 0), Step(7, 1), Step(2, 2)), "names block 7"),
        ((Step(0, 0), Step(2, 2), Step(1, 1)), "keeps the order"),
        ((Step(0, 0), Step(1, 1), Step(1, 1)), "no place twice"),
        ((Step(0, 0), Step(3, 1), Step(2, 2)), "one of its own members"),
        ((Step(0, 0), Step(0, 1)), "at least 2 blocks"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(steps: tuple[Step, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        DepthPlan(4, steps)


@pytest.mark.parametrize(
    ("remove", "fold", "said"),
    [
        (1.0, 0, r"remove must lie in \[0, 1\), not at 1: for 30 blocks give 0 to 0.933"),
        (-0.1, 0, "remove must lie in"),
        (0, 1.5, "fold must lie in"),
        (0.5, 0.48, "leaves 1: together they may be at most 0.933"),
    ],
)
def test_shares_that_leave_too_little_are_refused_with_the_range(
    remove: float, fold: float, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        check_shares(30, remove, fold)


def test_shares_are_rounded_to_blocks() -> None:
    assert check_shares(30, 0.1, 0.2) == (3, 6)
    assert check_shares(30, 0, 0) == (0, 0)


def test_the_whole_plan_gives_the_bases_logits_bit_for_bit(
    decoder: Decoder, ids_NS: torch.Tensor
) -> None:
    same = arrange(decoder, DepthPlan.whole(6))
    ids = ids_NS[0]
    for each in (same, decoder):
        assert each.config.layers == 6
    expected = decoder.logits(decoder.forward(ids, torch.arange(len(ids)), causal_attend))
    found = same.logits(same.forward(ids, torch.arange(len(ids)), causal_attend))
    assert torch.equal(found, expected)


def test_a_removed_block_is_one_whose_gate_is_closed(
    decoder: Decoder, ids_NS: torch.Tensor
) -> None:
    gates = torch.tensor([1.0, 1, 0, 1, 1, 1])
    soft = language_loss(decoder, ids_NS[:4], gates_N=gates)
    hard = language_loss(arrange(decoder, DepthPlan.whole(6).without([2])), ids_NS[:4])
    assert hard.item() == pytest.approx(soft.item(), abs=1e-5)


def test_folded_blocks_keep_their_own_norms(decoder: Decoder, ids_NS: torch.Tensor) -> None:
    plan = folded(6, (2, 3))
    by_hand = {name: tensor.clone() for name, tensor in decoder.weights.items()}
    for part in ("qkv", "out", "gate_up", "down"):
        by_hand[f"layers.3.{part}"] = by_hand[f"layers.2.{part}"]
    expected, _ = run(Decoder(decoder.config, by_hand), ids_NS[:2])
    found, _ = run(arrange(decoder, plan), ids_NS[:2])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    weights = arrange(decoder, plan).weights
    assert weights["layers.3.attn_norm"].data_ptr() == decoder.weights[
        "layers.3.attn_norm"
    ].data_ptr() != weights["layers.2.attn_norm"].data_ptr()  # fmt: skip


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "packed"])
def test_plans_share_every_byte_with_their_base_in_every_layout(
    small_folder: object, dtype: str
) -> None:
    model = load(str(small_folder), dtype=dtype)
    plans = [folded(6, (2, 3)), DepthPlan.whole(6).without([1, 4]), DepthPlan.whole(6)]
    known = {tensor.data_ptr() for tensor in model.decoder.weights.values()}
    for plan in plans:
        decoder = planned(model, plan).decoder
        assert {tensor.data_ptr() for tensor in decoder.weights.values()} <= known
        for own, base in zip(decoder._matrices, model.decoder._matrices, strict=True):
            assert own.rows == base.rows
            for step, layer in zip(plan.steps, own.layers, strict=True):
                assert layer.qkv is base.layers[step.block].qkv
                assert layer.down is base.layers[step.block].down


def test_bytes_are_counted_once_however_often_a_block_runs(decoder: Decoder) -> None:
    whole = footprint(decoder)
    block = whole.blocks // 6
    plan = folded(6, (2, 3)).without([5])
    found = footprint(arrange(decoder, plan))
    norms = 2 * 48 * 4
    assert found.blocks == 4 * block + norms  # blocks 0, 1, 2, 4 and the norms of 3
    assert found.others == whole.others


def test_a_plan_of_another_number_of_blocks_is_refused(small: Model) -> None:
    with pytest.raises(ConfigError, match="for a base of 7 blocks, this model has 6"):
        planned(small, DepthPlan.whole(7))


def test_blocks_that_differ_in_shape_are_named(decoder: Decoder) -> None:
    weights = dict(decoder.weights)
    weights["layers.3.gate_up"] = torch.zeros(2 * 64, 48)
    weights["layers.3.down"] = torch.zeros(48, 64)
    odd = Decoder(decoder.config, weights)
    with pytest.raises(ConfigError, match="Blocks 2 and 3 cannot share weights"):
        arrange(odd, folded(6, (2, 3)))
    with torch.no_grad():  # blocks of two sizes run side by side all the same
        run(arrange(odd, folded(6, (1, 2))), torch.zeros(1, 5, dtype=torch.long))


def test_scores_are_of_the_tokens_that_follow(decoder: Decoder, ids_NS: torch.Tensor) -> None:
    ids_BS = ids_NS[:3]
    x_TD, _ = run(decoder, ids_BS)
    scores = next_logits(decoder, x_TD, (3, ids_BS.shape[1])).view(3, -1, 258)
    alone = decoder.logits(decoder.forward(ids_BS[1], torch.arange(ids_BS.shape[1]), causal_attend))
    torch.testing.assert_close(scores[1], alone[:-1], rtol=0, atol=1e-4)
