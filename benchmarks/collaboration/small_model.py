"""One to five agents on a small real model, at the same number of generated tokens an item.

Items are generated and checked exactly: sums and differences, what to do with a word, which word
is of a kind. Every arm may generate as many tokens an item as the single agent; prompts are what
the arm needs, and are counted. Nothing is promised about accuracy, only about what sharing saves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from shoal.agents import Agent, Protocol, Team, TeamResult, run
from shoal.agents.votes import ballot
from shoal.core.protocols import Engine, Sampling

GENERATED = 60
"""Tokens an arm may generate for an item."""
AT_ONCE = 8
"""Items that are worked on at the same time."""

_EXAMPLES = (
    "These are short exercises. Read the exercise, then give the answer on one line, after the "
    "word Answer and a colon, and nothing else.\n\n"
    "Exercise: What is 4 + 3?\nAnswer: 7\n\n"
    "Exercise: What is 12 - 5?\nAnswer: 7\n\n"
    "Exercise: Write the word tree in capital letters.\nAnswer: TREE\n\n"
    "Exercise: How many letters has the word bread?\nAnswer: 5\n\n"
    "Exercise: Which of these is a color: dog, blue, seven?\nAnswer: blue\n\n"
    "Exercise: Which of these is an animal: horse, red, spoon?\nAnswer: horse\n\n"
    "Exercise: What is the first letter of the word lamp?\nAnswer: l\n"
)

_KINDS = {
    "a color": ("green", "yellow", "purple", "white", "brown"),
    "an animal": ("cow", "lion", "rabbit", "eagle", "shark"),
    "a number": ("three", "nine", "eleven", "forty", "two"),
    "a fruit": ("apple", "banana", "cherry", "grape", "lemon"),
}


@dataclass(frozen=True, slots=True)
class Item:
    """An exercise and its only right answer, in lower case."""

    question: str
    answer: str


def items(count: int, rng: np.random.Generator) -> list[Item]:
    """Exercises of the three sorts in turn, none twice."""
    made: dict[str, Item] = {}
    makers = (_sum, _word, _kind)
    while len(made) < count:
        item = makers[len(made) % 3](rng)
        made.setdefault(item.question, item)
    return list(made.values())


def _sum(rng: np.random.Generator) -> Item:
    a, b = (int(x) for x in rng.integers(1, 10, 2))
    if rng.random() < 0.5:
        return Item(f"What is {a} + {b}?", str(a + b))
    a, b = max(a, b), min(a, b)
    return Item(f"What is {a} - {b}?", str(a - b))


def _word(rng: np.random.Generator) -> Item:
    words = [word for group in _KINDS.values() for word in group]
    word = words[int(rng.integers(len(words)))]
    how = int(rng.integers(3))
    if how == 0:
        return Item(f"Write the word {word} in capital letters.", word)
    if how == 1:
        return Item(f"How many letters has the word {word}?", str(len(word)))
    return Item(f"What is the first letter of the word {word}?", word[0])


def _kind(rng: np.random.Generator) -> Item:
    kinds = list(_KINDS)
    order = [kinds[int(i)] for i in rng.permutation(len(kinds))[:3]]
    words = [_KINDS[kind][int(rng.integers(5))] for kind in order]
    listed = ", ".join(words[int(i)] for i in rng.permutation(3))
    return Item(f"Which of these is {order[0]}: {listed}?", words[0])


@dataclass(frozen=True, slots=True)
class Arm:
    """A way to work, for ``n`` agents."""

    name: str
    n: int
    team: Callable[[str], Team]


WARM = 0.4
"""The temperature of members that must differ; on items of another seed 0.7 did worse."""


def _agents(name: str, copies: int, tokens: int, temperature: float = WARM) -> Agent:
    sampling = Sampling(max_tokens=tokens, temperature=temperature, stop=("\n",))
    return Agent(name, "Answer with one word or number only.", copies=copies, sampling=sampling)


def single(temperature: float) -> Callable[[str], Team]:
    """One agent with all the tokens."""

    def make(sheet: str) -> Team:
        solver = _agents("solver", 1, GENERATED, temperature)
        return _team(sheet, (solver,), Protocol("all", "last"), "none")

    return make


def consistent(n: int) -> Callable[[str], Team]:
    """n agents that hear nobody; the plurality."""

    def make(sheet: str) -> Team:
        member = _agents("solver", n, GENERATED // n)
        return _team(sheet, (member,), Protocol("all", "vote"), "none")

    return make


def debating(n: int) -> Callable[[str], Team]:
    """n agents, two rounds, everybody hears everybody; the plurality."""

    def make(sheet: str) -> Team:
        member = _agents("solver", n, GENERATED // (2 * n))
        return _team(sheet, (member,), Protocol("all", "vote", "rounds(2)"), "mesh")

    return make


def judging(n: int) -> Callable[[str], Team]:
    """n - 1 agents that hear nobody, and one that reads them all and answers."""

    def make(sheet: str) -> Team:
        voters = _agents("solver", n - 1, GENERATED // n)
        judge = Agent(
            "judge",
            "Answer with one word or number only; the others may be wrong.",
            sampling=Sampling(max_tokens=GENERATED // n, stop=("\n",)),
            dense=True,
        )
        protocol = Protocol("all(but=judge)", "judge(judge)")
        return _team(sheet, (voters, judge), protocol, "none")

    return make


def _team(sheet: str, members: tuple[Agent, ...], protocol: Protocol, channels: str) -> Team:
    """Only the agents of one arm and item share prompts: these begin with their sheet's name."""
    return Team("arm", members, protocol, channels, preamble=f"Sheet {sheet}.\n\n{_EXAMPLES}")


ARMS = (
    Arm("single, greedy", 1, single(0.0)),
    Arm("single, sampled", 1, single(WARM)),
    *(Arm("self-consistency", n, consistent(n)) for n in (3, 5)),
    *(Arm("debate", n, debating(n)) for n in (3, 5)),
    *(Arm("judge", n, judging(n)) for n in (3, 5)),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One arm on all items: which it got right, and what that cost."""

    right: np.ndarray
    prompt_tokens: int
    computed_tokens: int
    generated_tokens: int
    most_generated: int
    common: float
    seconds: float


async def measure(
    arm: Arm, exercises: Sequence[Item], engine: Engine, seed: int, now: Callable[[], float]
) -> Outcome:
    """Let the arm do the exercises."""
    gate = asyncio.Semaphore(AT_ONCE)
    began = now()

    async def one(number: int, item: Item) -> TeamResult:
        async with gate:
            task = f"Exercise: {item.question}"
            sheet = f"{number} {arm.name} {arm.n} {seed}"
            return await run(arm.team(sheet), task, engine=engine, seed=seed + number)

    done = await asyncio.gather(*(one(i, item) for i, item in enumerate(exercises)))
    seconds = now() - began
    usages = [result.episode.usage for result in done]
    right = [
        result.result is not None and ballot(result.result) == item.answer
        for result, item in zip(done, exercises, strict=True)
    ]
    steps = [step for result in done for step in result.episode.steps]
    common = [engine.count_tokens((step.prompt[0],)) / step.usage.prompt_tokens for step in steps]
    return Outcome(
        np.array(right),
        sum(usage.prompt_tokens for usage in usages),
        sum(usage.computed_prompt_tokens for usage in usages),
        sum(usage.decoded_tokens for usage in usages),
        max(usage.decoded_tokens for usage in usages),
        min(common),
        seconds,
    )
