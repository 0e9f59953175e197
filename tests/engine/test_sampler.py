"""The sampler draws from the distribution it says, row by row, whoever else is there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from shoal.core.protocols import Sampling
from shoal.engine.sampler import Row, _draw, _draw_of_all, choose

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0])


def draw(sampling: Sampling, count: int = 4000) -> np.ndarray:
    """Frequencies of ``count`` draws; index plays the part of time."""
    tokens = choose(LOGITS.repeat(count, 1), [Row(sampling, i) for i in range(count)]).tokens
    return np.bincount(tokens, minlength=len(LOGITS))


def expect(probs: np.ndarray, counts: np.ndarray) -> None:
    kept = probs > 0
    assert counts[~kept].sum() == 0
    if kept.sum() == 1:
        return
    test = stats.chisquare(counts[kept], probs[kept] / probs.sum() * counts.sum())
    assert test.pvalue > 1e-3


def test_greedy_takes_the_largest() -> None:
    assert choose(LOGITS[None].clone(), [Row(Sampling(), 0)]).tokens == [0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_tempered_softmax(temperature: float) -> None:
    probs = torch.softmax(LOGITS.double() / temperature, 0).numpy()
    expect(probs, draw(Sampling(temperature=temperature, seed=3)))


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(temperature=1, top_k=2), 2),
        (Sampling(temperature=1, top_p=0.8), 3),  # .563 + .207 < .8 <= .563 + .207 + .126
        (Sampling(temperature=1, min_p=0.2), 3),  # e^-1.5 = .22 of the best, e^-2 = .14
        (Sampling(temperature=1, top_k=4, top_p=0.6, min_p=0.2), 2),
        (Sampling(temperature=1, top_p=0.0), 1),
    ],
)
def test_truncation_keeps_the_likeliest(sampling: Sampling, kept: int) -> None:
    probs = torch.softmax(LOGITS.double(), 0).numpy()
    probs[kept:] = 0
    expect(probs, draw(sampling))


def test_a_row_does_not_feel_the_others() -> None:
    row = Row(Sampling(temperature=1, seed=11), 5)
    alone = choose(LOGITS[None].clone(), [row]).tokens[0]
    others = [Row(Sampling(temperature=t, seed=s), s) for s, t in enumerate((0.0, 0.7, 3.0))]
    crowd = choose(LOGITS.repeat(4, 1), [*others, row]).tokens[-1]
    assert crowd == alone


def test_logprobs_are_taken_after_temperature_and_before_truncation() -> None:
    sampling = Sampling(temperature=2, top_k=1, logprobs=2)
    choice = choose(LOGITS[None].clone(), [Row(sampling, 0)])
    expected = torch.log_softmax(LOGITS / 2, 0)
    report = choice.logprobs[0]
    assert report is not None
    assert report[0] == pytest.approx(float(expected[0]), abs=1e-6)
    assert report[1] == [
        (0, pytest.approx(float(expected[0]))),
        (1, pytest.approx(float(expected[1]))),
    ]


def test_repetition_penalty_shrinks_what_was_said() -> None:
    sampling = Sampling(repetition_penalty=4)
    row = Row(sampling, 0, history=torch.tensor([0, 4]))
    logits = LOGITS[None].clone()
    assert choose(logits, [row]).tokens == [1]  # 2.0 / 4 < 1.0
    assert logits[0, 4] == -4.0  # negative logits are multiplied


def test_presence_penalty_is_taken_once_off_what_the_answer_holds() -> None:
    sampling = Sampling(presence_penalty=1.5)
    logits = LOGITS[None].clone()
    row = Row(sampling, 2, answered=torch.tensor([0, 4]))
    assert choose(logits, [row]).tokens == [1]  # 2.0 - 1.5 < 1.0
    assert (LOGITS - logits[0]).tolist() == [1.5, 0, 0, 0, 1.5]


def test_masks_and_bans_hold_whatever_truncation_says() -> None:
    allowed = torch.tensor([False, False, True, True, False])
    assert choose(LOGITS[None].clone(), [Row(Sampling(), 0, allowed=allowed)]).tokens == [2]
    assert choose(LOGITS[None].clone(), [Row(Sampling(), 0, banned=(0, 1))]).tokens == [2]
    sampling = Sampling(temperature=5, top_k=1)
    assert choose(LOGITS[None].clone(), [Row(sampling, 0, allowed=allowed)]).tokens == [2]


def test_settings_outside_their_range_are_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"top_p is 1\.5, but must lie between 0 and 1"):
        Sampling(top_p=1.5)


@pytest.mark.parametrize("seed", range(6))
def test_few_candidates_are_drawn_from_as_a_sorted_vocabulary_would_be(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn((16, 5_000), generator=random).mul(3).bfloat16().float()  # with many ties
    rows = [
        Row(Sampling(temperature=1.0, top_k=k, top_p=p, min_p=m, seed=seed), index)
        for index, (k, p, m) in enumerate(
            [(1, 1, 0), (3, 1, 0), (40, 0.7, 0), (1024, 0.95, 0.02)] * 4
        )
    ]
    assert _draw(logits, rows).tolist() == _draw_of_all(logits, rows).tolist()
