"""Folding: pairs are chosen by what they measure, and never across kinds."""

from __future__ import annotations

import pytest
import torch

from shoal.core.errors import ConfigError
from shoal.models.decoder import Decoder
from shoal.models.depth.arrange import arrange
from shoal.models.depth.fold import fold
from shoal.models.depth.plan import DepthPlan
from shoal.models.depth.stack import row_losses


def test_the_first_merge_is_the_best_of_all_single_ones(
    decoder: Decoder, ids_NS: torch.Tensor
) -> None:
    rows = ids_NS[:5]
    whole = DepthPlan.whole(6)
    found = fold(decoder, whole, 1, rows)
    by_hand = {
        left: float(row_losses(arrange(decoder, whole.merged(left, left)), rows).mean())
        for left in range(1, 4)  # the first and the last block stay single
    }
    assert {trial.left: trial.loss for trial in found.tried[0]} == pytest.approx(by_hand, abs=1e-4)
    best = min(by_hand, key=by_hand.__getitem__)
    assert found.merges[0].left == best
    assert found.plan == whole.merged(best, best)


def test_later_merges_are_measured_on_top_of_earlier_ones(
    decoder: Decoder, ids_NS: torch.Tensor
) -> None:
    rows = ids_NS[:4]
    found = fold(decoder, DepthPlan.whole(6), 2, rows)
    assert len(found.plan.stored) == 4
    assert found.plan.kept == tuple(range(6))
    measured = float(row_losses(arrange(decoder, found.plan), rows).mean())
    assert found.merges[1].loss == pytest.approx(measured, abs=1e-4)


def test_either_parent_is_at_least_as_good_as_the_first(
    decoder: Decoder, ids_NS: torch.Tensor
) -> None:
    whole, rows = DepthPlan.whole(6), ids_NS[:4]
    first = fold(decoder, whole, 1, rows).merges[0]
    either = fold(decoder, whole, 1, rows, parents="either").merges[0]
    assert either.loss <= first.loss + 1e-6
    assert either.block in (either.left, either.right)


def test_a_removed_block_between_two_makes_them_neighbours(
    decoder: Decoder, ids_NS: torch.Tensor
) -> None:
    plan = DepthPlan.whole(6).without([3])
    tried = fold(decoder, plan, 1, ids_NS[:2]).tried[0]
    assert {(trial.left, trial.right) for trial in tried} == {(1, 2), (2, 4)}


def test_pairs_of_different_kinds_are_not_tried(decoder: Decoder, ids_NS: torch.Tensor) -> None:
    weights = dict(decoder.weights)
    weights["layers.3.gate_up"] = torch.zeros(2 * 64, 48)
    weights["layers.3.down"] = torch.zeros(48, 64)
    odd = Decoder(decoder.config, weights)
    tried = fold(odd, DepthPlan.whole(6), 1, ids_NS[:2]).tried[0]
    assert {(trial.left, trial.right) for trial in tried} == {(1, 2)}
    with pytest.raises(ConfigError, match="Only 1 of 2 blocks can be folded away"):
        fold(odd, DepthPlan.whole(6), 2, ids_NS[:2])


def test_measured_removal_takes_the_best_block_each_time(
    decoder: Decoder, ids_NS: torch.Tensor
) -> None:
    from shoal.models.depth.remove import remove_measured

    rows, plan, expected = ids_NS[:4], DepthPlan.whole(6), []
    for _ in range(2):
        losses = {
            index: float(row_losses(arrange(decoder, plan.without([index])), rows).mean())
            for index in plan.kept[1:-1]
        }
        best = min(losses, key=losses.__getitem__)
        expected.append(best)
        plan = plan.without([best])
    assert remove_measured(decoder, 2, rows, protect=(0, 5)) == expected
