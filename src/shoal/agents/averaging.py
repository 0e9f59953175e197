"""Federated averaging of weights that members send as data (McMahan et al., FedAvg)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shoal.agents.payloads import json_in
from shoal.agents.reducers import Reduction


class Update(BaseModel):
    """One member's weights, by name, and how many examples they were fitted to."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    weights: dict[str, list[float]]
    examples: int = Field(default=1, ge=1)


def averaged(words: Sequence[tuple[str, str]]) -> Reduction:
    """The mean of all readable updates; the reduction's data say which were refused and why."""
    updates: dict[str, Update] = {}
    refused: dict[str, str] = {}
    for name, text in words:
        try:
            updates[name] = Update.model_validate(json_in(text))
        except ValidationError as error:
            refused[name] = str(error.errors()[0]["msg"])
    shapes = {name: _shape(update) for name, update in updates.items()}
    data: dict[str, Any] = {"refused": refused} if refused else {}
    if len({tuple(shape) for shape in shapes.values()}) != 1:
        return Reduction(None, data | {"shapes": shapes})
    total = sum(update.examples for update in updates.values())
    mean = {
        name: [
            math.fsum(column)
            for column in zip(
                *(
                    [value * update.examples / total for value in update.weights[name]]
                    for update in updates.values()
                ),
                strict=True,
            )
        ]
        for name in next(iter(updates.values())).weights
    }
    return Reduction(json.dumps({"weights": mean, "examples": total}), data)


def _shape(update: Update) -> list[tuple[str, int]]:
    return sorted((name, len(values)) for name, values in update.weights.items())
