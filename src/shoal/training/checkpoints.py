"""Checkpoints: all a run needs to go on bit for bit, written whole or not at all.

A checkpoint is a folder: weights and optimiser state as safetensors, counters as JSON. It is
filled under a temporary name and renamed when everything in it has reached the disk, so a process
that is killed at any moment leaves complete checkpoints only. Random draws need no state: they are
functions of their names.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from shoal.core.errors import InputError
from shoal.training.loop import Trainer
from shoal.training.policies import fingerprint, set_weights


@dataclass(frozen=True, slots=True)
class Counters:
    """Where a run is, beside its weights."""

    done: int
    env_steps: int
    version: int
    taken: int
    skipped: int
    policy: str


def save(trainer: Trainer, folder: Path, *, keep: int = 2) -> Path:
    """Write ``folder/iteration-000012`` and drop all but the newest ``keep``."""
    target = folder / f"iteration-{trainer.done:06d}"
    if target.is_dir():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    half = folder / f".{target.name}.half"
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir()
    optimiser = trainer.learner.optimiser
    counters = Counters(
        trainer.done,
        trainer.env_steps,
        trainer.policy.version,
        optimiser.taken,
        optimiser.skipped,
        fingerprint(trainer.policy),
    )
    _save_tensors(trainer.policy.trained, half / "weights.safetensors")
    _save_tensors(optimiser.state(), half / "optimiser.safetensors")
    reference = trainer.learner.reference
    if reference is not None:
        _save_tensors(reference.own, half / "reference.safetensors")
    (half / "counters.json").write_text(json.dumps(asdict(counters)), encoding="utf-8")
    for path in (*half.iterdir(), half):
        _sync(path)
    half.rename(target)
    _sync(folder)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("iteration-*") if path.is_dir())


def restore(trainer: Trainer, checkpoint: Path) -> None:
    """Bring a trainer of the same run file to where the checkpoint was written.

    Raises :class:`InputError` for a checkpoint that cannot be read or is of another policy.
    """
    try:
        counters = Counters(**json.loads((checkpoint / "counters.json").read_text("utf-8")))
        weights = load_file(checkpoint / "weights.safetensors")
        state = load_file(checkpoint / "optimiser.safetensors")
        kept = checkpoint / "reference.safetensors"
        reference = load_file(kept) if kept.is_file() else {}
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise InputError(f"The checkpoint {checkpoint} cannot be read: {error}.") from error
    if counters.policy != fingerprint(trainer.policy):
        raise InputError(
            f"The checkpoint {checkpoint} is of another policy than the run file describes: "
            "resume with the file the run was started with."
        )
    set_weights(trainer.policy, weights)
    trainer.policy.version = counters.version
    trainer.learner.optimiser.restore(state, counters.taken, counters.skipped)
    if trainer.learner.reference is not None:
        for name, tensor in trainer.learner.reference.own.items():
            tensor.data.copy_(reference[name])
    trainer.done, trainer.env_steps = counters.done, counters.env_steps


def _save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    save_file({name: value.detach().contiguous() for name, value in tensors.items()}, path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
