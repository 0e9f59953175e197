"""Accuracies of measurements, by the names they are told under."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from shoal.core.stats import Interval, mean_interval

MARKS = {
    "exact_where_calls_are_wanted": "called_exactly",
    "silent_when_irrelevant": "irrelevance",
    "right_format": "format",
    "right_names": "name",
    "right_parameters": "parameter",
    "right_values": "value",
}
"""Accuracies that are told, and the marks they are."""


def ends(measured: Sequence[Mapping[str, float]], seed: int) -> dict[str, float | Interval]:
    """Last measurements: exact match with intervals, and means of the accuracies."""

    def mean(name: str) -> float | Interval:
        values = [one[f"held_out.{name}"] for one in measured]
        return mean_interval(values, seed=seed) if len(values) > 1 else values[0]

    return {
        "exact_sampled": mean("success"),
        "exact_greedy": mean("greedy"),
        **{
            label: float(np.mean([one.get(f"held_out.{mark}", 0.0) for one in measured]))
            for label, mark in MARKS.items()
        },
    }
