"""Three agents that answer sums: one small model, told by three different sets of examples.

Copies with the same examples err together, and hearing each other tells them nothing. The
weakest speaks first and the strongest last, as published; strength is measured on sums to learn
from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from shoal.core.protocols import Sampling
from shoal.mechanisms.generations import Generations, Spoken
from shoal.mechanisms.goods.contribution_game import Game
from shoal.mechanisms.goods.evaluators import Graded
from shoal.mechanisms.goods.prompts import Asking, ByAnswers, ByExample, Each, Heard
from shoal.mechanisms.goods.public_goods import Observe, PublicGoods
from shoal.mechanisms.goods.sequence import Group
from shoal.mechanisms.goods.tasks import Task
from shoal.training.decoding_policy import Ranges

NAMES = ("first", "second", "third")
EXAMPLES = 5
BUDGET = 200
"""Tokens that an arm may generate for a sum, shared equally by its calls."""
LONGEST = 50
"""Tokens of one call at most: twice what an answer takes."""
RANGES = Ranges(max_tokens=(10, LONGEST), levels=3)
STOP = ("\n\n",)
WRONG = {
    "answers, wrong in 3 of 10": ((0, 1), (0, 0), (-2, 0), (0, -1), (0, 0)),
    "answers, wrong in 7 of 10": ((-1, 2), (1, 0), (0, -2), (2, -1), (-3, 0)),
    "answers, all wrong": ((-1, 2), (1, -2), (3, -2), (2, -1), (-3, 1)),
}
"""By how much two others are off in what examples show of them."""


def hearing_answers(shown: Sequence[Task], how: str = "answers, wrong in 3 of 10") -> ByAnswers:
    """An agent whose examples show what two others answered, of which some is wrong."""
    said = tuple(
        tuple(str(int(task.answer) + off) for off in offs)
        for task, offs in zip(shown, WRONG[how], strict=True)
    )
    return ByAnswers(tuple(shown), said, STOP)


def hearing_texts(shown: Sequence[Task]) -> ByExample:
    """An agent that reads the whole texts of others as if they were worked examples."""
    return ByExample(tuple(shown), STOP)


def each(ways: Sequence[Asking]) -> Each:
    """One way of asking an agent, in the order of speaking."""
    return Each(dict(zip(NAMES, ways, strict=True)))


@dataclass(slots=True)
class Room:
    """What the model said so far, how agents are asked, on which sums, and how they are scored."""

    known: Generations
    asking: Each
    tasks: list[Task]
    grade: Graded
    game: Game = field(default_factory=Game)
    silent: int = 0
    """How many others a member that hears nobody is told of, as having said nothing."""

    @property
    def seeds(self) -> list[int]:
        """Of each sum's generations; others than those that policies learn with."""
        return [10_000 + k for k in range(len(self.tasks))]

    def group(self, observe: Observe) -> Group:
        """The three in sequence."""
        models = dict.fromkeys(NAMES, self.known)
        mechanism = PublicGoods(self.game, observe)
        return Group(mechanism, NAMES, models, self.asking, self.grade, LONGEST)

    async def say(
        self,
        sampling: Sampling,
        member: int,
        heard: Sequence[Sequence[Heard]] | None = None,
        limit: int = LONGEST,
        *,
        again: int = 0,
    ) -> list[Spoken]:
        """One member's answers to all sums; ``again`` numbers further ones of the same."""
        asked = replace(sampling, max_tokens=limit, stop=self.asking.stop)
        heard = heard or [[Heard("nobody", None)] * self.silent for _ in self.tasks]
        return await self.known.generate(
            [
                self.asking(task.question, NAMES[member], 1, 1, earlier)
                for task, earlier in zip(self.tasks, heard, strict=True)
            ],
            [replace(asked, seed=3 * seed + member + 100_000 * again) for seed in self.seeds],
        )
