"""The bench a claim works at: it hands out mode, seed and progress, and collects what is found."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from shoal.core.claims.records import Arm, Metric, Threshold, Verdict
from shoal.core.rng import generator, seed_of
from shoal.core.stats import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

T = TypeVar("T")
OnProgress = Callable[[str, int, int], None]
"""Called with a label, how many items are done and how many there are."""


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawn figure; ``png`` is the file's content."""

    caption: str
    png: bytes


class Bench:
    """One run of one claim.

    ``workload`` says in a sentence or two what was measured; the claim sets it.
    """

    def __init__(
        self, *, smoke: bool = False, seed: int = 0, on_progress: OnProgress | None = None
    ) -> None:
        self.smoke = smoke
        self.seed = seed
        self.workload = ""
        self.arms: list[Arm] = []
        self.verdicts: list[Verdict] = []
        self.plots: dict[str, Plot] = {}
        self._on_progress = on_progress or (lambda label, done, total: None)

    def pick(self, *, full: T, smoke: T) -> T:
        """The value for this mode."""
        return smoke if self.smoke else full

    def seed_of(self, *keys: object) -> int:
        """A 63-bit seed of this run for these keys."""
        return seed_of(self.seed, *keys)

    def generator(self, *keys: object) -> np.random.Generator:
        """A numpy generator of this run for these keys."""
        return generator(self.seed, *keys)

    def track(self, items: Sequence[T], label: str) -> Iterator[T]:
        """The items, while a progress bar follows."""
        for done, item in enumerate(items):
            self._on_progress(label, done, len(items))
            yield item
        self._on_progress(label, len(items), len(items))

    def arm(self, name: str, **metrics: Metric) -> None:
        """Add one side of the comparison; metric names end in their unit where they have one."""
        assert name not in {arm.name for arm in self.arms}, f"two arms are called {name!r}"
        self.arms.append(Arm(name=name, metrics=metrics))

    def verdict(
        self,
        claim: str,
        measured: float | Interval,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> bool:
        """Judge one promise: the estimate must lie between the bounds, ends included."""
        assert at_least is not None or at_most is not None, "a verdict needs a bound"
        interval = measured if isinstance(measured, Interval) else None
        value = interval.estimate if interval else float(measured)  # type: ignore[arg-type]
        threshold = Threshold(low=at_least, high=at_most)
        self.verdicts.append(
            Verdict(
                claim=claim,
                measured=value,
                threshold=threshold,
                holds=threshold.admits(value),
                interval=interval,
            )
        )
        return self.verdicts[-1].holds

    @contextmanager
    def plot(self, name: str, caption: str, *, panels: int = 1) -> Iterator[Sequence[Axes]]:
        """Draw ``<name>.png``: yields that many axes side by side (needs the extra ``claims``)."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.2 * panels, 3.8), layout="constrained")
        axes = figure.subplots(1, panels, squeeze=False)[0]
        for panel in axes:
            panel.grid(alpha=0.25)
            panel.spines[["top", "right"]].set_visible(False)
        yield list(axes)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
        self.plots[name] = Plot(caption, file.getvalue())
