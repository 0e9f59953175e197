"""What an environment is: text in, text out, and a key that says which states are the same.

``state_key`` belongs to the environment, because an observation may hide part of the state: two
states that read the same are then still told apart.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from shoal.core.errors import ShoalError


class BadEnvironment(ShoalError):
    """An environment that breaks its promises: starts, keys or rewards that cannot be."""


@dataclass(frozen=True, slots=True)
class Transition:
    """What a step brought.

    terminated  the task is over
    truncated   it was cut off, by a limit of steps
    valid       whether the action was one the environment understands
    solved      whether the task is now done as it was wanted
    parts       what the reward is made of, by name, where that is known
    marks       what else there is to tell of how good the action was, by name
    """

    observation: str
    reward: float
    terminated: bool
    truncated: bool = False
    valid: bool = True
    solved: bool = False
    parts: Mapping[str, float] = field(default_factory=dict)
    marks: Mapping[str, float] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether the episode has ended."""
        return self.terminated or self.truncated


class Environment(Protocol):
    """One world, played by one episode at a time.

    name         what errors call it
    instructions what an agent is told before its first observation
    reward_min, reward_max  bounds of the sum of an episode's rewards
    max_steps    an episode is truncated after so many
    answers      whether episodes end in a final answer that can be compared
    blocking     whether a step waits for something else than this process, so that it is worth
                 a thread
    """

    @property
    def name(self) -> str: ...
    @property
    def instructions(self) -> str: ...
    @property
    def reward_min(self) -> float: ...
    @property
    def reward_max(self) -> float: ...
    @property
    def max_steps(self) -> int: ...
    @property
    def answers(self) -> bool: ...
    @property
    def blocking(self) -> bool: ...

    def reset(self, seed: int) -> str:
        """Begin the task of this seed; its first observation. Same seed, same start."""
        ...

    def step(self, action: str) -> Transition:
        """Act. An action that makes no sense is not an error: it is not ``valid``."""
        ...

    def state_key(self) -> Hashable:
        """Equal for equal states of one task; without the count of steps or the history."""
        ...

    def admissible_actions(self) -> tuple[str, ...]:
        """Actions that make sense now; empty where they cannot be listed."""
        ...

    @property
    def final_answer(self) -> Hashable | None:
        """What the episode answered, in canonical form; None where it cannot be read."""
        ...

    def snapshot(self) -> Any:
        """The whole state, for :meth:`restore`."""
        ...

    def restore(self, snapshot: Any) -> None:
        """Go back to a snapshot of this environment."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


@runtime_checkable
class Demonstrates(Protocol):
    """An environment that knows a good next action, for warm starts."""

    def expert_action(self) -> str:
        """A good action in the present state."""
        ...


@runtime_checkable
class Spells(Protocol):
    """An environment that knows every word it may say or understand."""

    def words(self) -> tuple[str, ...]:
        """Its vocabulary, for policies that are trained from scratch."""
        ...


def as_key(value: object, environment: str) -> Hashable:
    """A canonical key: arrays and lists become tuples, and floats are refused.

    Raises :class:`BadEnvironment`, naming the environment, for what cannot be compared exactly.
    """
    tolist = getattr(value, "tolist", None)
    if tolist is not None:
        value = tolist()
    if isinstance(value, list | tuple):
        return tuple(as_key(part, environment) for part in value)
    if isinstance(value, Mapping):
        return tuple(sorted((str(key), as_key(part, environment)) for key, part in value.items()))
    if isinstance(value, float):
        raise BadEnvironment(
            f"The state key of {environment} holds the float {value}, which never repeats exactly: "
            "round it, or name the state by something countable."
        )
    if not isinstance(value, Hashable):
        raise BadEnvironment(
            f"The state key of {environment} is a {type(value).__name__}, which cannot be hashed."
        )
    return value
