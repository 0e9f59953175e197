"""Estimators against closed forms and plain references."""

from __future__ import annotations

import numpy as np
import pytest
from groups import answered, published_episodes, row
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.errors import ConfigError
from shoal.training.advantage import gdpo, grpo, max_rl, reinforce, returns, rloo, step_return
from shoal.training.estimators import ESTIMATORS, estimator, settle_degenerate
from shoal.training.rows import Row, batch_of

REWARDS = st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=2, max_size=6)


def test_grpo_divides_by_the_sample_deviation() -> None:
    found = grpo(answered({"x": [1, 0, 0, 0]})).total
    assert found == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-5)


def test_grpo_without_scale_only_centres() -> None:
    found = grpo(answered({"x": [1, 0, 0, 0]}), scale="none").total
    assert found == pytest.approx([0.75, -0.25, -0.25, -0.25])


def test_grpo_may_scale_by_the_whole_batch() -> None:
    rewards = {"x": [1, 0], "y": [0, 0]}
    spread = np.std([1, 0, 0, 0], ddof=1)
    found = grpo(answered(rewards), scale="batch").total
    assert found == pytest.approx([0.5 / spread, -0.5 / spread, 0, 0], abs=1e-5)


def test_over_rows_long_episodes_weigh_more() -> None:
    batch = batch_of(published_episodes())
    episodes = grpo(batch, scale="none").total
    by_rows = grpo(batch, scale="none", over="rows").total
    assert episodes == pytest.approx([0.5, 0.5, -0.5, -0.5, -0.5])
    assert by_rows == pytest.approx([0.6, 0.6, -0.4, -0.4, -0.4])


def test_rloo_is_the_return_minus_the_mean_of_the_others() -> None:
    found = rloo(answered({"x": [1, 0, 0.5]})).total
    assert found == pytest.approx([1 - 0.25, 0 - 0.75, 0.5 - 0.5])


def test_reinforce_knows_no_groups() -> None:
    found = reinforce(answered({"x": [1, 1], "y": [0, 0]}), scale=False).total
    assert found == pytest.approx([0.5, 0.5, -0.5, -0.5])


def test_max_rl_divides_by_the_mean_so_hard_tasks_weigh_more() -> None:
    found = max_rl(answered({"hard": [1, 0, 0, 0], "easy": [1, 1, 1, 0]})).total
    assert found == pytest.approx([3, -1, -1, -1, 1 / 3, 1 / 3, 1 / 3, -1])


def test_max_rl_counts_from_the_least_reward() -> None:
    found = max_rl(answered({"x": [1, -1]}, reward_min=-1)).total
    assert found == pytest.approx([1, -1])


def test_returns_are_discounted_to_the_end_of_each_episode() -> None:
    assert returns(batch_of(published_episodes()), 0.5).tolist() == [0.5, 1, 0, 0, 0]


@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    gamma=st.floats(0, 1),
    order=st.randoms(use_true_random=False),
)
def test_returns_equal_the_plain_sum(lengths: list[int], gamma: float, order: object) -> None:
    rows = [
        row("x", str(e), t, float((3 * e + t) % 4))
        for e, length in enumerate(lengths)
        for t in range(length)
    ]
    order.shuffle(rows)  # type: ignore[attr-defined]

    def plain(one: Row) -> float:
        later = [r for r in rows if r.episode == one.episode and r.t >= one.t]
        return sum(gamma ** (r.t - one.t) * r.reward for r in later)

    assert returns(batch_of(rows), gamma) == pytest.approx([plain(one) for one in rows])


def test_step_return_compares_all_steps_of_a_group() -> None:
    found = step_return(batch_of(published_episodes()), gamma=0.5, scale=False).total
    assert found == pytest.approx([0.2, 0.7, -0.3, -0.3, -0.3])


def test_a_group_of_one_gets_zero_and_a_warning() -> None:
    with pytest.warns(UserWarning, match="1 of 1 groups have one episode"):
        assert grpo(answered({"x": [1.0]})).total.tolist() == [0.0]


def test_groups_may_differ_in_size() -> None:
    found = grpo(answered({"x": [1, 0], "y": [1, 0, 0]}), scale="none").total
    assert found == pytest.approx([0.5, -0.5, 2 / 3, -1 / 3, -1 / 3])


def test_equality_is_decided_exactly_not_by_a_rounded_deviation() -> None:
    # three times 0.1 has a mean that is not 0.1 in floating point
    found = grpo(answered({"x": [0.1, 0.1, 0.1]}))
    assert found.total.tolist() == [0.0, 0.0, 0.0] and found.dead_R.all()


def test_parts_that_are_scaled_apart_weigh_alike() -> None:
    rows = [
        row("x", str(n), 0, form + right, parts={"form": form, "right": right})
        for n, (form, right) in enumerate([(0.1, 0.0), (0.0, 3.0), (0.1, 0.0), (0.0, -3.0)])
    ]
    form = np.array([0.5, -0.5, 0.5, -0.5]) * 3**0.5
    right = np.array([0, 1, 0, -1]) * 1.5**0.5
    assert gdpo(batch_of(rows)).total == pytest.approx(form + right, abs=1e-3)


def test_without_parts_there_is_nothing_to_scale_apart() -> None:
    with pytest.raises(ConfigError, match="a quiz are not made of parts"):
        gdpo(answered({"x": [1, 0]}, {"x": ["a", "b"]}))


@pytest.mark.parametrize("name", sorted(ESTIMATORS.keys() - {"gdpo"}))
@given(groups=st.lists(REWARDS, min_size=2, max_size=5))
@pytest.mark.filterwarnings("ignore")
def test_every_estimator_is_finite_for_any_rewards(name: str, groups: list[list[float]]) -> None:
    rewards = {str(n): group for n, group in enumerate(groups)}
    answers = {key: [str(value) for value in group] for key, group in rewards.items()}
    found = estimator(name)(answered(rewards, answers))
    assert np.isfinite(found.columns_CR).all() and np.isfinite(found.weights_CR).all()


@pytest.mark.parametrize("name", ["grpo", "rloo", "gigpo", "max_rl"])
@given(groups=st.lists(REWARDS, min_size=1, max_size=4))
def test_credit_within_a_group_of_single_steps_sums_to_zero(
    name: str, groups: list[list[float]]
) -> None:
    batch = answered({str(n): group for n, group in enumerate(groups)})
    sums = np.bincount(batch.group_R, estimator(name)(batch).total, minlength=batch.groups)
    assert np.abs(sums).max() < 1e-9


def test_a_penalty_for_an_invalid_action_stays_with_its_row() -> None:
    rows = [row("x", "0", 0, valid=False), row("x", "0", 1, 1.0), row("x", "1", 0)]
    found = grpo(batch_of(rows), scale="none", invalid_penalty=0.1).total
    assert found == pytest.approx([0.4, 0.5, -0.5])


def test_a_penalty_in_a_dead_group_is_not_blown_up() -> None:
    rows = [row("x", "0", 0, valid=False), row("x", "1", 0)]
    assert grpo(batch_of(rows), invalid_penalty=0.1).total == pytest.approx([-0.1, 0.0])


def test_filtered_groups_leave_the_batch() -> None:
    batch = answered({"dead": [1, 1], "alive": [1, 0]})
    found, kept = settle_degenerate(batch, grpo(batch), "filter")
    assert kept.tolist() == [False, False, True, True]
    assert found.stats["groups.all_right"] == 0.5 and found.stats["groups.mixed"] == 0.5


def test_kept_groups_stay_with_nothing_to_say() -> None:
    batch = answered({"dead": [1, 1], "alive": [1, 0]})
    found, kept = settle_degenerate(batch, grpo(batch), "keep")
    assert kept.all() and found.silent.tolist() == [True, True, False, False]


def test_global_gives_dead_groups_the_advantage_between_prompts() -> None:
    batch = answered({"right": [1, 1], "wrong": [0, 0], "alive": [1, 0]})
    found, kept = settle_degenerate(batch, grpo(batch, scale="none"), "global")
    assert kept.all()
    assert found.total == pytest.approx([1, 1, -1, -1, 0.5, -0.5], abs=1e-5)


def test_a_dead_group_with_a_signal_from_its_states_is_not_filtered() -> None:
    rows = [
        row("x", "0", 0, 0.0, state_key="A"),
        row("x", "0", 1, 1.0, state_key="B"),
        row("x", "1", 0, 1.0, state_key="A"),
    ]
    batch = batch_of(rows)
    found, kept = settle_degenerate(batch, estimator("gigpo", {"gamma": 0.5})(batch), "filter")
    assert found.dead_R.all() and kept.tolist() == [True, False, True]


def test_an_unknown_algorithm_is_named_with_its_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no algorithm 'gigp'.*Did you mean 'gigpo'"):
        estimator("gigp")


def test_an_unknown_option_is_named_with_its_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no option 'gama'.*Did you mean 'gamma'"):
        estimator("gigpo", {"gama": 1})
