"""COPO against the worked example, and its bad inputs."""

from __future__ import annotations

import numpy as np
import pytest
from groups import answered

from shoal.core.errors import ConfigError
from shoal.training.copo import answer_entropy, copo, gate_weights, global_advantage
from shoal.training.rows import Batch

REWARDS = {"mixed": [1, 0, 0, 0], "wrong": [0, 0, 0, 0], "right": [1, 1, 1, 1]}
ANSWERS = {"mixed": list("abbc"), "wrong": list("wxyz"), "right": list("aaaa")}


def example() -> Batch:
    return answered(REWARDS, ANSWERS)


def test_the_worked_example() -> None:
    batch = example()
    assert answer_entropy(batch) == pytest.approx([1.5, 2.0, 0.0])
    assert global_advantage(batch) == pytest.approx([-0.3203, -0.8006, 1.1209], abs=1e-4)
    found = copo(batch)
    weights = found.weights_CR[0]
    assert weights == pytest.approx([0.9241] * 4 + [0] * 4 + [0.0067] * 4, abs=1e-4)
    assert found.weights_CR[1] == pytest.approx(1 - weights)
    assert found.columns_CR[0] == pytest.approx([1.5, -0.5, -0.5, -0.5] + [0] * 8, abs=1e-5)


def test_an_all_wrong_group_is_pushed_down_and_an_all_right_one_up() -> None:
    total = copo(example()).total
    assert (total[4:8] < -0.7).all() and (total[8:] > 1).all()


def test_entropy_is_in_bits() -> None:
    batch = answered({"x": [0] * 6, "y": [1] * 6}, {"x": list("abcdef"), "y": list("aabbcc")})
    assert answer_entropy(batch) == pytest.approx([np.log2(6), np.log2(3)])


def test_unreadable_answers_are_one_answer() -> None:
    batch = answered({"x": [0, 0, 1, 1]}, {"x": [None, None, "a", "a"]})
    assert answer_entropy(batch) == pytest.approx([1.0])


@pytest.mark.filterwarnings("ignore:All prompts")
def test_unreadable_answers_are_counted() -> None:
    batch = answered({"x": [0, 0, 1, 1]}, {"x": [None, None, None, "a"]})
    assert copo(batch).stats["answers.unparsed"] == 0.75


@pytest.mark.parametrize("rewards", [{"x": [1, 0]}, {"x": [1, 0], "y": [0, 1]}])
def test_equal_prompts_have_no_global_advantage_and_say_so(rewards: dict[str, list[float]]) -> None:
    batch = answered(rewards, {key: ["a", "b"] for key in rewards})
    with pytest.warns(UserWarning, match="same mean reward"):
        assert copo(batch).columns_CR[1].tolist() == [0.0] * batch.size


def test_all_wrong_is_the_least_reward_that_is_declared() -> None:
    rewards, answers = {"x": [-1, -1], "y": [0, 0]}, {"x": ["a", "b"], "y": ["a", "b"]}
    batch = answered(rewards, answers, reward_min=-1)
    assert gate_weights(batch, answer_entropy(batch), 5.0, 1.0, "group") == pytest.approx(
        [0, 0, 0.5, 0.5]
    )


def test_groups_may_differ_in_size() -> None:
    batch = answered({"x": [1, 0, 0], "y": [0]}, {"x": ["a", "b", "b"], "y": ["c"]})
    found = copo(batch)
    assert np.isfinite(found.total).all()
    assert found.stats["copo.entropy_relative"] == pytest.approx(answer_entropy(batch)[0]
                                                                / np.log2(3) / 2)  # fmt: skip


def test_an_environment_without_answers_is_named() -> None:
    with pytest.raises(ConfigError, match="COPO compares final answers, and a quiz has none"):
        copo(answered(REWARDS))


def test_the_released_recipe_takes_the_local_signal_of_wrong_answers_away() -> None:
    weights = copo(example(), gate="per_response").weights_CR[0]
    assert weights[:4] == pytest.approx([0.9241, 0, 0, 0], abs=1e-4)


def test_forced_uses_the_global_loss_exactly_for_dead_groups() -> None:
    weights = copo(example(), gate="forced").weights_CR[0]
    assert weights.tolist() == [1.0] * 4 + [0.0] * 8


def test_global_alone_gives_right_and_wrong_answers_the_same_credit() -> None:
    assert np.ptp(copo(example(), gate="global").total[:4]) == 0


def test_the_soft_gate_leaves_a_diverse_wrong_group_without_credit() -> None:
    weights = copo(example(), gate="soft").weights_CR[0]
    assert weights[4:8] == pytest.approx([0.9933] * 4, abs=1e-4)


def test_disagreement_scales_a_prompts_reward_down_to_its_share() -> None:
    batch = answered(
        {"x": [1, 1, 1, 1], "y": [1, 1, 1, 1], "z": [0, 0, 0, 0]},
        {"x": list("abcd"), "y": list("aaaa"), "z": list("aaaa")},
    )
    reward = np.array([0.25, 1.0, 0.0])
    expected = (reward - reward.mean()) / reward.std(ddof=1)
    found = global_advantage(batch, answer_entropy(batch))
    assert found == pytest.approx(expected, abs=1e-5)
