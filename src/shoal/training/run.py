"""A training run on disk: its folder, its metrics, its checkpoints, and going on after a stop.

The folder holds ``config.toml``, ``metrics.jsonl``, ``checkpoints/``, ``log.sqlite`` with samples
of the episodes, and ``tensorboard/`` where that is installed.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from shoal.core.errors import InputError
from shoal.core.runs import Run, create_run
from shoal.training.checkpoints import checkpoints, restore, save
from shoal.training.config import RunConfig, parse_run
from shoal.training.loop import Iteration, Trainer
from shoal.training.metrics import Metrics, read_metrics
from shoal.training.rewards.hacking import drift
from shoal.training.setup import build
from shoal.training.trace import log_iteration

OnIteration = Callable[[int, int, Mapping[str, float]], None]
"""Called with iterations done, how many there are, and the metrics of the last."""


@dataclass(frozen=True, slots=True)
class Ended:
    """Where a run stopped: at its end, or because it was interrupted.

    warning  what looks wrong about what was learned; empty for nothing
    """

    run: Run
    done: int
    finished: bool
    metrics: Mapping[str, float]
    warning: str = ""


def start(config: RunConfig, *, root: Path | None = None) -> Run:
    """A new run folder for this configuration; nothing is computed yet."""
    return create_run(config.model_dump(mode="json", exclude_none=True), root=root)


def config_of(run: Run) -> RunConfig:
    """The run file a run was started with; raises :class:`InputError` for another kind of run."""
    content = run.config()
    if "environment" not in content or "algorithm" not in content:
        raise InputError(f"Run {run.id} is no training run.")
    return parse_run(content, f"The run {run.id}")


async def train(
    run: Run,
    *,
    trainer: Trainer | None = None,
    on_iteration: OnIteration = lambda done, of, metrics: None,
) -> Ended:
    """Run to the end, from the newest checkpoint if there is one; an interrupt saves and stops.

    Of several ranks only the first measures and writes.
    """
    config = config_of(run)
    trainer = trainer or build(config)
    ranks = trainer.learner.ranks
    known = checkpoints(run.folder / "checkpoints")
    told: dict[str, float] = {}
    if known:
        restore(trainer, known[-1])
        await trainer.sampler.update(trainer.policy)
    else:
        told |= await trainer.warm_up()
    with _Files(run, config, trainer, fresh=not known) as files, _interrupts() as interrupted:
        if not known and ranks.first:
            if config.evaluation.every:
                told |= await trainer.evaluate()
            files.begin(told)
            on_iteration(0, config.iterations, told)
        while not trainer.ended and not ranks.same(interrupted()):
            iteration = await trainer.iterate()
            told = dict(iteration.metrics)
            if ranks.first:
                if _due(config.evaluation.every, iteration, trainer):
                    told |= await trainer.evaluate()
                files.keep(iteration, told)
                on_iteration(iteration.number, config.iterations, told)
        if ranks.first and not trainer.ended:
            files.save()
    trainer.runner.close()
    await trainer.sampler.close()
    found = drift(read_metrics(run.folder)) if ranks.first else None
    warning = found.sentence if found is not None and found.hacked else ""
    return Ended(run, trainer.done, trainer.ended, told, warning)


class _Files:
    """What a run leaves in its folder; nothing at all from other ranks than the first."""

    def __init__(self, run: Run, config: RunConfig, trainer: Trainer, *, fresh: bool) -> None:
        self._run, self._config, self._trainer = run, config, trainer
        self._done = -1 if fresh else trainer.done
        self._open = ExitStack()

    def __enter__(self) -> _Files:
        if self._trainer.learner.ranks.first:
            self._metrics = self._open.enter_context(Metrics(self._run.folder, done=self._done))
            self._log = self._open.enter_context(self._run.log())
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def begin(self, told: Mapping[str, float]) -> None:
        """What was measured before the first iteration."""
        self._metrics.write(0, told)

    def keep(self, iteration: Iteration, told: Mapping[str, float]) -> None:
        """Write what is due after an iteration."""
        config, trainer = self._config, self._trainer
        self._metrics.write(iteration.number, told)
        if _due(config.log_every, iteration, trainer):
            log_iteration(self._log, iteration, trainer.policy)
        if _due(config.checkpoint_every, iteration, trainer):
            self.save()

    def save(self) -> None:
        """Write a checkpoint."""
        save(self._trainer, self._run.folder / "checkpoints", keep=self._config.keep_checkpoints)


def _due(every: int, iteration: Iteration, trainer: Trainer) -> bool:
    return bool(every) and (trainer.ended or iteration.number % every == 0)


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Whether the user has asked to stop; the iteration that is under way is finished first.

    A second interrupt ends the process at once, as always.
    """
    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, before)

    try:
        before = signal.signal(signal.SIGINT, ask)
    except ValueError:  # not on the main thread: somebody else listens
        yield lambda: False
        return
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)
