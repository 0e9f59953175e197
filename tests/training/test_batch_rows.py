"""Rows become columns, whatever their order."""

from __future__ import annotations

import random

import numpy as np
import pytest
from groups import published_episodes, row

from shoal.training.rows import batch_of


def test_columns_name_groups_episodes_and_states() -> None:
    batch = batch_of(published_episodes())
    assert batch.groups == 1 and batch.episodes == 2
    assert batch.episode_R.tolist() == [0, 0, 1, 1, 1]
    assert batch.state_R.tolist() == [0, 1, 0, 0, 1]
    assert batch.return_E.tolist() == [1.0, 0.0]


def test_the_same_state_of_another_task_is_another_state() -> None:
    batch = batch_of([row("x", "0", 0, state_key="A"), row("y", "0", 0, state_key="A")])
    assert batch.state_R.tolist() == [0, 1]


def test_agents_of_a_team_are_groups_of_their_own() -> None:
    rows = [row("x", "0", 0, agent=agent) for agent in ("writer", "critic")]
    assert batch_of(rows).groups == 2


def test_an_answer_that_cannot_be_read_is_one_answer_for_all() -> None:
    rows = [row("x", str(n), 0, answer=answer) for n, answer in enumerate(("a", None, "b", None))]
    assert batch_of(rows).answer_E.tolist() == [0, -1, 1, -1]


def test_a_missing_step_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'e' of task 'x' has a row of step 2 where step 1"):
        batch_of([row("x", "e", 0), row("x", "e", 2)])


def test_a_step_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="has a row of step 0 where step 1"):
        batch_of([row("x", "e", 0), row("x", "e", 0)])


def test_no_rows_are_no_batch_of_anything() -> None:
    batch = batch_of([])
    assert (batch.size, batch.episodes, batch.groups) == (0, 0, 0)


def test_the_order_of_rows_does_not_matter() -> None:
    rows = published_episodes()
    random.Random(0).shuffle(rows)
    batch = batch_of(rows)
    by_row = {
        (r.episode, r.t): batch.return_E[e] for r, e in zip(rows, batch.episode_R, strict=True)
    }
    assert by_row[("e1", 1)] == 1.0 and by_row[("e2", 2)] == 0.0
    assert np.bincount(batch.episode_R).tolist() in ([2, 3], [3, 2])
