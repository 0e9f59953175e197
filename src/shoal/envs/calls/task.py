"""Requests that are answered in one step, by calls or in words: what such worlds share."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from typing import Any, Protocol, runtime_checkable

from shoal.core.records import ToolSpec
from shoal.envs.calls.answers import Answer
from shoal.envs.calls.dialects import Dialect, dialect
from shoal.envs.calls.values import Equality
from shoal.envs.calls.wanted import Wanted
from shoal.envs.protocol import Transition


@runtime_checkable
class Asks(Protocol):
    """An environment whose requests want calls, so that a reward can compare."""

    @property
    def wanted(self) -> Wanted:
        """What the present request wants."""
        ...

    @property
    def dialect(self) -> Dialect:
        """How answers are written."""
        ...


class CallTask:
    """One request, one answer; by itself 1 where it is exactly right and 0 otherwise.

    A world of its own says which request a seed is (:meth:`ask`), and how tools are described.
    """

    reward_min, reward_max = 0.0, 1.0
    max_steps = 1
    answers = True
    blocking = False
    name: str

    def __init__(self, dialect_name: str, equality: Equality = "schema") -> None:
        self.dialect = dialect(dialect_name)
        self.equality: Equality = equality
        self.tools: tuple[ToolSpec, ...] = ()
        self.wanted = Wanted("nothing was asked yet")
        self._seed = 0
        self._said: Answer | None = None

    def ask(self, seed: int) -> tuple[tuple[ToolSpec, ...], str, Wanted]:
        """Tools, the request's text, and what it wants."""
        raise NotImplementedError

    @property
    def instructions(self) -> str:
        """How to answer."""
        return self.dialect.about

    def reset(self, seed: int) -> str:
        """The request of this seed."""
        self.tools, request, self.wanted = self.ask(seed)
        self._seed, self._said = seed, None
        between = " " if self.dialect.name == "words" else "\n"
        return f"{self.described(self.tools)}{between}{request}"

    def described(self, tools: Sequence[ToolSpec]) -> str:
        """The tools as the prompt has them: a JSON object a line."""
        return "\n".join(
            json.dumps(
                {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": dict(tool.parameters),
                },
                ensure_ascii=False,
            )
            for tool in tools
        )

    def step(self, action: str) -> Transition:
        """Answer."""
        self._said = self.dialect.read(action)
        right = exact(self._said, self.wanted, self.dialect, self.equality)
        known = bool(self._said.blocks) and not self._said.error
        return Transition("", float(right), True, valid=known, solved=right)

    def state_key(self) -> Hashable:
        """The request: there is one state."""
        return self._seed

    def admissible_actions(self) -> tuple[str, ...]:
        """Answers are free."""
        return ()

    @property
    def final_answer(self) -> Hashable | None:
        """The calls in no order, or that there are none; None where they cannot be read."""
        return None if self._said is None else self._said.final

    def expert_action(self) -> str:
        """A right answer."""
        return self.dialect.write(self.wanted.example())

    def snapshot(self) -> Any:
        """The request, and the answer if there is one."""
        return self._seed, self._said

    def restore(self, snapshot: Any) -> None:
        """Go back to a snapshot."""
        seed, said = snapshot
        self.reset(seed)
        self._said = said

    def close(self) -> None:
        """Nothing is held."""


def exact(answer: Answer, wanted: Wanted, dialect: Dialect, how: Equality) -> bool:
    """Whether an answer is well-formed and calls exactly what was wanted, in any order."""
    if answer.error or not dialect.well_formed(answer, wanted.blocks):
        return False
    left = list(answer.calls)
    if len(left) != len(wanted.calls):
        return False
    fits = [[place for place, call in enumerate(left) if one.matches(call, how)]
            for one in wanted.calls]  # fmt: skip
    return _assigned(fits)


def _assigned(fits: list[list[int]]) -> bool:
    """Whether everybody can have one of their places, nobody's twice (Kuhn's paths)."""
    owner: dict[int, int] = {}

    def find(one: int, seen: set[int]) -> bool:
        for place in fits[one]:
            if place not in seen:
                seen.add(place)
                if place not in owner or find(owner[place], seen):
                    owner[place] = one
                    return True
        return False

    return all(find(one, set()) for one in range(len(fits)))
