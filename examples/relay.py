"""Three calls of a model answer in turn; each is left out once, to see what its words were worth.

    python examples/relay.py [--task sums|circuits] [--tasks 4] [--model NAME]

Tasks are made and checked by reasoning-gym: sums of three digits, or small circuits of gates. A
contribution is how right and how likely the answer becomes; rewards are those of a public goods
game in which tokens are the effort.
"""

from __future__ import annotations

import argparse
import asyncio

import numpy as np
import reasoning_gym

from shoal.core.log import EventLog
from shoal.core.protocols import Sampling
from shoal.engine.open import open_engine
from shoal.mechanisms.generations import Generations
from shoal.mechanisms.goods.contribution_game import Game
from shoal.mechanisms.goods.evaluators import Graded
from shoal.mechanisms.goods.leave_one_out import marginals, rank_correlation
from shoal.mechanisms.goods.prompts import ByExample
from shoal.mechanisms.goods.public_goods import PublicGoods
from shoal.mechanisms.goods.sequence import Group, play
from shoal.mechanisms.goods.tasks import Task, answer_in

NAMES = ("anna", "ben", "carl")
LONGEST = 40


def sums(count: int) -> list[Task]:
    """Sums with their steps."""
    found = []
    for item in reasoning_gym.create_dataset(
        "chain_sum", size=20 * count, seed=1, min_terms=3, max_terms=3, min_digits=1, max_digits=1
    ):
        question = item["metadata"]["expression"]
        if "-" not in question:
            a, b, c = (int(term) for term in question.split(" + "))
            steps = f"{a} + {b} = {a + b}, {a + b} + {c} = {a + b + c}."
            found.append(Task(question, item["answer"], steps))
    return found[:count]


def circuits(count: int) -> list[Task]:
    """Circuits as expressions with their inputs put in, and what each half of them gives."""
    found = []
    for item in reasoning_gym.create_dataset(
        "circuit_logic", size=count, seed=1, min_terms=2, max_terms=2, max_inputs=2, neg_prob=0.0
    ):
        question = item["metadata"]["expression"]
        for name, value in item["metadata"]["assignments"].items():
            question = question.replace(name, str(value))
        found.append(Task(question, item["answer"], "The result is a 0 or a 1."))
    return found


async def main(kind: str, count: int, model: str) -> None:
    shown, asked = np.split(np.array((sums if kind == "sums" else circuits)(count + 5)), [5])
    engine = open_engine(model)
    group = Group(
        PublicGoods(Game(), "all"),
        NAMES,
        dict.fromkeys(NAMES, Generations(engine, longest=LONGEST)),
        ByExample(tuple(shown)),
        Graded(engine),
        LONGEST,
    )
    warm = Sampling(temperature=0.7, top_k=50, max_tokens=LONGEST)
    with EventLog() as log:
        plays = await play(group, list(asked), lambda place, states: [warm] * count, log=log)
        settled = len(list(log.events("settlement")))
    for one in plays:
        answers = [answer_in(turn.spoken.text or "") or "nothing" for turn in one.turns]
        right = "right" if one.right else f"no, {one.task.answer}"
        print(f"{one.task.question} = {', then '.join(answers)} ({right}), {one.tokens} tokens")
    worth = await marginals(group, plays)
    scores = np.array([[turn.score for turn in one.turns] for one in plays])
    for i, name in enumerate(NAMES):
        reward = np.mean([one.reward(name) for one in plays])
        print(
            f"{name}: scored {scores[:, i].mean():.2f}, rewarded {reward:.2f}, and without its "
            f"words the last score is {worth[:, i].mean():+.2f} lower"
        )
    print(f"rank correlation of score and worth: {rank_correlation(scores, worth):.2f}")
    print(f"{settled} settlements are in the log")
    await engine.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Answer in turn, and leave each out once.")
    parser.add_argument("--task", choices=("sums", "circuits"), default="sums")
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--model", default="smollm2-135m")
    options = parser.parse_args()
    asyncio.run(main(options.task, options.tasks, options.model))
