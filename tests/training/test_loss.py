"""Losses against closed forms, and against what cutting a batch must not change."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.training.correction import Correction, importance
from shoal.training.loss import Aggregate, LossOptions, Tokens, kl_terms, policy_loss, token_scale


def tokens(
    logp: list[float],
    old: list[float],
    advantage: list[float],
    *,
    rows: list[int] | None = None,
    scale: float = 1.0,
    **more: torch.Tensor,
) -> Tokens:
    """Tokens of one column of credit."""
    n = len(logp)
    return Tokens(
        logp_A=torch.tensor(logp, dtype=torch.float64, requires_grad=True),
        old_A=torch.tensor(old, dtype=torch.float64),
        row_A=torch.tensor(rows or list(range(n))),
        scale_A=torch.full((n,), scale, dtype=torch.float64),
        columns_CA=torch.tensor([advantage], dtype=torch.float64),
        weights_CA=torch.ones(1, n, dtype=torch.float64),
        correction_A=torch.ones(n, dtype=torch.float64),
        **more,
    )


def loss_of(made: Tokens, **options: object) -> float:
    return float(policy_loss(made, LossOptions(**options))[0].detach())  # type: ignore[arg-type]


LOG = math.log


def test_the_first_step_is_plain_policy_gradient() -> None:
    made = tokens([-1.0, -2.0], [-1.0, -2.0], [2.0, -3.0])
    loss, _ = policy_loss(made, LossOptions())
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1.0)  # -(2) - (-3)
    assert made.logp_A.grad is not None
    assert made.logp_A.grad.tolist() == pytest.approx([-2.0, 3.0])


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [(1.5, 1.0, -1.2), (0.5, 1.0, -0.5), (1.5, -1.0, 1.5), (0.5, -1.0, 0.8)],
)
def test_ppo_clips_where_the_gain_would_grow(
    ratio: float, advantage: float, expected: float
) -> None:
    assert loss_of(tokens([LOG(ratio)], [0.0], [advantage])) == pytest.approx(expected)


def test_the_upper_bound_may_be_wider() -> None:
    assert loss_of(tokens([LOG(1.5)], [0.0], [1.0]), clip_high=0.28) == pytest.approx(-1.28)


def test_the_dual_clip_bounds_what_a_bad_answer_can_cost() -> None:
    made = tokens([LOG(10.0)], [0.0], [-1.0])
    assert loss_of(made) == pytest.approx(10.0)
    assert loss_of(made, dual_clip=3.0) == pytest.approx(3.0)


def test_a_clipped_token_has_no_gradient_and_is_counted() -> None:
    made = tokens([LOG(1.5), 0.0], [0.0, 0.0], [1.0, 1.0], scale=0.5)
    loss, told = policy_loss(made, LossOptions())
    loss.backward()
    assert made.logp_A.grad is not None and made.logp_A.grad.tolist() == pytest.approx([0, -0.5])
    assert told["clip_share"] == 0.5


def test_cispo_keeps_the_gradient_of_clipped_tokens() -> None:
    made = tokens([LOG(1.5)], [0.0], [1.0])
    policy_loss(made, LossOptions(kind="cispo"))[0].backward()
    assert made.logp_A.grad is not None and made.logp_A.grad.tolist() == pytest.approx([-1.2])


def test_gspo_takes_one_ratio_a_row() -> None:
    made = tokens([0.2, 0.0, 0.5], [0.0, 0.0, 0.0], [1.0, 1.0, -1.0], rows=[0, 0, 1])
    ratio = math.exp(0.1)
    expected = -2 * ratio + math.exp(0.5)
    assert loss_of(made, kind="gspo") == pytest.approx(expected)


@pytest.mark.parametrize(
    ("ratio", "advantage"), [(0.3, 1.0), (0.3, -2.0), (1.1, 1.0), (4.0, -1.0), (4.0, 1.0)]
)
def test_the_gradient_of_cispo_is_the_bounded_ratio_whatever_the_sign(
    ratio: float, advantage: float
) -> None:
    made = tokens([LOG(ratio)], [0.0], [advantage])
    policy_loss(made, LossOptions(kind="cispo", clip_low=0.5, clip_high=2.0))[0].backward()
    assert made.logp_A.grad is not None
    assert float(made.logp_A.grad) == pytest.approx(-min(max(ratio, 0.5), 3.0) * advantage)


def test_the_gradient_of_gspo_is_the_rows_ratio_over_its_length() -> None:
    # d/dlogp_t of (1/n) Σ -s A with s = exp(mean of n log-ratios) is -s A / n
    made = tokens([0.3, -0.1, 0.1], [0.0] * 3, [2.0] * 3, rows=[0, 0, 0], scale=1 / 3)
    policy_loss(made, LossOptions(kind="gspo"))[0].backward()
    assert made.logp_A.grad is not None
    assert made.logp_A.grad.tolist() == pytest.approx([-2 * math.exp(0.1) / 3] * 3)


def test_gspo_clips_rows_whole() -> None:
    # the first row's mean ratio is beyond the bound although one of its tokens is not
    made = tokens([0.9, 0.1, 0.1], [0.0] * 3, [1.0] * 3, rows=[0, 0, 1], scale=0.5)
    loss, told = policy_loss(made, LossOptions(kind="gspo"))
    loss.backward()
    assert made.logp_A.grad is not None
    assert made.logp_A.grad.tolist() == pytest.approx([0, 0, -math.exp(0.1) / 2])
    assert told["clip_share"] == 1.0  # of scale 0.5 each: both tokens of the row


def test_reinforce_has_no_ratio() -> None:
    assert loss_of(tokens([-2.0], [-1.0], [3.0]), kind="reinforce") == pytest.approx(6.0)


def test_several_columns_add_up_by_their_weights() -> None:
    one = tokens([LOG(1.5)], [0.0], [1.0])
    both = Tokens(
        one.logp_A, one.old_A, one.row_A, one.scale_A,
        torch.tensor([[1.0], [-1.0]], dtype=torch.float64),
        torch.tensor([[0.25], [0.75]], dtype=torch.float64),
        one.correction_A,
    )  # fmt: skip
    # each column is clipped by its own sign: blending advantages first would be another loss
    assert loss_of(both) == pytest.approx(0.25 * -1.2 + 0.75 * 1.5)


def test_kl_terms_are_schulmans() -> None:
    logp, reference = torch.tensor([-1.0]), torch.tensor([-1.5])
    assert float(kl_terms(logp, reference, "k1")) == pytest.approx(0.5)
    assert float(kl_terms(logp, reference, "k3")) == pytest.approx(math.exp(-0.5) + 0.5 - 1)


def test_k3_is_unbiased_and_never_negative() -> None:
    p, q = torch.tensor([0.7, 0.3]).double(), torch.tensor([0.4, 0.6]).double()
    terms = kl_terms(p.log(), q.log(), "k3")
    assert (terms >= 0).all()
    assert float((p * terms).sum()) == pytest.approx(float((p * (p / q).log()).sum()))


def test_kl_in_the_loss_pulls_towards_the_reference() -> None:
    reference = torch.tensor([-3.0], dtype=torch.float64)
    made = tokens([-1.0], [-1.0], [0.0], reference_A=reference)
    loss, told = policy_loss(made, LossOptions(kl="k3", kl_weight=0.5))
    loss.backward()
    assert told["kl_reference"] == pytest.approx(math.exp(-2) + 2 - 1)
    assert made.logp_A.grad is not None and float(made.logp_A.grad) > 0


def test_entropy_is_a_bonus() -> None:
    made = tokens([0.0], [0.0], [0.0], entropy_A=torch.tensor([2.0], dtype=torch.float64))
    assert loss_of(made, entropy_weight=0.1) == pytest.approx(-0.2)


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [("token", [1 / 4, 1 / 4]), ("sequence", [1 / 6, 1 / 2]), ("constant", [1 / 20, 1 / 20])],
)
def test_what_a_token_counts(aggregate: Aggregate, expected: list[float]) -> None:
    scale = token_scale(torch.tensor([3, 1]), aggregate, 10)
    assert scale.tolist() == pytest.approx(expected)


def test_rows_without_tokens_count_nothing() -> None:
    assert token_scale(torch.tensor([0, 2]), "sequence").tolist()[1] == 0.5


@given(
    lengths=st.lists(st.integers(1, 5), min_size=2, max_size=8),
    aggregate=st.sampled_from(["token", "sequence", "constant"]),
    kind=st.sampled_from(["ppo_clip", "cispo", "gspo", "reinforce"]),
    cut=st.integers(1, 7),
)
def test_cutting_a_batch_does_not_change_its_loss(
    lengths: list[int], aggregate: Aggregate, kind: str, cut: int
) -> None:
    random = torch.Generator().manual_seed(len(lengths) + cut)
    scale_R = token_scale(torch.tensor(lengths), aggregate, 5)
    row_A = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    logp, old = (torch.randn(len(row_A), generator=random).double() for _ in range(2))
    credit_R = torch.randn(len(lengths), generator=random).double()

    def part(first: int, last: int) -> float:
        inside = (row_A >= first) & (row_A < last)
        row = row_A[inside]
        made = Tokens(
            logp[inside], old[inside], row - first, scale_R[row], credit_R[row][None],
            torch.ones(1, len(row)).double(), torch.ones(len(row)).double(),
        )  # fmt: skip
        return loss_of(made, kind=kind)

    rows = len(lengths)
    cut = min(cut, rows - 1)
    assert part(0, cut) + part(cut, rows) == pytest.approx(part(0, rows), abs=1e-12)


def weights(trainer: list[float], sampler: list[float], **setting: object) -> list[float]:
    rows = torch.tensor([0] * 2 + [1] * (len(trainer) - 2))
    found, _ = importance(
        torch.tensor(trainer),
        torch.tensor(sampler),
        rows,
        Correction(**setting),  # type: ignore[arg-type]
    )
    return found.tolist()


def test_equal_policies_need_no_correction() -> None:
    assert weights([-1, -2, -3], [-1, -2, -3]) == [1, 1, 1]


def test_a_sequence_beyond_the_bound_is_masked_whole() -> None:
    found = weights([0.0, 0.0, -1.0], [-1.0, -0.2, -1.1])
    assert found == pytest.approx([0, 0, math.exp(0.1)])


def test_the_geometric_mean_of_a_sequence_is_kinder() -> None:
    found = weights([0.0, 0.0, -1.0], [-1.0, -0.2, -1.1], geometric=True)
    assert found[:2] == pytest.approx([math.exp(0.6)] * 2)


def test_truncation_keeps_the_token_at_the_bound() -> None:
    assert weights([0, 0, 0], [-2, -0.1, 0], mode="token_truncate") == pytest.approx(
        [3, math.exp(0.1), 1]
    )


def test_masking_by_token_leaves_the_others() -> None:
    assert weights([0, 0, 0], [-2, -0.1, 0], mode="token_mask") == pytest.approx(
        [0, math.exp(0.1), 1]
    )


def test_mismatch_is_told() -> None:
    rows = torch.tensor([0, 1])
    _, told = importance(
        torch.tensor([0.0, -1.0]), torch.tensor([-2.0, -1.0]), rows, Correction(high=3.0)
    )
    assert told["mismatch.masked"] == 0.5
    assert told["mismatch.kl"] == pytest.approx((math.exp(2) - 2 - 1) / 2)
