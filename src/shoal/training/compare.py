"""Algorithms side by side: paired seeds, one warm start a seed, the same number of steps.

Every arm of a seed begins from the same weights and plays the same tasks in the same order until it
has taken as many environment steps as the others. What counts is success on held-out tasks over
these steps, as the area under the curve, and intervals are over seeds, paired.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.core.errors import ConfigError
from shoal.core.stats import Interval, difference_interval, mean_interval
from shoal.training.config import RunConfig, parse_run
from shoal.training.setup import build

Weights = dict[str, NDArray[np.float32]]
OnDone = Callable[[str, int, int], None]
"""Called with a label, how many runs are done and how many there are."""
GRID = 101
"""Points at which curves are compared."""


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """What all arms of a seed begin with: weights, and held-out success before training."""

    seed: int
    weights: Weights
    success: float
    told: Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """One arm on one seed.

    env_steps, success  where held-out success was measured, and what it was
    metrics             means over iterations of everything the run told
    measured            all that each measurement told
    told                all that each iteration told
    """

    arm: str
    seed: int
    env_steps: tuple[int, ...]
    success: tuple[float, ...]
    metrics: Mapping[str, float]
    measured: tuple[Mapping[str, float], ...]
    told: tuple[Mapping[str, float], ...]
    cpu_seconds: float

    @property
    def held_out(self) -> Mapping[str, float]:
        """What the last measurement told."""
        return self.measured[-1]

    def at(self, budget: int) -> NDArray[np.float64]:
        """Success at even places from no steps to ``budget``, [GRID]."""
        wanted = np.linspace(0, budget, GRID)
        curve: NDArray[np.float64] = np.interp(wanted, self.env_steps, self.success)
        return curve

    def auc(self, budget: int) -> float:
        """Mean success over the steps up to ``budget``, in [0, 1]."""
        curve = self.at(budget)
        return float((curve[1:] + curve[:-1]).mean() / 2)


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """All curves; ``budget`` is the number of steps that every arm took at least."""

    curves: tuple[Curve, ...]
    starts: tuple[Start, ...]
    budget: int

    def of(self, arm: str) -> list[Curve]:
        """An arm's curves by seed."""
        return sorted((c for c in self.curves if c.arm == arm), key=lambda curve: curve.seed)

    def on(self, seeds: Sequence[int]) -> Comparison:
        """The same of some seeds."""
        return Comparison(
            tuple(curve for curve in self.curves if curve.seed in seeds),
            tuple(start for start in self.starts if start.seed in seeds),
            self.budget,
        )

    def aucs(self, arm: str) -> list[float]:
        """Area under an arm's curve, by seed."""
        return [curve.auc(self.budget) for curve in self.of(arm)]

    def finals(self, arm: str) -> list[float]:
        """Success at the end of the budget, by seed."""
        return [float(curve.at(self.budget)[-1]) for curve in self.of(arm)]

    def difference(self, arm: str, baseline: str) -> Interval:
        """Area of an arm minus the baseline's, with its interval over paired seeds."""
        return difference_interval(self.aucs(arm), self.aucs(baseline), paired=True)

    def area(self, arm: str) -> Interval:
        """Mean area of an arm."""
        return mean_interval(self.aucs(arm))

    def measured(self, arm: str, name: str) -> NDArray[np.float64]:
        """What was measured on held-out tasks at even places up to the budget, [seeds, GRID]."""
        wanted = np.linspace(0, self.budget, GRID)
        rows = [
            np.interp(wanted, curve.env_steps, [one.get(name, 0.0) for one in curve.measured])
            for curve in self.of(arm)
        ]
        return np.array(rows, dtype=np.float64)

    def metric(self, arm: str, name: str) -> float:
        """Mean of a metric over an arm's runs."""
        return float(np.mean([curve.metrics.get(name, 0.0) for curve in self.of(arm)]))


def begin(config: RunConfig) -> Start:
    """The warm start of a seed, and how well it does on held-out tasks."""

    async def run() -> Start:
        trainer = build(config)
        told = await trainer.warm_up()
        measured = await trainer.evaluate()
        weights = {
            name: tensor.detach().numpy().copy() for name, tensor in trainer.policy.trained.items()
        }
        return Start(config.seed, weights, measured["held_out.success"], told | measured)

    with _quietly():
        return asyncio.run(run())


def play(name: str, config: RunConfig, start: Start) -> Curve:
    """Train one arm from a start until its budget of steps is spent."""
    import torch

    from shoal.training.policies import set_weights

    async def run() -> Curve:
        trainer = build(config)
        weights = {key: torch.from_numpy(array) for key, array in start.weights.items()}
        set_weights(trainer.policy, weights)
        began, told = time.process_time(), list[Mapping[str, float]]()
        steps, measured = [0], [start.told]
        while not trainer.ended:
            told.append((await trainer.iterate()).metrics)
            if trainer.ended or trainer.done % config.evaluation.every == 0:
                steps.append(trainer.env_steps)
                measured.append(await trainer.evaluate())
        names = {key for one in told for key in one}
        means = {key: float(np.mean([one.get(key, 0.0) for one in told])) for key in names}
        success = (start.success, *(one["held_out.success"] for one in measured[1:]))
        seconds = time.process_time() - began
        return Curve(
            name,
            config.seed,
            tuple(steps),
            success,
            means,
            tuple(measured),
            tuple(told),
            seconds,
        )

    with _quietly():
        return asyncio.run(run())


def compare(
    base: RunConfig,
    arms: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    *,
    workers: int = 1,
    on_done: OnDone = lambda label, done, total: None,
    starts: Sequence[Start] = (),
    how: Callable[[str, RunConfig, Start], Curve] = play,
) -> Comparison:
    """Train every arm on every seed.

    arms    what each changes in the run file, as a table of it
    starts  of these seeds, where they are known from an earlier comparison
    how     trains one arm on one seed; a function of a module, as it is called in other processes

    Raises :class:`ConfigError` for a base that never evaluates, or less than two seeds.
    """
    if not base.evaluation.every:
        raise ConfigError("A comparison measures held-out success: set evaluation.every.")
    if len(seeds) < 2:
        raise ConfigError(f"An interval needs at least two seeds, not {len(seeds)}.")
    configs = {
        (name, seed): merged(base, {"seed": seed, **changes})
        for seed in seeds
        for name, changes in arms.items()
    }
    known = {start.seed: start for start in starts}
    missing = [merged(base, {"seed": seed}) for seed in seeds if seed not in known]
    total = len(missing) + len(configs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_single_thread) as pool:
        begun = pool.map(begin, missing)
        for done, start in enumerate(begun, 1):
            known[start.seed] = start
            on_done("warm starts", done, total)
        futures = [
            pool.submit(how, name, config, known[seed]) for (name, seed), config in configs.items()
        ]
        curves = []
        for done, future in enumerate(as_completed(futures), len(missing) + 1):
            curves.append(future.result())
            on_done("runs", done, total)
    curves.sort(key=lambda curve: (curve.seed, list(arms).index(curve.arm)))
    budget = min(curve.env_steps[-1] for curve in curves)
    if base.env_steps is not None:
        budget = min(budget, base.env_steps)
    return Comparison(tuple(curves), tuple(known[seed] for seed in seeds), budget)


def merged(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """A run file with some of its entries changed; raises :class:`ConfigError` as parsing does."""
    return parse_run(_merge(config.model_dump(), changes))


def _merge(table: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(table)
    for name, value in changes.items():
        old = found.get(name)
        whole = name == "options" or not (isinstance(old, Mapping) and isinstance(value, Mapping))
        found[name] = value if whole else _merge(old, value)  # type: ignore[arg-type]
    return found


def _single_thread() -> None:
    import torch

    torch.set_num_threads(1)


class _quietly(warnings.catch_warnings):  # noqa: N801  (reads like the context it is)
    """Many runs at once say the same warnings many times."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
