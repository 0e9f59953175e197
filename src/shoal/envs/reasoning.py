"""Tasks of reasoning-gym: one question, one answer, scored by the task's own verifier."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping
from functools import partial
from typing import Any

from shoal.core.errors import ConfigError, MissingExtra
from shoal.envs.protocol import BadEnvironment, Transition

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_SPLIT = re.compile(r"[^\W\d]+|\d|[^\w\s]")


class Reasoning:
    """One task family; a seed is a question. The reward is the verifier's score, in [0, 1].

    tags    the answer stands inside <answer> tags; otherwise it is the whole text
    spaced  questions and answers are spelled sign by sign, for policies of words
    config  knobs of the task, such as ``max_terms``
    """

    reward_min, reward_max = 0.0, 1.0
    max_steps = 1
    answers = True
    blocking = False

    def __init__(
        self,
        task: str = "chain_sum",
        config: Mapping[str, Any] | None = None,
        tags: bool = False,
        spaced: bool = False,
    ) -> None:
        self.name = f"reasoning-gym {task}"
        self._tags, self._spaced = tags, spaced
        try:
            import reasoning_gym
        except ModuleNotFoundError as error:
            raise MissingExtra("reasoning-gym", "envs") from error
        try:
            self._make = partial(reasoning_gym.create_dataset, task, size=1, **dict(config or {}))
            self._data = self._make(seed=0)
        except (ValueError, TypeError, AssertionError) as error:
            raise ConfigError(f"reasoning-gym cannot make {task!r}: {error}.") from error
        self._known: dict[int, tuple[Any, Mapping[str, Any]]] = {}
        self._item: Mapping[str, Any] = {}
        self._seed = 0
        self._answer: str | None = None

    @property
    def instructions(self) -> str:
        """How to answer."""
        return "Give your answer inside <answer> and </answer>." if self._tags else "Answer."

    def words(self) -> tuple[str, ...]:
        """Signs and words of the questions; answers are spelled with them."""
        known = {*"0123456789", "-", "+", "*", "/", "="}
        for seed in range(200):
            known.update(self.reset(seed).split())
            known.update(self._spell(str(self._item["answer"])).split())
        return tuple(sorted(known))

    def reset(self, seed: int) -> str:
        """The question of this seed."""
        if seed not in self._known:
            data = self._make(seed=seed)
            self._known[seed] = (data, data[0])
        self._data, self._item = self._known[seed]
        self._seed, self._answer = seed, None
        return self._spell(str(self._item["question"]))

    def step(self, action: str) -> Transition:
        """Answer."""
        self._answer = self._read(action)
        score = float(self._data.score_answer(self._answer, self._item))
        if not (math.isnan(score) or 0 <= score <= 1):
            raise BadEnvironment(f"{self.name} scores {score}, outside of [0, 1].")
        return Transition("", score, True, valid=self._answer is not None, solved=score >= 1)

    def state_key(self) -> Hashable:
        """The question: there is one state."""
        return self._seed

    def admissible_actions(self) -> tuple[str, ...]:
        """Answers are free."""
        return ()

    @property
    def final_answer(self) -> Hashable | None:
        """A number where the answer is one, so that 0.5 and 1/2 agree; otherwise its text."""
        return None if self._answer is None else canonical(self._answer)

    def snapshot(self) -> Any:
        """The question, and the answer if there is one."""
        return self._seed, self._answer

    def restore(self, snapshot: Any) -> None:
        """Go back to a snapshot."""
        seed, answer = snapshot
        self.reset(seed)
        self._answer = answer

    def close(self) -> None:
        """Nothing is held."""

    def expert_action(self) -> str:
        """The right answer."""
        answer = self._spell(str(self._item["answer"]))
        return f"<answer>{answer}</answer>" if self._tags else answer

    def _spell(self, text: str) -> str:
        return " ".join(_SPLIT.findall(text)) if self._spaced else text

    def _read(self, text: str) -> str | None:
        found = _ANSWER.findall(text) if self._tags else [text]
        answer = found[0].strip() if len(found) == 1 else ""
        return (answer.replace(" ", "") if self._spaced else answer) or None


def canonical(answer: str) -> Hashable:
    """Answers that mean the same are equal: numbers and fractions by value, texts by their words.

    Numbers are compared exactly, as fractions.
    """
    from fractions import Fraction

    text = " ".join(answer.split()).rstrip(".").lower()
    try:
        return Fraction(text.replace(",", "").replace(" ", ""))
    except (ValueError, ZeroDivisionError):
        return text
