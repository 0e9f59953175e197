"""Rollouts: groups that start alike, and what happens to episodes that break."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from worlds import Walk

from shoal.core.errors import ConfigError, ShoalError
from shoal.envs.protocol import BadEnvironment, Environment, Transition
from shoal.training.advantage import grpo
from shoal.training.context import Context
from shoal.training.policies import word_policy
from shoal.training.rollout import GroupRunner, Rollout
from shoal.training.rows import batch_of
from shoal.training.samplers import DirectSampler, Drawing, Sample


def runner(make: Callable[[], Environment] = Walk, **more: object) -> GroupRunner:
    policy = word_policy(Walk().words(), hidden=16, layers=1, heads=2, seed=1)
    options = {"drawing": Drawing(max_tokens=1), "seed": 7, **more}
    return GroupRunner(make, policy, DirectSampler(policy), **options)  # type: ignore[arg-type]


def play(one: GroupRunner, tasks: Sequence[int] = (0, 1), episodes: int = 3) -> Rollout:
    return asyncio.run(one.run(tasks, episodes))


def test_every_step_is_a_row_with_its_ids() -> None:
    found = play(runner())
    assert {(row.task, row.episode) for row in found.rows} == {
        (f"task-{task}", str(n)) for task in (0, 1) for n in range(3)
    }
    assert found.env_steps == len(found.rows)
    for one in found.played:
        rows = [r for r in found.rows if (r.task, r.episode) == (one.task, one.episode)]
        assert [row.t for row in rows] == list(range(one.steps))
        assert all(len(row.action) == len(row.logprobs) == 1 for row in rows)


def test_draws_depend_on_names_not_on_who_else_plays() -> None:
    alone, together = play(runner(), [1]), play(runner(), [0, 1])
    mine = [row.action for row in together.rows if row.task == "task-1"]
    assert [row.action for row in alone.rows] == mine


def test_prompts_stay_short_and_show_the_last_actions() -> None:
    one = runner(context=Context(history=2))
    found = play(one)
    last = max(found.rows, key=lambda row: row.t)
    assert last.t > 2
    words = one.policy.tokenizer.decode(last.prompt, special=False).split()
    assert words.count(">") == 2 and "place" in words


def test_an_episode_that_crashes_is_left_out_and_the_group_keeps_the_rest() -> None:
    worlds = iter([Walk(), Walk(crash_at=2), Walk(), Walk(crash_at=2)])
    found = play(runner(lambda: next(worlds, Walk()), retries=0), [0], 4)
    assert len(found.quarantined) == 2 and len(found.played) == 2
    assert "step of the walk raised RuntimeError: the floor gave way" in found.quarantined[0].reason
    assert {row.episode for row in found.rows} == {"0", "2"}
    assert found.env_steps > len(found.rows)  # steps of attempts that failed are steps all the same


def test_a_crash_that_passes_is_played_again_in_a_new_world() -> None:
    broken = Walk(crash_at=1)
    worlds = iter([broken])
    found = play(runner(lambda: next(worlds, Walk()), retries=1), [0], 2)
    assert broken.closed and found.retried == 1
    assert not found.quarantined and len(found.played) == 2


def test_a_reward_that_is_no_number_is_never_a_zero() -> None:
    found = play(runner(lambda: Walk(nan_on=1)), [0, 1], 2)
    assert {row.task for row in found.rows} == {"task-0"}
    assert [one.reason for one in found.quarantined] == ["the reward of step 0 is nan"] * 2


def test_nothing_to_learn_from_is_an_error_that_says_why() -> None:
    with pytest.raises(ShoalError, match=r"None of 4 episodes.*floor gave way"):
        play(runner(lambda: Walk(crash_at=1)), [0, 2], 2)


def test_starts_that_differ_are_a_hard_error() -> None:
    starts = itertools.count()
    with pytest.raises(BadEnvironment, match="the walk starts task 0 in different states"):
        play(runner(lambda: Walk(starts=starts)), [0], 2)


def test_returns_beyond_what_is_declared_are_a_hard_error() -> None:
    with pytest.raises(BadEnvironment, match=r"declares returns within \[0.0, 1.0\]"):
        play(runner(lambda: Walk(too_much=True)), [0], 2)


def test_a_reward_of_ones_own_takes_the_place_of_the_environments() -> None:
    seen: list[float] = []

    def shout(env: Environment, text: str, found: Transition, progress: float) -> Transition:
        seen.append(progress)
        return replace(found, reward=2.0, parts={"loud": 2.0})

    one = runner(reward=shout)
    found = asyncio.run(one.run([0], 2, progress=0.5))
    assert {row.reward for row in found.rows} == {2.0} and set(seen) == {0.5}
    assert found.rows[0].parts == {"loud": 2.0}


class Fussy:
    """Raises on the first steps it sees, and gives the others something to differ by."""

    def __init__(self, failures: int) -> None:
        self.left = failures

    def __call__(
        self, env: Environment, text: str, found: Transition, progress: float
    ) -> Transition:
        if self.left:
            self.left -= 1
            raise KeyError("no such answer")
        return replace(found, reward=float(text == "right"), marks={"right": text == "right"})


def test_a_reward_that_raises_quarantines_its_row_with_the_traceback() -> None:
    fussy = Fussy(1)
    found = play(runner(lambda: Walk(max_steps=1), reward=fussy, retries=3), [0], 4)
    assert len(found.rows) == 3  # scoring again would raise again: there is no other try
    (left_out,) = found.quarantined
    assert "The reward raised KeyError: 'no such answer'" in left_out.reason
    assert "Traceback" in left_out.reason and 'raise KeyError("no such answer")' in left_out.reason
    assert found.env_steps == 4 and found.retried == 0
    assert found.rows[0].marks.keys() == {"right"}


def test_what_a_failing_reward_leaves_of_a_group_is_compared_if_there_are_two() -> None:
    for failures, left in ((2, 2), (3, 1)):
        one = runner(lambda: Walk(max_steps=1), reward=Fussy(failures))
        rows = [
            replace(row, reward=float(n))  # whatever was drawn, they differ
            for n, row in enumerate(play(one, [0], 4).rows)
        ]
        assert len(rows) == left
        if left == 1:
            with pytest.warns(UserWarning, match="have one episode"):
                assert not grpo(batch_of(rows)).total.any()
        else:
            assert grpo(batch_of(rows)).total == pytest.approx([-(0.5**0.5), 0.5**0.5], rel=1e-5)


def test_a_users_mistake_about_a_reward_ends_the_run() -> None:
    def wrong(env: Environment, text: str, found: Transition, progress: float) -> Transition:
        raise ConfigError("This world has no calls.")

    with pytest.raises(ConfigError, match="no calls"):
        play(runner(reward=wrong))


def test_an_answer_without_an_action_is_not_valid() -> None:
    class Mute(DirectSampler):
        async def generate(
            self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], drawing: Drawing
        ) -> list[Sample]:
            return [Sample((0,), (-1.0,), 0) for _ in prompts]

    one = runner()
    one.sampler = Mute(one.policy)
    assert not any(row.valid for row in play(one).rows)


def test_tags_hold_exactly_one_action() -> None:
    context = Context(tags=True)
    assert context.action("I think <action> right </action>") == "right"
    assert context.action("right") is None
    assert context.action("<action>left</action><action>right</action>") is None


def test_worlds_that_block_are_played_on_threads() -> None:
    class Slow(Walk):
        blocking = True

    assert play(runner(Slow)).rows == play(runner()).rows


def test_environments_are_kept_for_the_next_round() -> None:
    made: list[Walk] = []

    def make() -> Walk:
        made.append(Walk())
        return made[-1]

    one = runner(make)
    play(one)
    play(one)
    assert len(made) == 6
    one.close()
    assert all(world.closed for world in made)


@pytest.mark.parametrize(
    ("key", "message"),
    [([0.5], "state key of the walk holds the float 0.5"), ({1}, "is a set, which cannot be")],
)
def test_a_state_that_cannot_repeat_or_be_hashed_is_named(key: Any, message: str) -> None:
    class Odd(Walk):
        def state_key(self) -> Any:
            return key

    with pytest.raises(BadEnvironment, match=message):
        play(runner(Odd))


def test_keys_that_are_lists_are_made_canonical() -> None:
    class Listed(Walk):
        def state_key(self) -> Any:
            return [super().state_key()]

    assert {row.state_key for row in play(runner(Listed)).rows} >= {(0,), (1,)}
