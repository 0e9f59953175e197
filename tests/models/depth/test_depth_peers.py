"""What optipfair says and makes of the same model; skipped where it is not installed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from shoal.models.decoder import Decoder
from shoal.models.depth.arrange import arrange
from shoal.models.depth.influence import block_influence
from shoal.models.depth.plan import DepthPlan
from shoal.models.depth.stack import next_logits, run

optipfair = pytest.importorskip("optipfair")


def test_block_influence_is_optipfairs_importance(
    small_folder: Path, decoder: Decoder, ids_NS: torch.Tensor
) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(small_folder)
    batches = [{"input_ids": ids_NS[:4], "attention_mask": torch.ones_like(ids_NS[:4])}]
    scores = optipfair.analyze_layer_importance(theirs, batches, show_progress=False)
    found = block_influence(decoder, ids_NS[:4])
    assert [scores[index] for index in range(6)] == pytest.approx(found.tolist(), abs=1e-4)


def test_a_plan_without_blocks_is_optipfairs_pruned_model(
    small_folder: Path, decoder: Decoder, ids_NS: torch.Tensor
) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(small_folder)
    pruned = optipfair.prune_model_depth(theirs, layer_indices=[2, 4], show_progress=False)
    with torch.inference_mode():
        expected = pruned(ids_NS[:2], use_cache=False).logits[:, :-1].reshape(-1, 258)
        short = arrange(decoder, DepthPlan.whole(6).without([2, 4]))
        x_TD, _ = run(short, ids_NS[:2])
        found = next_logits(short, x_TD, (2, ids_NS.shape[1]))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
