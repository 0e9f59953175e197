"""GiGPO against the paper's worked example, and its traps."""

from __future__ import annotations

import pytest
from groups import published_episodes, row

from shoal.training.advantage import grpo
from shoal.training.gigpo import anchored, gigpo, step_advantage
from shoal.training.rows import batch_of


def test_the_worked_example_without_deviation() -> None:
    found = gigpo(batch_of(published_episodes()), gamma=0.5, scale="none")
    assert found.total == pytest.approx([0.8333, 1.0, -0.6667, -0.6667, -1.0], abs=1e-4)


def test_the_worked_example_with_deviation() -> None:
    batch = batch_of(published_episodes())
    steps = step_advantage(batch, gamma=0.5)
    assert steps == pytest.approx([1.1547, 0.7071, -0.5774, -0.5774, -0.7071], abs=1e-4)
    whole = gigpo(batch, gamma=0.5).total
    assert whole - steps == pytest.approx([0.7071] * 2 + [-0.7071] * 3, abs=1e-4)


def test_grpo_credits_all_steps_of_an_episode_alike() -> None:
    found = grpo(batch_of(published_episodes())).total
    assert len(set(found[:2])) == 1 and len(set(found[2:])) == 1


def test_without_a_repeated_state_it_is_grpo() -> None:
    rows = [row("x", e, t, float(e == "0"), state_key=(e, t)) for e in "01" for t in range(3)]
    batch = batch_of(rows)
    assert gigpo(batch).total.tolist() == grpo(batch).total.tolist()


def test_omega_zero_is_grpo() -> None:
    batch = batch_of(published_episodes())
    assert gigpo(batch, omega=0.0).total.tolist() == grpo(batch).total.tolist()


def test_without_the_episode_level_only_states_speak() -> None:
    batch = batch_of(published_episodes())
    found = gigpo(batch, gamma=0.5, episode_level=False).total
    assert found.tolist() == step_advantage(batch, gamma=0.5).tolist()


def test_visits_within_one_episode_are_compared_too() -> None:
    rows = [row("x", "0", t, float(t == 2), state_key=key) for t, key in enumerate("AAB")]
    found = step_advantage(batch_of(rows), gamma=0.5, scale="none")
    assert found == pytest.approx([-0.125, 0.125, 0.0])


def test_states_of_different_tasks_are_never_compared() -> None:
    rows = [row(task, "0", 0, float(task == "x"), state_key="A") for task in "xy"]
    assert step_advantage(batch_of(rows)).tolist() == [0.0, 0.0]


def test_a_key_that_holds_the_step_number_never_repeats_and_that_shows() -> None:
    rows = [row("x", str(e), t, state_key=(e, t)) for e in range(2) for t in range(4)]
    assert gigpo(batch_of(rows)).stats["anchors.singletons"] == 1.0


def test_telemetry_counts_anchor_groups() -> None:
    stats = gigpo(batch_of(published_episodes()), gamma=0.5).stats
    assert stats["anchors.count"] == 2 and stats["anchors.mean_size"] == 2.5
    assert stats["anchors.singletons"] == 0
    assert stats["gigpo.step_share"] == pytest.approx(3.7236 / (3.7236 + 3.5355), abs=1e-3)


def test_the_penalty_reaches_neither_earlier_steps_nor_other_rows() -> None:
    rows = published_episodes()
    invalid = [*rows[:3], row("x", "e2", 1, 0.0, state_key="A", valid=False), rows[4]]
    plain = gigpo(batch_of(rows), gamma=0.5, scale="none").total
    found = gigpo(batch_of(invalid), gamma=0.5, scale="none", invalid_penalty=0.3).total
    assert found - plain == pytest.approx([0.1, 0.0, 0.1, -0.5, 0.0])


def test_observations_anchor_where_the_run_asks_for_that() -> None:
    rows = [row("x", "0", 0, state_key=1, observation="a room"),
            row("x", "1", 0, state_key=2, observation="a room")]  # fmt: skip
    assert [r.state_key for r in anchored(rows, "observation")] == ["a room", "a room"]
    assert anchored(rows, "state") is rows


def test_similar_observations_share_the_first_ones_anchor() -> None:
    texts = ["you see a red door", "you see a red floor", "nothing at all"]
    rows = [row("x", str(n), 0, observation=text) for n, text in enumerate(texts)]
    keys = [r.state_key for r in anchored(rows, "observation", 0.9)]
    assert keys == [texts[0], texts[0], texts[2]]


def test_similar_observations_of_other_tasks_stay_apart() -> None:
    rows = [row(task, "0", 0, observation=f"a room {task}") for task in "xy"]
    assert [r.state_key for r in anchored(rows, "observation", 0.5)] == ["a room x", "a room y"]
