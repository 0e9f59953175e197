"""Hiring two copies of a small model to doubt sums: one works, the other checks it now and then.

Sub-agents answer whether a sum is what somebody says. They guess, answer at once, or write the sum
out. Signal laws and costs come from items of their own; the contract is then held to others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from deciding.sums import Doubt, apart, doubts
from shoal.core.claims import Bench
from shoal.core.protocols import Engine, Prompt, Sampling, Segment
from shoal.core.stats import difference_interval, ratio_interval, wilson_interval
from shoal.engine.open import open_engine
from shoal.mechanisms.generations import Generations
from shoal.mechanisms.goods.prompts import ByExample
from shoal.mechanisms.goods.tasks import Task, answer_in
from shoal.mechanisms.hiring.information_acquisition import (
    audit_ic,
    solve_correlated,
    solve_uncorrelated,
    worth,
)
from shoal.mechanisms.hiring.panel import Hired, Seen, Way, Worker, estimated, hire, look, polled
from shoal.mechanisms.hiring.problem import AcquisitionProblem, largest_gain

PRICE = 0.001
"""Utility of a token: a right answer is worth a thousand."""
LONGEST = 40
SPOKEN = Sampling(max_tokens=LONGEST, temperature=0.3, top_k=50)


def worded(doubt: Doubt) -> str:
    """A doubt as a question."""
    return f"Is {doubt.task.question} = {doubt.claimed}?"


def sum_of(question: str) -> str:
    """The sum in a question."""
    return question.removeprefix("Is ").partition(" = ")[0]


def agrees(question: str, text: str) -> int:
    """1 where the text's answer is the number in the question, else 0."""
    claimed = question.partition(" = ")[2].rstrip("?")
    return int((answer_in(text) or "") == claimed)


def worker(name: str, known: Generations, examples: tuple[Task, ...]) -> Worker:
    """A copy of the model that guesses, answers at once, or writes the steps."""
    steps = ByExample(examples)
    shown = "".join(f"Question: {one.question}\nAnswer: {one.answer}\n\n" for one in examples)

    def at_once(question: str) -> Prompt:
        return Segment(shown), Segment(f"Question: {sum_of(question)}\n")

    def in_steps(question: str) -> Prompt:
        return steps(sum_of(question), name, 1, 1, [])

    stop = ("\n\n", "\nQuestion:")
    short = Sampling(max_tokens=8, temperature=0.3, top_k=50, stop=stop)
    long = Sampling(max_tokens=LONGEST, temperature=0.3, top_k=50, stop=stop)
    return Worker(
        name,
        known,
        (
            Way("guess"),
            Way("at once", at_once, agrees, short),
            Way("steps", in_steps, agrees, long),
        ),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """Two workers as they were seen on items to learn from, and on items to be held to."""

    learnt: Seen
    held: Seen


async def panels(
    engine: Engine, examples: list[Task], learnt: list[str], held: list[str], seed: int
) -> dict[str, Panel]:
    """Two copies with the same examples, and two with different ones."""
    known = Generations(engine, longest=LONGEST)
    first, second = tuple(examples[:5]), tuple(examples[5:10])
    pairs = {
        "copies": (worker("anna", known, first), worker("ben", known, first)),
        "different examples": (worker("anna", known, first), worker("carl", known, second)),
    }

    async def panel(pair: tuple[Worker, Worker]) -> Panel:
        sets = (learnt, held)
        return Panel(*await asyncio.gather(*(look(pair, asked, seed=seed) for asked in sets)))

    found = await asyncio.gather(*map(panel, pairs.values()))
    return dict(zip(pairs, found, strict=True))


def with_models(bench: Bench, model: str = "smollm2-135m") -> None:
    """Contracts from 60 items, held to 140 others."""
    count, held = bench.pick(full=(60, 140), smoke=(12, 10))
    examples, learn, hold = apart((10, count, held), bench.seed_of("sums") % 2**31)
    known = doubts(learn, bench.generator("claims", "learn"))
    asked = doubts(hold, bench.generator("claims", "hold"))
    engine = open_engine(model)

    async def work() -> dict[str, Panel]:
        try:
            return await panels(
                engine, examples, [worded(one) for one in known], [worded(one) for one in asked],
                bench.seed,
            )  # fmt: skip
        finally:
            await engine.close()

    truth = [int(one.true) for one in asked]
    for name, panel in asyncio.run(work()).items():
        compare(bench, name, panel, [int(one.true) for one in known], truth)


def compare(bench: Bench, name: str, panel: Panel, known: list[int], truth: list[int]) -> None:
    """One pair of workers: the contract beside polling both and beside one alone."""
    utility = np.eye(2)
    case = estimated(panel.learnt, known, utility, price=PRICE)
    contract = solve_correlated(case)
    alone = solve_uncorrelated(case)
    most = tuple(count - 1 for count in case.efforts)
    arms: dict[str, Callable[[], Hired]] = {
        "hired": lambda: hire(case, contract, panel.held, truth, seed=bench.seed),
        "both in steps": lambda: hire(case, polled(case, most), panel.held, truth, seed=bench.seed),
        "the first in steps": lambda: hire(
            case, polled(case, (most[0], 0)), panel.held, truth, seed=bench.seed
        ),
        "both at once": lambda: hire(
            case, polled(case, (1, 1)), panel.held, truth, seed=bench.seed
        ),
        "nobody": lambda: hire(case, polled(case, (0, 0)), panel.held, truth, seed=bench.seed),
    }
    found = {arm: play() for arm, play in arms.items()}
    for arm, one in found.items():
        right = int(one.utility.sum())
        bench.arm(
            f"{name}: {arm}",
            accuracy=wilson_interval(right, len(truth)),
            tokens=float(one.tokens.mean()),
            less_tokens_at_price=float((one.utility - PRICE * one.tokens).mean()),
            paid=float(one.paid.mean()),
            kept_after_pay=float((one.utility - one.paid).mean()),
            working=float(one.working.mean()),
        )
    _law(bench, name, panel, known, truth, case)
    held = estimated(panel.held, truth, utility, price=PRICE)
    audit = audit_ic(contract, case)
    best = worth(contract, case)
    bench.arm(
        f"{name}: contract",
        expected_utility=best.utility,
        each_judged_alone=alone.terms.utility,
        nobody_hired=case.unhired,
        share_of_rounds_both_work=float(contract.mu[1:, 1:].sum()),
        gain_by_a_deviation=max((one.shortfall for one in audit.counterexamples), default=0.0),
        gain_if_held_items_are_the_law=largest_gain(contract, held.P, held.differences),
    )
    hired, both = found["hired"], found["both in steps"]
    bench.verdict(
        f"{name}: accuracy of the hired less that of both at full effort",
        difference_interval(hired.utility, both.utility, paired=True, seed=bench.seed),
        at_least=-0.01 - 1e-9,
    )
    ratio = (
        ratio_interval(hired.tokens, both.tokens, seed=bench.seed) if hired.tokens.any() else 0.0
    )
    bench.verdict(f"{name}: tokens of the hired by those of both", ratio, at_most=0.5)
    claim = f"{name}: gain by a deviation under the laws that were estimated"
    bench.verdict(claim, largest_gain(contract, case.P, case.differences), at_most=1e-7)


def _law(
    bench: Bench,
    name: str,
    panel: Panel,
    known: list[int],
    truth: list[int],
    case: AcquisitionProblem,
) -> None:
    """How often each agent is right at each effort, on both sets of items, and how they agree."""
    for i in range(case.agents):
        for b, effort in enumerate(("guess", "at once", "steps")):
            bench.arm(
                f"{name}: agent {i + 1}, {effort}",
                right_where_learnt=float((panel.learnt.signals[:, i, b] == known).mean()),
                right_where_held=float((panel.held.signals[:, i, b] == truth).mean()),
                tokens_where_held=float(panel.held.tokens[:, i, b].mean()),
                cost=float(case.costs[i][b]),
            )
    steps = panel.held.signals[:, :, -1]
    wrong = steps != np.array(truth)[:, None]
    bench.arm(
        f"{name}: errors in steps",
        say_the_same=float((steps[:, 0] == steps[:, 1]).mean()),
        both_wrong=float(wrong.all(axis=1).mean()),
        both_wrong_if_independent=float(wrong.mean(axis=0).prod()),
    )
