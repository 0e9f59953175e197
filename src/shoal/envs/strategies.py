"""Short answers of which a group may agree on the wrong one: arithmetic, and arithmetic by method.

In ``Arithmetic`` a question is an operation on two numbers and the answer a number. In
``Strategies`` an item of some kind comes with two numbers, and the answer names a method and its
result: every kind wants one method of eight, and which one has to be found out. A policy that has
learned wrong habits answers all samples of a question alike, and alike for all questions of a kind.

The demonstrations carry the errors: random ones in ``Arithmetic``, habits in ``Strategies``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from shoal.core.rng import generator, uniform
from shoal.envs.protocol import Transition

HELD_OUT = 1_000_000
"""Seeds from here on are questions with numbers that are never trained on."""

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

    def __init__(self, base: int) -> None:
        self.base = base
        self._seed = 0
        self._answer: str | None = None

    def numbers(self, seed: int) -> tuple[int, int]:
        """The two numbers of a question; a fifth of all pairs is held out."""
        pairs = [(a, b) for a in range(self.base) for b in range(self.base)]
        held_out = seed >= HELD_OUT
        kept = [(a, b) for a, b in pairs if ((3 * a + b) % 5 == 0) == held_out]
        return kept[int(uniform("numbers", seed) * len(kept))]

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
    """a ∘ b modulo ``base``; a demonstration is a random number with probability ``error``."""

    name = "arithmetic"
    instructions = "Answer with one number."
    _signs = ("+", "-", "*")

    def __init__(self, base: int = 20, error: float = 0.3) -> None:
        super().__init__(base)
        self._error = error

    def question(self, seed: int) -> str:
        """Two numbers and a sign between them."""
        a, b = self.numbers(seed)
        return f"{a} {self._sign(seed)} {b} ="

    def right(self, seed: int) -> str:
        """The result modulo the base."""
        a, b = self.numbers(seed)
        results = {"+": a + b, "-": a - b, "*": a * b}
        return str(results[self._sign(seed)] % self.base)

    def admissible_actions(self) -> tuple[str, ...]:
        """All numbers below the base."""
        return tuple(map(str, range(self.base)))

    def words(self) -> tuple[str, ...]:
        """Numbers and signs."""
        return (*self.admissible_actions(), *self._signs, "=")

    def expert_action(self) -> str:
        """Mostly the right answer."""
        if uniform("slip", self._seed) < self._error:
            return str(int(uniform("wrong", self._seed) * self.base))
        return self.right(self._seed)

    def _sign(self, seed: int) -> str:
        return self._signs[int(uniform("sign", seed) * len(self._signs))]


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
        super().__init__(base)
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
        a, b = self.numbers(seed)
        return f"{self._kinds[self._kind(seed)]} {a} {b}"

    def right(self, seed: int) -> str:
        """The method of its kind, and what it gives."""
        return self._by(self._method[self._kind(seed)], seed)

    def admissible_actions(self) -> tuple[str, ...]:
        """Every method with every result."""
        return tuple(f"{name} {value}" for name in METHODS for value in range(self.base))

    def words(self) -> tuple[str, ...]:
        """Items, methods and numbers."""
        return (*self._colours, *self._shapes, *METHODS, *map(str, range(self.base)))

    def expert_action(self) -> str:
        """What somebody with habits would answer: the result fits the method, right or wrong."""
        kind, draw = self._kind(self._seed), uniform("habit", self._seed)
        if draw < self._strength:
            return self._by(self._habit[kind], self._seed)
        if draw < (1 + self._strength) / 2:
            return self.right(self._seed)
        names = list(METHODS)
        return self._by(names[int(uniform("any", self._seed) * len(names))], self._seed)

    def _kind(self, seed: int) -> int:
        return int(uniform("kind", seed) * len(self._kinds))

    def _by(self, method: str, seed: int) -> str:
        a, b = self.numbers(seed)
        return f"{method} {METHODS[method](a, b) % self.base}"
