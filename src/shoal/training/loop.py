"""The loop: play groups, estimate advantages, move the weights, serve them.

Everything here is a function of the run file and of how many iterations are done: draws are keyed
by their names, so a run that is resumed goes on bit for bit.

Shapes: R rows, C advantage columns.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from shoal.core.errors import ShoalError
from shoal.core.rng import generator
from shoal.envs.aliasing import aliasing
from shoal.training.advantage import Advantages
from shoal.training.config import RunConfig
from shoal.training.correction import fresh
from shoal.training.estimators import Estimator, settle_degenerate
from shoal.training.gigpo import anchored
from shoal.training.policies import Policy
from shoal.training.rollout import GroupRunner, Rollout
from shoal.training.rows import Row, batch_of
from shoal.training.samplers import Sampler, StaleSampler, canary
from shoal.training.update import Learner
from shoal.training.warm_start import warm_start


@dataclass(frozen=True, slots=True, eq=False)
class Iteration:
    """What one iteration did: its number from 1, what was played, learned from and measured."""

    number: int
    rollout: Rollout
    rows: tuple[Row, ...]
    credit: Advantages
    metrics: Mapping[str, float]


class Trainer:
    """One run. :meth:`iterate` moves it on; :meth:`evaluate` measures it on held-out tasks."""

    def __init__(
        self,
        config: RunConfig,
        *,
        policy: Policy,
        sampler: Sampler,
        runner: GroupRunner,
        estimate: Estimator,
        learner: Learner,
    ) -> None:
        self.config, self.policy, self.sampler = config, policy, sampler
        self.runner, self.learner = runner, learner
        self.done = 0
        self.env_steps = 0
        self._estimate = estimate

    @property
    def progress(self) -> float:
        """How far training is, from 0 to 1: by iterations, or by steps where these are limited."""
        limit = self.config.env_steps
        by_steps = self.env_steps / limit if limit else 0.0
        return min(1.0, max(self.done / self.config.iterations, by_steps))

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to do."""
        return self.progress >= 1

    async def warm_up(self) -> dict[str, float]:
        """The warm start the run file asks for, if any; what came of it."""
        return await warm_start(self.config, self.policy, self.runner, self.learner.forward)

    async def iterate(self) -> Iteration:
        """Play, credit, learn, serve.

        Raises :class:`StaleSampler` where the sampler still answers with the weights before.
        """
        started = time.perf_counter()
        rollout = await self._play()
        played = time.perf_counter()
        rows, credit, told = self.credit(rollout)
        credited = time.perf_counter()
        served, own = await self.sampler.canary(), canary(self.policy)
        told |= self.learner.learn(rows, credit, exact=self.sampler.exact, name=self.done)
        await self._serve(served, moved=canary(self.policy) != own)
        ended = time.perf_counter()
        self.done += 1
        self.env_steps += rollout.env_steps
        told |= played_stats(rollout) | {
            "env_steps": float(self.env_steps),
            "seconds.rollout": played - started,
            "seconds.advantage": credited - played,
            "seconds.update": ended - credited,
            "tokens_per_second": rollout.tokens / max(played - started, 1e-9),
        }
        return Iteration(self.done, rollout, tuple(rows), credit, told)

    async def evaluate(self) -> dict[str, float]:
        """Success, return and steps on held-out tasks; nothing is learned from them."""
        setting, tasks = self.config.evaluation, range(*self.config.environment.held_out)
        drawing = replace(self.runner.drawing, temperature=setting.temperature)
        found = await self.runner.run(
            tasks, setting.episodes, name="held out", progress=self.progress, drawing=drawing
        )
        told = {
            "held_out.success": float(np.mean([one.solved for one in found.played])),
            "held_out.return": float(np.mean([one.total for one in found.played])),
            "held_out.steps": float(np.mean([one.steps for one in found.played])),
            **{f"held_out.{name}": value for name, value in marks(found.rows).items()},
        }
        if self.runner.environment.answers and setting.episodes > 1:
            told["held_out.majority"] = majority(found)
        if setting.greedy:
            likeliest = replace(drawing, temperature=0.0)
            found = await self.runner.run(
                tasks, 1, name="held out", progress=self.progress, drawing=likeliest
            )
            told["held_out.greedy"] = float(np.mean([one.solved for one in found.played]))
            told |= {f"held_out.greedy_{name}": v for name, v in marks(found.rows).items()}
        return told

    def tasks(self, place: int) -> list[int]:
        """The place-th handful of different training tasks; every pass has an order of its own.

        What is left over at the end of a pass, less than a handful, is not played in it.
        """
        first, last = self.config.environment.train
        count = self.config.groups.tasks
        lap, at = divmod(place, (last - first) // count)
        order = generator(self.config.seed, "tasks", lap).permutation(last - first)
        return [first + int(task) for task in order[at * count : (at + 1) * count]]

    def credit(self, rollout: Rollout) -> tuple[list[Row], Advantages, dict[str, float]]:
        """Rows that are learned from, and what each is credited with.

        Raises :class:`ShoalError` where all rows are too old to be learned from.
        """
        groups, max_lag = self.config.groups, self.config.correction.max_lag
        rows, told = fresh(rollout.rows, self.policy.version, max_lag)
        if not rows:
            raise ShoalError(
                f"All {len(rollout.rows)} rows are more than {max_lag} updates old: raise "
                "correction.max_lag, or sample more often."
            )
        told |= aliasing(
            [(row.task, row.observation) for row in rows], [row.state_key for row in rows]
        ).told
        anchors = anchored(rows, groups.keys, groups.similar)
        env = self.runner.environment
        batch = batch_of(
            self.learner.penalised(anchors),
            reward_min=self.runner.reward_min(self.progress),
            answers=env.answers,
            environment=env.name,
        )
        found, kept_R = settle_degenerate(batch, self._estimate(batch), groups.degenerate)
        dead = np.abs(found.total)[found.dead_R].sum() / (np.abs(found.total).sum() or 1.0)
        told |= {**found.stats, "rows.kept": float(kept_R.mean()), "credit.dead": float(dead)}
        kept = np.flatnonzero(kept_R)
        return [rows[at] for at in kept.tolist()], found.of(kept), told

    async def _play(self) -> Rollout:
        """A handful of groups; more of them while too few are alive, if the run asks for that."""
        groups = self.config.groups
        if groups.degenerate != "resample":
            return await self._round(self.done)
        rounds = groups.resample_rounds
        found = Rollout()
        for round_ in range(rounds):
            found = found + (await self._round(self.done * rounds + round_)).named(f"/{round_}")
            rows, credit, _ = self.credit(found)
            alive = {row.task for row, dead in zip(rows, credit.dead_R, strict=True) if not dead}
            if len(alive) >= groups.tasks:
                break
        return found

    async def _round(self, place: int) -> Rollout:
        ranks = self.learner.ranks
        return ranks.gather(
            await self.runner.run(
                ranks.share(self.tasks(place)),
                self.config.groups.episodes,
                name=("train", place),
                progress=self.progress,
            )
        )

    async def _serve(self, before: float, *, moved: bool) -> None:
        await self.sampler.update(self.policy)
        if self.sampler.version != self.policy.version:
            raise StaleSampler(
                f"The sampler answers with version {self.sampler.version} of the weights after "
                f"version {self.policy.version} was handed over."
            )
        if moved and await self.sampler.canary() == before:
            raise StaleSampler(
                f"The sampler says it has version {self.policy.version} of the weights, but its "
                "answers have not changed: it serves the old ones, and training would be for "
                "nothing."
            )


def majority(rollout: Rollout) -> float:
    """Share of tasks whose most frequent answer is right; the first one where two are as often."""
    right: dict[str, dict[Hashable, list[bool]]] = {}
    for one in rollout.played:
        right.setdefault(one.task, {}).setdefault(one.answer, []).append(one.solved)
    return float(np.mean([max(by.values(), key=len)[0] for by in right.values()]))


def marks(rows: Sequence[Row]) -> dict[str, float]:
    """Mean of each mark over the rows that have it."""
    names = sorted({name for row in rows for name in row.marks})
    return {
        name: float(np.mean([row.marks[name] for row in rows if name in row.marks]))
        for name in names
    }


def played_stats(rollout: Rollout) -> dict[str, float]:
    """What to tell of the episodes of a rollout."""
    played, rows = rollout.played, rollout.rows
    parts = sorted({name for row in rows for name in row.parts})
    return {
        "reward": float(np.mean([one.total for one in played])),
        "success": float(np.mean([one.solved for one in played])),
        "steps": float(np.mean([one.steps for one in played])),
        "valid": float(np.mean([row.valid for row in rows])),
        "tokens": float(rollout.tokens),
        "quarantined": float(len(rollout.quarantined)),
        "retried": float(rollout.retried),
        **{
            f"reward.{name}": float(np.mean([row.parts.get(name, 0.0) for row in rows]))
            for name in parts
        },
        **{f"marks.{name}": value for name, value in marks(rows).items()},
    }
