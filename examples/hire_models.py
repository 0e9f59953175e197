"""Two copies of a model are hired to doubt sums: one writes the steps, the other may check it.

    python examples/hire_models.py [--learn 24] [--ask 12] [--price 0.001] [--model NAME]

Whether somebody's claim about a sum is true is known later, from reasoning-gym's own checker. What
each copy's yes and no are worth at each effort is learnt from other sums.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

import numpy as np
import reasoning_gym

from shoal.core.protocols import Prompt, Sampling, Segment
from shoal.core.rng import generator
from shoal.engine.open import open_engine
from shoal.mechanisms.generations import Generations
from shoal.mechanisms.goods.tasks import answer_in
from shoal.mechanisms.hiring.information_acquisition import solve_correlated, worth
from shoal.mechanisms.hiring.panel import Way, Worker, estimated, hire, look, polled

SHOWN = (
    "Question: 4 + 3 + 5\nSteps: 4 + 3 = 7, 7 + 5 = 12.\nAnswer: 12\n\n"
    "Question: 9 + 2 + 6\nSteps: 9 + 2 = 11, 11 + 6 = 17.\nAnswer: 17\n\n"
    "Question: 5 + 8 + 1\nSteps: 5 + 8 = 13, 13 + 1 = 14.\nAnswer: 14\n\n"
)
SAMPLING = Sampling(max_tokens=36, temperature=0.3, top_k=50, stop=("\nQuestion:",))


def asked(count: int) -> tuple[list[str], list[int]]:
    """Claims about sums, and whether each is true by the checker of its task."""
    data: Any = reasoning_gym.create_dataset(
        "chain_sum", size=20 * count, seed=2, min_terms=3, max_terms=3, min_digits=1, max_digits=1
    )
    rng = generator("claims")
    questions, truth = [], []
    for item in [one for one in data if "-" not in one["metadata"]["expression"]][:count]:
        claimed = int(item["answer"]) + int(rng.choice([0, 0, 0, -2, -1, 1]))
        questions.append(f"{item['metadata']['expression']} = {claimed}")
        truth.append(int(data.score_answer(str(claimed), item) == 1.0))
    return questions, truth


def in_steps(question: str) -> Prompt:
    """The sum alone, to be worked out."""
    return Segment(SHOWN), Segment(f"Question: {question.partition(' = ')[0]}\nSteps:")


def agrees(question: str, text: str) -> int:
    """Whether the answer is the one that is claimed."""
    return int(answer_in(text) == question.partition(" = ")[2])


async def main(learn: int, ask: int, price: float, model: str) -> None:
    engine = open_engine(model)
    known = Generations(engine, longest=SAMPLING.max_tokens)
    ways = (Way("guess"), Way("steps", in_steps, agrees, SAMPLING))
    workers = [Worker(name, known, ways) for name in ("anna", "ben")]
    questions, truth = asked(learn + ask)
    seen = await look(workers, questions[:learn])
    held = await look(workers, questions[learn:])
    await engine.close()
    case = estimated(seen, truth[:learn], np.eye(2), price=price)
    contract = solve_correlated(case)
    print(f"expected: {worth(contract, case).utility:.3f} a sum; nobody hired: {case.unhired:.3f}")
    for efforts, often in np.ndenumerate(contract.mu):
        if often > 1e-6:
            told = " and ".join(ways[effort].name for effort in efforts)
            print(f"  told {told}: {often:.1%}")
    for name, terms in (("hired", contract), ("both always", polled(case, (1, 1)))):
        found = hire(case, terms, held, truth[learn:], seed=0)
        print(
            f"{name}: {found.utility.mean():.0%} right, {found.tokens.mean():.1f} tokens a sum, "
            f"{found.paid.mean():.3f} paid"
        )
    print(f"{ask} sums were asked about")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Hire two copies of a model.")
    parser.add_argument("--learn", type=int, default=24)
    parser.add_argument("--ask", type=int, default=12)
    parser.add_argument("--price", type=float, default=0.001)
    parser.add_argument("--model", default="smollm2-135m")
    options = parser.parse_args()
    asyncio.run(main(options.learn, options.ask, options.price, options.model))
