"""Batches of prompts and answers: groups, turns, and lengths that differ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Rows = tuple[tuple[int, ...], ...]
VOCABULARY = 49_152


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows to learn from: what was seen and what was answered, as token ids."""

    name: str
    prompts: Rows
    actions: Rows

    @property
    def tokens(self) -> int:
        """Tokens that go in where every row is computed by itself."""
        rows = zip(self.prompts, self.actions, strict=True)
        return sum(len(prompt) + len(action) - 1 for prompt, action in rows)

    @property
    def predicted(self) -> int:
        """Positions that predict: those of all answers, what equal prompts end with once."""
        rows = zip(self.prompts, self.actions, strict=True)
        return len({(*seen, *said[:t]) for seen, said in rows for t in range(len(said))})


class Writer:
    """Draws tokens that mean nothing, so that no two answers are alike by chance."""

    def __init__(self, seed: int, vocabulary: int = VOCABULARY) -> None:
        self._random = np.random.default_rng(seed)
        self._vocabulary = vocabulary

    def draw(self, count: int) -> tuple[int, ...]:
        """So many tokens."""
        return tuple(self._random.integers(3, self._vocabulary, count).tolist())

    def group(self, prompt: int, answers: int, answer: int) -> Batch:
        """One prompt and some answers of equal length."""
        seen = self.draw(prompt)
        said = tuple(self.draw(answer) for _ in range(answers))
        return Batch(f"{prompt}+{answers}x{answer}", (seen,) * answers, said)

    def groups(self, count: int, prompt: int, answers: int, answer: int) -> Batch:
        """Several of them."""
        parts = [self.group(prompt, answers, answer) for _ in range(count)]
        return Batch(
            f"{count}x({prompt}+{answers}x{answer})",
            tuple(seen for part in parts for seen in part.prompts),
            tuple(said for part in parts for said in part.actions),
        )

    def unequal(self, groups: int, answers: int) -> Batch:
        """Groups whose prompts and answers are of many lengths, as in practice."""
        prompts, actions = [], []
        for length in self._random.integers(150, 350, groups).tolist():
            seen = self.draw(length)
            lengths = np.clip(self._random.lognormal(3.4, 0.8, answers), 4, 160).astype(int)
            prompts += [seen] * answers
            actions += [self.draw(n) for n in lengths.tolist()]
        return Batch(f"{groups} groups of unequal length", tuple(prompts), tuple(actions))

    def turns(self, *, system: int, tasks: int, rollouts: int, turns: int) -> Batch:
        """Rollouts of several turns: a system prompt for all, a task for some, own turns then.

        Each turn is a row, whose prompt holds all turns before it.
        """
        prompts, actions = [], []
        shared = self.draw(system)
        for _ in range(tasks):
            task = shared + self.draw(48)
            for _ in range(rollouts // tasks):
                seen = task
                for _ in range(turns):
                    said = self.draw(24)
                    prompts.append(seen)
                    actions.append(said)
                    seen = seen + said + self.draw(40)
        return Batch(f"{rollouts} rollouts of {turns} turns", tuple(prompts), tuple(actions))
