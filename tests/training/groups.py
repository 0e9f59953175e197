"""Rows made by hand for the tests of this room."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from shoal.training.rows import Batch, Row, batch_of


def row(task: str, episode: str, t: int, reward: float = 0.0, **more: object) -> Row:
    """A row of one token."""
    given = {"prompt": (1, 2), "action": (3,), "logprobs": (-1.0,), **more}
    return Row(task, episode, t, reward=reward, **given)  # type: ignore[arg-type]


def answered(
    groups: Mapping[str, Sequence[float]],
    answers: Mapping[str, Sequence[Hashable]] | None = None,
    *,
    reward_min: float = 0.0,
) -> Batch:
    """Groups of episodes of one step: rewards, and final answers where there are any."""
    rows = [
        row(task, str(n), 0, reward, answer=answers[task][n] if answers else None)
        for task, rewards in groups.items()
        for n, reward in enumerate(rewards)
    ]
    return batch_of(rows, reward_min=reward_min, answers=answers is not None, environment="a quiz")


def published_episodes() -> list[Row]:
    """GiGPO's example: e1 is A, B, success; e2 is A, A, B, failure."""
    e1 = [row("x", "e1", 0, 0.0, state_key="A"), row("x", "e1", 1, 1.0, state_key="B")]
    e2 = [row("x", "e2", t, 0.0, state_key=state) for t, state in enumerate("AAB")]
    return e1 + e2
