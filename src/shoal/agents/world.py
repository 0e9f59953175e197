"""A member that is an environment: it hears the others' actions and says what they brought.

So actions and observations travel on channels like all words do, and whoever acts on a common
world need not hear each other. The environment is begun anew and played again at each of its
turns, from all actions that its channels carry (``view="all"``): its words are a function of the
log alone, so a run that is resumed or replayed meets the same world.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from shoal.agents.votes import chosen

OVER = "It is over."
"""What a world says last, for the stop rule ``verdict``."""


class Moved(Protocol):
    """What an action brought."""

    @property
    def observation(self) -> str: ...
    @property
    def reward(self) -> float: ...
    @property
    def done(self) -> bool: ...


class Playable(Protocol):
    """What a world asks of an environment: the same seed and actions, the same course."""

    def reset(self, seed: int) -> str: ...
    def step(self, action: str) -> Moved: ...
    def admissible_actions(self) -> tuple[str, ...]: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class World:
    """A model that is an environment, opened by ``make`` and begun with ``seed``.

    It says the observation, which actions make sense where that is known, and at last a JSON
    object of each member's rewards so far, which the payoff ``scored`` reads.
    """

    make: Callable[[], Playable]
    seed: int = 0

    def __repr__(self) -> str:
        return f"World({getattr(self.make, '__qualname__', 'environment')!r}, {self.seed})"

    def answer(self, heard: Sequence[tuple[str, str]]) -> str:
        """What it says once these members have done this, in this order."""
        environment = self.make()
        try:
            text, over = environment.reset(self.seed), False
            rewards: dict[str, float] = {}
            for name, words in heard:
                if over:
                    break
                may = environment.admissible_actions()
                moved = environment.step(chosen(words, may) or words.strip())
                text, over = moved.observation, moved.done
                rewards[name] = rewards.get(name, 0.0) + moved.reward
            may = environment.admissible_actions()
        finally:
            environment.close()
        lines = [text, OVER if over else f"You may: {', '.join(may)}." if may else ""]
        return "\n".join([*filter(None, lines), json.dumps(rewards)])
