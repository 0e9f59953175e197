"""The cure: what it learns, what it leaves alone, and that it can be stopped at any time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from shoal.core.errors import InputError, ModelError
from shoal.models.decoder import Decoder
from shoal.models.depth.arrange import arrange
from shoal.models.depth.cure import Cure, CureOptions
from shoal.models.depth.plan import DepthPlan
from shoal.models.depth.stack import next_logits, row_losses, run
from shoal.models.depth.teacher import Lesson, Teacher, divergence, relative_error
from shoal.models.loading import load

PLAN = DepthPlan.whole(6).without([3]).merged(1, 1)  # 0 1=2 4 5
OPTIONS = CureOptions(tokens=48 * 48, batch=4, rank=4)


def test_the_divergence_of_all_tokens_is_kl() -> None:
    random = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 7, 9, generator=random).unbind()
    top = F.log_softmax(teacher / 2, -1).topk(8, -1)
    found = divergence(Lesson(top.indices, top.values, {}), student, 2.0)
    # With one token left the bin of the rest is that token: nothing is lost.
    p, q = F.log_softmax(teacher / 2, -1), F.log_softmax(student / 2, -1)
    assert found.item() == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), abs=1e-6)
    fewer = Lesson(top.indices[:, :3], top.values[:, :3], {})
    assert 0 < divergence(fewer, student, 2.0).item() < found.item()
    assert divergence(fewer, teacher, 2.0).item() == pytest.approx(0, abs=1e-6)


def test_the_tail_is_compared_with_the_same_place_of_the_original(
    decoder: Decoder, ids_NS: torch.Tensor
) -> None:
    cure = Cure(decoder, PLAN, ids_NS, OPTIONS)
    told = cure.step()
    ids_BS = ids_NS[cure._batches[0]]
    _, student = run(arrange(decoder, PLAN), ids_BS, keep=range(5))
    _, teacher = run(decoder, ids_BS, keep=range(6))
    expected = 0.0
    for place, origin in ((2, 2), (3, 4)):
        lost = (student[place] - teacher[origin]).square().sum(-1)
        expected += (lost / teacher[origin].square().sum(-1)).mean().item()
    last, original = decoder.finish(student[4]), decoder.finish(teacher[5])
    expected += relative_error(last, original).item()
    assert told.tail == pytest.approx(expected, rel=0.02)  # lessons are kept in bf16


def test_a_cure_brings_the_loss_down_and_leaves_the_base_alone(
    decoder: Decoder, ids_NS: torch.Tensor
) -> None:
    before = {name: tensor.clone() for name, tensor in decoder.weights.items()}
    worse = float(row_losses(arrange(decoder, PLAN), ids_NS[20:]).mean())
    original = float(row_losses(decoder, ids_NS[20:]).mean())
    cure = Cure(decoder, PLAN, ids_NS[:20], OPTIONS)
    cure.run()
    cured = float(row_losses(cure.decoder, ids_NS[20:]).mean())
    assert cure.done == cure.steps == 12
    assert worse - cured > 0.5 * (worse - original)
    assert cure.history[-1].tail < cure.history[0].tail
    assert cure.history[-1].divergence < cure.history[0].divergence
    assert all(torch.equal(before[name], tensor) for name, tensor in decoder.weights.items())


def test_only_norms_of_folded_blocks_and_low_rank_updates_learn(
    decoder: Decoder, ids_NS: torch.Tensor
) -> None:
    cure = Cure(decoder, PLAN, ids_NS, OPTIONS)
    cure.step()
    norms = {"layers.1.attn_norm", "layers.1.mlp_norm", "layers.2.attn_norm", "layers.2.mlp_norm"}
    assert set(cure.norms) == norms
    assert all(name in norms or name.endswith((".A", ".B")) for name in cure.trained)
    for name in norms:  # each member has its own
        assert not torch.equal(cure.norms[name], decoder.weights[name])


def test_an_interrupted_cure_goes_on_bit_for_bit(
    decoder: Decoder, ids_NS: torch.Tensor, tmp_path: Path
) -> None:
    whole = Cure(decoder, PLAN, ids_NS, OPTIONS)
    whole.run()
    half = Cure(decoder, PLAN, ids_NS, OPTIONS)
    for _ in range(5):
        half.step()
    half.save(tmp_path / "cure")
    again = Cure(decoder, PLAN, ids_NS, OPTIONS)
    again.restore(tmp_path / "cure")
    assert again.done == 5
    again.run()
    assert all(torch.equal(whole.trained[name], t) for name, t in again.trained.items())
    assert again.history == whole.history


def test_a_checkpoint_of_another_cure_is_refused(
    decoder: Decoder, ids_NS: torch.Tensor, tmp_path: Path
) -> None:
    Cure(decoder, PLAN, ids_NS, OPTIONS).save(tmp_path / "cure")
    for other in (
        Cure(decoder, DepthPlan.whole(6).without([2]), ids_NS, OPTIONS),
        Cure(decoder, PLAN, ids_NS[1:], OPTIONS),
        Cure(decoder, PLAN, ids_NS, replace(OPTIONS, lr=1e-4)),
    ):
        with pytest.raises(InputError, match="of another plan, text or setting"):
            other.restore(tmp_path / "cure")
    (tmp_path / "cure").write_bytes(b"broken")
    with pytest.raises(InputError, match="cannot be read"):
        Cure(decoder, PLAN, ids_NS, OPTIONS).restore(tmp_path / "cure")


def test_a_loss_that_is_not_finite_ends_the_cure_where_it_was(
    decoder: Decoder, ids_NS: torch.Tensor
) -> None:
    cure = Cure(decoder, PLAN, ids_NS, OPTIONS)
    cure.step()
    kept = {name: tensor.detach().clone() for name, tensor in cure.trained.items()}
    name = next(iter(cure.norms))
    true_loss = cure._loss

    def broken(ids_BS: torch.Tensor) -> object:
        loss, told = true_loss(ids_BS)
        return loss * float("inf"), told

    cure._loss = broken  # type: ignore[method-assign, assignment]
    cure.run()
    assert cure.stopped == "the loss was inf at step 1"
    assert all(torch.equal(kept[name], tensor) for name, tensor in cure.trained.items())
    assert name in kept


def test_packed_weights_are_refused_with_what_to_do(
    small_folder: Path, ids_NS: torch.Tensor
) -> None:
    packed = load(str(small_folder), dtype="packed").decoder
    with pytest.raises(ModelError, match="load the model as floats, with dtype bf16 or fp32"):
        Cure(packed, PLAN, ids_NS, OPTIONS)


def test_no_text_is_refused(decoder: Decoder) -> None:
    with pytest.raises(InputError, match="no row of text to cure with"):
        Cure(decoder, PLAN, torch.empty(0, 16, dtype=torch.long), OPTIONS)


def test_a_lesson_is_given_once(decoder: Decoder, ids_NS: torch.Tensor) -> None:
    teacher = Teacher(decoder, [4, 5], keep=True)
    lesson = teacher.lesson(ids_NS[:2])
    assert teacher.lesson(ids_NS[:2].clone()) is lesson
    assert teacher.lesson(ids_NS[2:4]) is not lesson
    x_TD, states = run(decoder, ids_NS[:2], keep=[4])
    torch.testing.assert_close(lesson.states[4].float(), states[4], rtol=0.01, atol=0.01)
    logp = F.log_softmax(next_logits(decoder, x_TD, (2, 48)) / 2, -1)
    torch.testing.assert_close(lesson.logp_Rk, logp.topk(64, -1).values, rtol=0, atol=1e-5)
