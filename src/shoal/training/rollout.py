"""Rollouts: groups of episodes that start alike, played at the same time.

All episodes that wait for an answer are asked for together, so equal prompts are computed once.
An episode whose environment crashes or whose reward is no number is played again, and then left
out with its reason: it is never counted as a reward of 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import traceback
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol, TypeVar, runtime_checkable

from shoal.core.errors import ShoalError
from shoal.core.rng import seed_of
from shoal.envs.protocol import BadEnvironment, Environment, Transition, as_key
from shoal.training.context import Context, Turn
from shoal.training.policies import Policy
from shoal.training.rows import Row
from shoal.training.samplers import Drawing, Sample, Sampler

Reward = Callable[[Environment, str, Transition, float], Transition]
"""Scores a step in place of its environment: environment, the answer's text, what the environment
said, progress of training from 0 to 1."""

T = TypeVar("T")


@runtime_checkable
class Bounded(Protocol):
    """A reward that knows its range."""

    def bounds(self, progress: float) -> tuple[float, float]:
        """Least and most an episode can get at some progress of training."""
        ...


class EnvironmentCrash(Exception):
    """What went wrong in an environment; the episode is played again or left out."""


class RewardFailure(Exception):
    """A reward that raised; the episode is left out at once: scoring it again would raise again."""


@dataclass(frozen=True, slots=True)
class Played:
    """How an episode ended."""

    task: str
    episode: str
    total: float
    solved: bool
    steps: int
    answer: Hashable | None = None


@dataclass(frozen=True, slots=True)
class Quarantined:
    """An episode that was left out, and why."""

    task: str
    episode: str
    reason: str


@dataclass(frozen=True, slots=True)
class Rollout:
    """Rows of the episodes that counted, in the order of tasks and episodes.

    env_steps  of all attempts, those that were left out included
    """

    rows: tuple[Row, ...] = ()
    played: tuple[Played, ...] = ()
    quarantined: tuple[Quarantined, ...] = ()
    env_steps: int = 0
    tokens: int = 0
    retried: int = 0

    def named(self, ending: str) -> Rollout:
        """The same with another name for each task, so that two of them stay apart."""
        return replace(
            self,
            rows=tuple(replace(row, task=row.task + ending) for row in self.rows),
            played=tuple(replace(one, task=one.task + ending) for one in self.played),
        )

    def __add__(self, other: Rollout) -> Rollout:
        return Rollout(
            self.rows + other.rows,
            self.played + other.played,
            self.quarantined + other.quarantined,
            self.env_steps + other.env_steps,
            self.tokens + other.tokens,
            self.retried + other.retried,
        )


@dataclass(slots=True)
class _Attempt:
    """One episode being played."""

    task: int
    number: int
    place: int
    rows: list[Row] = field(default_factory=list)
    solved: bool = False
    steps: int = 0
    start: Hashable = None


class GroupRunner:
    """Plays K tasks × N episodes. A task is a seed of the environment.

    ``retries`` is how often an episode that crashed is played again.
    """

    def __init__(
        self,
        make: Callable[[], Environment],
        policy: Policy,
        sampler: Sampler,
        *,
        context: Context = Context(),
        drawing: Drawing = Drawing(),
        reward: Reward | None = None,
        retries: int = 1,
        seed: int = 0,
    ) -> None:
        self.policy, self.sampler = policy, sampler
        self.context, self.drawing = context, drawing
        self._make, self._reward = make, reward
        self._retries, self._seed = retries, seed
        self._idle: list[Environment] = []

    def reward_min(self, progress: float) -> float:
        """The least sum of rewards an episode can have: the reward's, or the environment's."""
        if isinstance(self._reward, Bounded):
            return self._reward.bounds(progress)[0]
        return self.environment.reward_min

    def give(self, env: Environment) -> None:
        """An environment that is there already."""
        self._idle.append(env)

    @property
    def environment(self) -> Environment:
        """One of the environments, to ask for its properties."""
        if not self._idle:
            self._idle.append(self._make())
        return self._idle[-1]

    async def run(
        self,
        tasks: Sequence[int],
        episodes: int,
        *,
        name: Hashable = 0,
        progress: float = 0.0,
        drawing: Drawing | None = None,
    ) -> Rollout:
        """Play; ``name`` (of the iteration) keeps its draws apart from those of others.

        Raises :class:`BadEnvironment` where episodes of one task start differently or rewards
        leave their declared bounds, and :class:`ShoalError` where no episode could be played.
        """
        assert len(set(tasks)) == len(tasks), "a task is one group"
        each = [(task, number) for task in tasks for number in range(episodes)]
        desk = _Desk(self.sampler, drawing or self.drawing, len(each))
        starts: dict[int, Hashable] = {}
        found = await asyncio.gather(
            *(
                self._play(_Attempt(task, number, place), desk, starts, name, progress)
                for place, (task, number) in enumerate(each)
            ),
            return_exceptions=True,
        )
        for one in found:
            if isinstance(one, BaseException):
                raise one
        whole = sum((one for one in found if isinstance(one, Rollout)), Rollout())
        if not whole.rows:
            raise ShoalError(
                f"None of {len(each)} episodes could be played; the first was left out because: "
                f"{whole.quarantined[0].reason}"
            )
        return whole

    def close(self) -> None:
        """Close all environments."""
        while self._idle:
            self._idle.pop().close()

    async def _play(
        self,
        attempt: _Attempt,
        desk: _Desk,
        starts: dict[int, Hashable],
        name: Hashable,
        progress: float,
    ) -> Rollout:
        steps, reason = 0, ""
        env = self._idle.pop() if self._idle else self._make()
        try:
            for retry in range(self._retries + 1):
                one = _Attempt(attempt.task, attempt.number, attempt.place)
                try:
                    await self._episode(one, env, desk, starts, (name, retry), progress)
                    played = self._settle(one, env)
                    tokens = sum(len(row.action) for row in played[0])
                    self._idle.append(env)
                    return Rollout(played[0], (played[1],), (), steps + one.steps, tokens, retry)
                except EnvironmentCrash as crash:
                    steps, reason = steps + one.steps, str(crash)
                    env = self._replaced(env)
                except RewardFailure as failure:
                    steps, reason = steps + one.steps, str(failure)
                    break
            self._idle.append(env)
        finally:
            desk.leave()
        left_out = Quarantined(_task_name(attempt.task), str(attempt.number), reason)
        return Rollout((), (), (left_out,), steps, 0, retry)

    def _replaced(self, env: Environment) -> Environment:
        """A new environment in place of one that crashed."""
        with contextlib.suppress(Exception):  # it is broken: what it says on leaving is no news
            env.close()
        return self._make()

    async def _episode(
        self,
        one: _Attempt,
        env: Environment,
        desk: _Desk,
        starts: dict[int, Hashable],
        name: Hashable,
        progress: float,
    ) -> None:
        observation = await _guarded(env, partial(env.reset, one.task), "reset")
        past: list[Turn] = []
        key = as_key(env.state_key(), env.name)
        self._check_start(one.task, key, starts, env)
        while one.steps < env.max_steps:
            prompt = self.policy.encode(self.context.prompt(env, past, observation))
            seed = seed_of(self._seed, name, one.task, one.number, one.steps)
            sample = await desk.ask(one.place, prompt, seed)
            text = self.policy.decode(sample.tokens)
            action = self.context.action(text)
            done = await _guarded(env, partial(env.step, action or ""), "step")
            t, one.steps = one.steps, one.steps + 1
            if self._reward is not None:
                done = _scored(self._reward, env, text, done, progress)
            if not math.isfinite(done.reward):
                raise EnvironmentCrash(f"the reward of step {t} is {done.reward}")
            one.rows.append(
                Row(
                    task=_task_name(one.task),
                    episode=str(one.number),
                    t=t,
                    prompt=prompt,
                    action=sample.tokens,
                    logprobs=sample.logprobs,
                    reward=done.reward,
                    state_key=key,
                    observation=observation,
                    version=sample.version,
                    valid=done.valid and action is not None,
                    parts=done.parts,
                    marks=done.marks,
                )
            )
            one.solved = done.solved
            if done.done:
                return
            past.append(Turn(observation, action or ""))
            observation, key = done.observation, _key(env)

    def _check_start(
        self, task: int, key: Hashable, starts: dict[int, Hashable], env: Environment
    ) -> None:
        if starts.setdefault(task, key) != key:
            raise BadEnvironment(
                f"{env.name} starts task {task} in different states: a seed must fix its start, "
                "or episodes of a group cannot be compared."
            )

    def _settle(self, one: _Attempt, env: Environment) -> tuple[tuple[Row, ...], Played]:
        """Rows with the episode's answer, and how it ended."""
        total = sum(row.reward for row in one.rows)
        if self._reward is None and not env.reward_min - 1e-6 <= total <= env.reward_max + 1e-6:
            raise BadEnvironment(
                f"{env.name} declares returns within [{env.reward_min}, {env.reward_max}], but an "
                f"episode of task {one.task} got {total:g}."
            )
        answer = env.final_answer if env.answers else None
        rows = tuple(replace(row, answer=answer) for row in one.rows)
        ended = Played(_task_name(one.task), str(one.number), total, one.solved, one.steps, answer)
        return rows, ended


def _task_name(task: int) -> str:
    return f"task-{task}"


def _key(env: Environment) -> Hashable:
    """The state's key; looked at closely only where it cannot be hashed, as the first one was."""
    key = env.state_key()
    try:
        hash(key)
    except TypeError:
        return as_key(key, env.name)
    return key


def _scored(
    reward: Reward, env: Environment, text: str, found: Transition, progress: float
) -> Transition:
    """What a reward makes of a step; what it raises, but for users' mistakes, is a failure."""
    try:
        return reward(env, text, found, progress)
    except ShoalError:
        raise
    except Exception as error:
        raise RewardFailure(
            f"The reward raised {type(error).__name__}: {error}\n{traceback.format_exc()}"
        ) from error


async def _guarded(env: Environment, call: Callable[[], T], what: str) -> T:
    """Call an environment, on a thread where it blocks; what it raises becomes a crash."""
    try:
        return await asyncio.to_thread(call) if env.blocking else call()
    except BadEnvironment:
        raise
    except Exception as error:
        raise EnvironmentCrash(
            f"{what} of {env.name} raised {type(error).__name__}: {error}"
        ) from error


class _Desk:
    """Collects the prompts of all episodes that wait, and asks for them in one call."""

    def __init__(self, sampler: Sampler, drawing: Drawing, episodes: int) -> None:
        self._sampler, self._drawing = sampler, drawing
        self._live = episodes
        self._waiting: list[tuple[int, tuple[int, ...], int, asyncio.Future[Sample]]] = []
        self._call: asyncio.Task[None] | None = None

    async def ask(self, place: int, prompt: tuple[int, ...], seed: int) -> Sample:
        """The answer to one prompt; the order of episodes is kept, whoever asked first."""
        if self._sampler.concurrent:
            (sample,) = await self._sampler.generate([prompt], [seed], self._drawing)
            return sample
        answer: asyncio.Future[Sample] = asyncio.get_running_loop().create_future()
        self._waiting.append((place, prompt, seed, answer))
        self._flush()
        return await answer

    def leave(self) -> None:
        """An episode has ended: nobody waits for it."""
        self._live -= 1
        self._flush()

    def _flush(self) -> None:
        if self._waiting and len(self._waiting) == self._live:
            waiting, self._waiting = sorted(self._waiting, key=lambda one: one[0]), []
            self._call = asyncio.get_running_loop().create_task(self._answer(waiting))

    async def _answer(
        self, waiting: list[tuple[int, tuple[int, ...], int, asyncio.Future[Sample]]]
    ) -> None:
        try:
            samples = await self._sampler.generate(
                [prompt for _, prompt, _, _ in waiting],
                [seed for _, _, seed, _ in waiting],
                self._drawing,
            )
        except Exception as error:
            for *_, answer in waiting:
                answer.set_exception(error)
            return
        for (*_, answer), sample in zip(waiting, samples, strict=True):
            answer.set_result(sample)
