"""A language model reads all wishes and sets the number, beside rules; and models that fish.

The manager chooses by likelihood among multiples of 5 %. It is audited like any rule.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ClassVar

import numpy as np

from shoal.core.claims import Bench
from shoal.core.protocols import Engine, Segment
from shoal.core.stats import mean_interval
from shoal.engine.open import open_engine
from shoal.mechanisms.location.audit import audit
from shoal.mechanisms.location.facility_location import settle
from shoal.mechanisms.location.rules import Floats, Mean, Median, Rule, UniformPhantom

ASKED = 10.0
STEPS = range(0, 101, 5)
FISHERS = {
    "anna": "A fisher who wants fish for the grandchildren says:",
    "ben": "A careful fisher says:",
    "carl": "A fisher who has read the report of the biologists says:",
    "dora": "A fisher with a small boat says:",
    "emil": "A greedy fisher who wants everything now says:",
}
LAKE = (
    "Five fishers share a lake. It holds 100 tons of fish, and what is left doubles each month. "
    "They must agree how many tons each of them may fish this month.\n"
)


class Manager(Rule):
    """Reads all wishes, in descending order, and says a number."""

    name: ClassVar[str] = "language-model manager"

    def __init__(self, engine: Engine, runner: asyncio.Runner) -> None:
        self._engine, self._runner = engine, runner
        self._said: dict[tuple[float, ...], float] = {}

    def place(self, x: Floats, c: Floats) -> Floats:
        """Wishes are told in whole percent."""
        rows = [tuple(row) for row in np.round(x, 2).reshape(-1, x.shape[-1]).tolist()]
        new = [row for row in dict.fromkeys(rows) if row not in self._said]
        self._said.update(zip(new, self._runner.run(self._read(new)), strict=True))
        return np.array([self._said[row] for row in rows]).reshape(x.shape[:-1])

    async def _read(self, rows: list[tuple[float, ...]]) -> list[float]:
        return list(await asyncio.gather(*map(self._choose, rows)))

    async def _choose(self, row: tuple[float, ...]) -> float:
        wishes = "".join(f"Somebody wants {round(100 * one)} percent.\n" for one in row)
        prompt = f"The members of a group want to set one number.\n{wishes}The fair number is"
        found = await self._engine.score((Segment(prompt),), [f" {step} percent" for step in STEPS])
        best = max(range(len(found)), key=lambda place: found[place].logprob)
        return STEPS[best] / 100


def with_models(
    bench: Bench, survival: Callable[[float], int], model: str = "smollm2-135m"
) -> None:
    """Audit the manager; let models fish."""
    engine = open_engine(model)
    with asyncio.Runner() as runner:
        manager = Manager(engine, runner)
        managed(bench, manager)
        fishers(bench, manager, runner, engine, survival)
        runner.run(engine.close())


def managed(bench: Bench, manager: Manager) -> None:
    """Lies that pay under the manager, and how far one liar in five moves it."""
    n, grid, trials = bench.pick(full=(3, 6, 60), smoke=(2, 3, 4))
    found = audit(manager, n, grid=grid, trials=trials, seed=bench.seed)
    short = {one.promise: one.shortfall for one in found.counterexamples}
    bench.arm(
        f"audit of {manager.name}, n={n}",
        gain_by_a_lie=short.get("strategyproof", 0.0),
        gain_of_a_coalition=short.get("group-strategyproof", 0.0),
        short_of_unanimity=short.get("unanimous", 0.0),
        short_of_individual_share=short.get("individual fair share", 0.0),
        short_of_proportional_fairness=short.get("proportional fairness", 0.0),
    )
    bench.verdict(
        f"{manager.name}: largest gain by a lie",
        short.get("strategyproof", 0.0),
        at_least=0.01,
    )
    draws = bench.pick(full=40, smoke=3)
    x_Bn = bench.generator("manager").normal(0.30, 0.1, (draws, 5)).clip(0, 1)
    lies_Bn = x_Bn.copy()
    lies_Bn[:, 0] = 1.0
    for rule in (manager, Mean(), Median(), UniformPhantom()):
        moved = rule(lies_Bn) - rule(x_Bn)
        bench.arm(
            f"{rule.name}: one of five says 100 %",
            shift=mean_interval(moved, seed=bench.seed) if np.ptp(moved) else float(moved[0]),
            largest_shift=float(np.abs(moved).max()),
            from_the_mean_wish=float(np.abs(rule(x_Bn) - x_Bn.mean(axis=1)).mean()),
        )


def fishers(
    bench: Bench,
    manager: Manager,
    runner: asyncio.Runner,
    engine: Engine,
    survival: Callable[[float], int],
) -> None:
    """Models say how much each may fish; a rule settles it, and the lake answers."""
    tons = [f" {step} tons" for step in range(0, 101, 2)]

    async def wish(voice: str) -> float:
        found = await engine.score((Segment(LAKE), Segment(f"{voice} each of us may fish")), tons)
        return float(max(found, key=lambda one: one.logprob).text.split()[0])

    async def wishes() -> list[float]:
        return [await wish(voice) for voice in FISHERS.values()]

    wanted = runner.run(wishes())
    bench.arm(
        "fishers that are models: tons wanted",
        **dict(zip(FISHERS, wanted, strict=True)),
    )
    for high in (100.0, 1.2 * ASKED):
        for rule in (Mean(), Median(), UniformPhantom(), manager):
            cap = settle([min(one, high) for one in wanted], 0, high, rule=rule).value
            bench.arm(
                f"fishers that are models on [0, {high:g}], {rule.name}",
                cap=cap,
                months=survival(cap),
            )
