"""Rows: what training learns from. A row is a step: one model call and what came of it.

Groups and episodes are id columns, never the layout of a tensor, so rows may be reordered, padded
and cut into micro-batches at will. Answering in one turn is the case of episodes of one row.

Shapes: R rows, E episodes, G groups.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Row:
    """One step of one agent in one episode.

    task       what its group has in common: same task, same start
    agent      role in a team; groups are (task, agent)
    prompt     token ids the model saw
    action     token ids it answered, the end of the answer included
    logprobs   the sampler's, one per token of the action, after temperature, before truncation
    version    of the weights that sampled it
    state_key  the state it acted in, before the action, as the environment names it
    observation  what was seen of that state
    reward     of this step
    valid      whether the environment understood the action
    answer     the episode's final answer; None where it cannot be read
    parts      what the reward is made of
    marks      what else is told of how good the step was
    """

    task: str
    episode: str
    t: int
    prompt: tuple[int, ...]
    action: tuple[int, ...]
    logprobs: tuple[float, ...]
    reward: float
    state_key: Hashable = None
    observation: str = ""
    agent: str = ""
    version: int = 0
    valid: bool = True
    answer: Hashable | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    marks: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Rows as columns, for estimators that know no model and no tokenizer.

    group_R, episode_R  codes 0..G-1 and 0..E-1
    state_R             code of (group, state key)
    t_R, reward_R, valid_R  as in the rows
    group_E, return_E   each episode's group and undiscounted sum of rewards
    answer_E            code of its final answer; -1 where it cannot be read
    parts_E             sums of the parts its rewards are made of, by name
    reward_min          the least sum of rewards an episode can have, as the environment declares
    answers             whether the environment has final answers at all
    """

    group_R: Ints
    episode_R: Ints
    state_R: Ints
    t_R: Ints
    reward_R: Floats
    valid_R: Bools
    group_E: Ints
    return_E: Floats
    answer_E: Ints
    groups: int
    parts_E: Mapping[str, Floats] = field(default_factory=dict)
    reward_min: float = 0.0
    answers: bool = False
    environment: str = "the environment"

    @property
    def episodes(self) -> int:
        """How many episodes there are."""
        return len(self.group_E)

    @property
    def size(self) -> int:
        """How many rows there are."""
        return len(self.group_R)


def batch_of(
    rows: Sequence[Row],
    *,
    reward_min: float = 0.0,
    answers: bool = False,
    environment: str = "the environment",
    states: bool = True,
) -> Batch:
    """The columns of rows, in their order; without ``states`` every step is a state of its own.

    Raises ``ValueError`` where the steps of an episode are not 0, 1, 2, … each once: returns over
    a row that is missing or there twice would be wrong.
    """
    group_R, groups = _codes([(row.task, row.agent) for row in rows])
    own = group_R.tolist()
    episode_R, episodes = _codes([(g, row.episode) for g, row in zip(own, rows, strict=True)])
    state_R = np.arange(len(rows))
    if states:
        state_R, _ = _codes([(g, row.state_key) for g, row in zip(own, rows, strict=True)])
    t_R = np.array([row.t for row in rows], dtype=np.int64)
    reward_R = np.array([row.reward for row in rows], dtype=np.float64)
    _check_steps(rows, episode_R, t_R, episodes)
    first_E = np.full(episodes, -1, dtype=np.int64)
    first_E[episode_R[::-1]] = np.arange(len(rows))[::-1]
    known: dict[Hashable, int] = {None: -1}
    answer_E = [known.setdefault(rows[row].answer, len(known) - 1) for row in first_E.tolist()]
    return Batch(
        group_R=group_R,
        episode_R=episode_R,
        state_R=state_R,
        t_R=t_R,
        reward_R=reward_R,
        valid_R=np.array([row.valid for row in rows], dtype=np.bool_),
        group_E=group_R[first_E],
        return_E=np.bincount(episode_R, reward_R, minlength=episodes).astype(np.float64),
        answer_E=np.array(answer_E, dtype=np.int64),
        groups=groups,
        parts_E=_parts(rows, episode_R, episodes),
        reward_min=reward_min,
        answers=answers,
        environment=environment,
    )


def _parts(rows: Sequence[Row], episode_R: Ints, episodes: int) -> dict[str, Floats]:
    names = sorted({name for row in rows for name in row.parts})
    columns = {name: [row.parts.get(name, 0.0) for row in rows] for name in names}
    return {
        name: np.bincount(episode_R, column, minlength=episodes).astype(np.float64)
        for name, column in columns.items()
    }


def _codes(keys: Sequence[Hashable]) -> tuple[Ints, int]:
    """Numbers for keys, by first appearance."""
    known: dict[Hashable, int] = {}
    codes = [known.setdefault(key, len(known)) for key in keys]
    return np.array(codes, dtype=np.int64), len(known)


def _check_steps(rows: Sequence[Row], episode_R: Ints, t_R: Ints, episodes: int) -> None:
    count_E = np.bincount(episode_R, minlength=episodes)
    order = np.lexsort((t_R, episode_R))
    starts_E = np.cumsum(count_E) - count_E
    expected = np.arange(len(t_R)) - np.repeat(starts_E, count_E)
    wrong = np.flatnonzero(t_R[order] != expected)
    if wrong.size:
        row = rows[int(order[wrong[0]])]
        raise ValueError(
            f"Episode {row.episode!r} of task {row.task!r} has a row of step {row.t} where step "
            f"{int(expected[wrong[0]])} should be: give each of its steps once."
        )
