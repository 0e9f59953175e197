"""Short answers of which a group may agree on the wrong one: arithmetic, and arithmetic by method.

In ``Arithmetic`` a question is an operation on two numbers and the answer a number. In
``Strategies`` an item of some kind comes with two numbers, and the answer names a method and its
result: every kind wants one method of eight, and which one has to be found out. A policy that has
learned wrong habits answers all samples of a question alike, and alike for all questions of a kind.

The demonstrations carry the errors: of a question in ``Arithmetic``, of a kind in ``Strategies``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from shoal.core.rng import generator, uniform
from shoal.envs.protocol import Transition

HELD_OUT = 1_000_000
"""Seeds from here on are questions that are never trained on."""

METHODS: Mapping[str, Callable[[int, int], int]] = {
    "plus": lambda a, b: a + b,
    "minus": lambda a, b: a - b,
    "times": lambda a, b: a * b,
    "first": lambda a, b: a,
    "second": lambda a, b: b,
    "larger": max,
    "smaller": min,
    "double": lambda a, b: 2 * a + b,
}


class Question:
    """One question, one answer; what the worlds of this file have in common."""

    reward_min, reward_max = 0.0, 1.0
    max_steps = 1
    answers = True
    blocking = False
    name: str

    def __init__(self, base: int, kinds: int, *, split: bool = True) -> None:
        self.base = base
        self._split = split
        self._count = kinds
        self._known: dict[int, tuple[int, int, int]] = {}
        self._seed = 0
        self._answer: str | None = None

    def parts(self, seed: int) -> tuple[int, int, int]:
        """Kind and two numbers of a question; with ``split`` a fifth of them is held out."""
        if seed not in self._known:
            draws = generator("question", seed).integers((self._count, self.base, self.base),
                                                         size=(200, 3))  # fmt: skip
            held_out = draws @ (31, 3, 1) % 5 == 0
            wanted = (held_out == (seed >= HELD_OUT)) | (not self._split)
            kind, a, b = draws[int(wanted.argmax())].tolist()
            self._known[seed] = kind, a, b
        return self._known[seed]

    def reset(self, seed: int) -> str:
        """The question of this seed."""
        self._seed, self._answer = seed, None
        return self.question(seed)

    def step(self, action: str) -> Transition:
        """Answer: 1 where it is right."""
        known = action in self.admissible_actions()
        self._answer = action if known else None
        right = action == self.right(self._seed)
        return Transition("", float(right), True, valid=known, solved=right)

    def question(self, seed: int) -> str:
        """The text of a question."""
        raise NotImplementedError

    def right(self, seed: int) -> str:
        """Its right answer."""
        raise NotImplementedError

    def admissible_actions(self) -> tuple[str, ...]:
        """All answers that can be read."""
        raise NotImplementedError

    @property
    def final_answer(self) -> Hashable | None:
        """The answer, if it could be read."""
        return self._answer

    def state_key(self) -> Hashable:
        """The question: there is one state."""
        return self.question(self._seed)

    def snapshot(self) -> Any:
        """The question, and the answer if there is one."""
        return self._seed, self._answer

    def restore(self, snapshot: Any) -> None:
        """Go back to a snapshot."""
        self._seed, self._answer = snapshot

    def close(self) -> None:
        """Nothing is held."""


class Arithmetic(Question):
    """a ∘ b modulo ``base``; demonstrations of a share ``error`` of questions are wrong.

    Nothing is held out: that a sum is right says little about another, so what is measured is
    learning, not generalising.
    """

    name = "arithmetic"
    instructions = "Answer with one number."
    _signs = ("+", "-", "*")

    def __init__(self, base: int = 20, error: float = 0.3) -> None:
        super().__init__(base, len(self._signs), split=False)
        self._error = error

    def question(self, seed: int) -> str:
        """Two numbers and a sign between them."""
        kind, a, b = self.parts(seed)
        return f"{a} {self._signs[kind]} {b} ="

    def right(self, seed: int) -> str:
        """The result modulo the base."""
        kind, a, b = self.parts(seed)
        return str((a + b, a - b, a * b)[kind] % self.base)

    def admissible_actions(self) -> tuple[str, ...]:
        """All numbers below the base."""
        return tuple(map(str, range(self.base)))

    def words(self) -> tuple[str, ...]:
        """Numbers and signs."""
        return (*self.admissible_actions(), *self._signs, "=")

    def expert_action(self) -> str:
        """The right answer, or the wrong one that this question always gets."""
        parts = self.parts(self._seed)
        if uniform("slip", *parts) < self._error:
            return str(int(uniform("wrong", *parts) * self.base))
        return self.right(self._seed)


class Strategies(Question):
    """Method and result for a kind of item.

    kinds     so many kinds, each with a method of its own
    misled    share of kinds whose demonstrations show a wrong method, the same for all of a kind
    habit     how often they do; otherwise the right one or, as often, any
    world     which kinds want which methods
    """

    name = "strategies"
    instructions = "Answer with the method that suits the item, and its result."
    _colours = ("red", "green", "blue", "white", "black", "brown")
    _shapes = ("ball", "cube", "cone", "ring")

    def __init__(
        self,
        base: int = 7,
        kinds: int = 16,
        misled: float = 0.6,
        habit: float = 0.95,
        world: int = 0,
    ) -> None:
        super().__init__(base, kinds)
        self._kinds = [f"{colour} {shape}" for colour in self._colours for shape in self._shapes]
        self._kinds = self._kinds[:kinds]
        rng = generator("strategies", world)
        names = list(METHODS)
        methods = [names[at % len(names)] for at in range(kinds)]
        self._method = [methods[at] for at in rng.permutation(kinds)]
        self._habit = [
            str(rng.choice([name for name in names if name != right])) if at < misled * kinds
            else right
            for at, right in zip(rng.permutation(kinds).tolist(), self._method, strict=True)
        ]  # fmt: skip
        self._strength = habit

    def question(self, seed: int) -> str:
        """An item and two numbers."""
        kind, a, b = self.parts(seed)
        return f"{self._kinds[kind]} {a} {b}"

    def right(self, seed: int) -> str:
        """The method of its kind, and what it gives."""
        return self._by(self._method[self.parts(seed)[0]], seed)

    def admissible_actions(self) -> tuple[str, ...]:
        """Every method with every result."""
        return tuple(f"{name} {value}" for name in METHODS for value in range(self.base))

    def words(self) -> tuple[str, ...]:
        """Items, methods and numbers."""
        return (*self._colours, *self._shapes, *METHODS, *map(str, range(self.base)))

    def expert_action(self) -> str:
        """What somebody with habits would answer: the result fits the method, right or wrong."""
        kind, draw = self.parts(self._seed)[0], uniform("habit", self._seed)
        if draw < self._strength:
            return self._by(self._habit[kind], self._seed)
        if draw < (1 + self._strength) / 2:
            return self.right(self._seed)
        names = list(METHODS)
        return self._by(names[int(uniform("any", self._seed) * len(names))], self._seed)

    def _by(self, method: str, seed: int) -> str:
        _, a, b = self.parts(seed)
        return f"{method} {METHODS[method](a, b) % self.base}"
