"""Federated averaging of weights that members send (McMahan et al., FedAvg, arXiv 1602.05629).

Few numbers travel as they are, adapters as names of safetensors files in one folder. Adapters are
averaged tensor by tensor: for LoRA that is the mean of both factors, which is not the factors of
the mean but what federated fine-tuning commonly does.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from shoal.agents.payloads import json_in
from shoal.agents.reducers import Reduction
from shoal.core.files import atomic_path


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


class AdapterUpdate(BaseModel):
    """One member's adapter, a file in the common folder, and its number of examples."""

    model_config = ConfigDict(frozen=True)

    file: str = Field(pattern=r"^[\w-][\w.-]*\.safetensors$")
    examples: int = Field(default=1, ge=1)


def averaged_files(words: Sequence[tuple[str, str]], folder: Path) -> Reduction:
    """The mean of all readable adapters, as a file in ``folder`` that is named by its content.

    Refused are names with a path in them and types that numpy lacks (bfloat16). Means are taken in
    float64 and kept in the adapters' own type. What files say about themselves (base, options, seed
    of index tables) must be the same in all of them, and the mean says it, too.
    """
    updates: dict[str, AdapterUpdate] = {}
    tensors: dict[str, dict[str, NDArray[Any]]] = {}
    said: dict[str, dict[str, str]] = {}
    refused: dict[str, str] = {}
    for name, text in words:
        try:
            update = AdapterUpdate.model_validate(json_in(text))
            held = load_file(folder / update.file)
            with safe_open(folder / update.file, framework="numpy") as opened:
                metadata = opened.metadata() or {}
        except ValidationError as error:
            refused[name] = str(error.errors()[0]["msg"])
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            refused[name] = f"{update.file} cannot be read: {type(error).__name__}"
        else:
            if all(np.isfinite(tensor).all() for tensor in held.values()):
                updates[name], tensors[name], said[name] = update, held, metadata
            else:
                refused[name] = f"{update.file} holds numbers that are not finite"
    data: dict[str, Any] = {"refused": refused} if refused else {}
    shapes = {
        name: sorted((k, *v.shape) for k, v in held.items()) for name, held in tensors.items()
    }
    if len({tuple(shape) for shape in shapes.values()}) != 1:
        return Reduction(None, data | {"shapes": shapes})
    about = next(iter(said.values()))
    if differing := sorted(name for name, one in said.items() if one != about):
        return Reduction(None, data | {"of another base, options or seed": differing})
    total = sum(update.examples for update in updates.values())
    first = next(iter(tensors.values()))
    weights = [update.examples for update in updates.values()]
    mean: dict[str, NDArray[Any]] = {}
    for key, kind in first.items():
        stacked = np.array([held[key] for held in tensors.values()], np.float64)
        mean[key] = np.average(stacked, axis=0, weights=weights).astype(kind.dtype)
    content = save(mean, metadata=about or None)
    file = f"mean-{hashlib.blake2b(content, digest_size=8).hexdigest()}.safetensors"
    with atomic_path(folder / file) as temporary:
        temporary.write_bytes(content)
    return Reduction(json.dumps({"file": file, "examples": total}), data)


def _shape(update: Update) -> list[tuple[str, int]]:
    return sorted((name, len(values)) for name, values in update.weights.items())
