"""Plans on disk: a folder that loads like any model, and holds what differs from its base alone.

    plan.json            base, order of execution, and what was measured
    norms.safetensors    norms that the cure adapted, where it did
    adapter.safetensors  low-rank updates, where there are any

The base stays where it is and is found by its name; a base of another content is refused. Models
that are loaded from several such folders share the base's tensors as long as one of them lives.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from weakref import WeakValueDictionary

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from shoal.core.errors import ModelError
from shoal.core.files import atomic_path, write_text
from shoal.core.records import from_json, to_json
from shoal.models.adapters import files as adapter_files
from shoal.models.adapters.adapter import Adapter
from shoal.models.depth.arrange import arrange
from shoal.models.depth.plan import DepthPlan
from shoal.models.digests import combined
from shoal.models.fetching import Progress
from shoal.models.loading import Model, load

PLAN, NORMS, ADAPTER = "plan.json", "norms.safetensors", "adapter.safetensors"

_bases: WeakValueDictionary[tuple[str, str], Model] = WeakValueDictionary()


@dataclass(frozen=True, slots=True)
class Stage:
    """What one part of the compression left: perplexity on text that was held out, and bytes."""

    name: str
    perplexity: float
    block_bytes: int
    added_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Account:
    """How a plan came about.

    text       what it was fitted to, and on what part of it the perplexities were measured
    gates      final gate of every block of the base
    merges     pairs of blocks that were folded, in order, with the nats a token of each
    cure_tokens  tokens the cure learned from
    notes      what a reader should know
    """

    text: str = ""
    stages: tuple[Stage, ...] = ()
    gates: tuple[float, ...] = ()
    merges: tuple[tuple[int, int, float], ...] = ()
    cure_tokens: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PlanFile:
    """What ``plan.json`` says.

    base     a model's name, as ``load`` takes it
    content  the beginning of the SHA-256 of its files
    """

    version: int
    base: str
    content: str
    plan: DepthPlan
    account: Account = Account()


def content_of(model: Model) -> str:
    """What a model's weights and tokenizer are, whatever number format they are loaded in."""
    return model.fingerprint.partition("-")[0]


def save_plan(
    folder: Path,
    file: PlanFile,
    *,
    norms: Mapping[str, torch.Tensor] | None = None,
    adapter: Adapter | None = None,
) -> None:
    """Write a plan; ``plan.json`` comes last, so a folder that has one is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (PLAN, NORMS, ADAPTER):
        (folder / name).unlink(missing_ok=True)
    if norms:
        with atomic_path(folder / NORMS) as temporary:
            save_file({name: t.detach().contiguous() for name, t in norms.items()}, temporary)
    if adapter is not None:
        adapter_files.save(adapter, folder / ADAPTER)
    write_text(folder / PLAN, to_json(file))


def read_plan(folder: Path) -> PlanFile:
    """What a folder's ``plan.json`` says; raises :class:`ModelError` where it cannot be read."""
    try:
        file = from_json(PlanFile, (folder / PLAN).read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / PLAN} is no plan that can be read: {error}.") from error
    if file.version != 1:
        raise ModelError(
            f"{folder / PLAN} is of version {file.version}, this shoal reads version 1."
        )
    return file


def load_plan(
    folder: Path,
    *,
    dtype: str = "bf16",
    base: Model | None = None,
    progress: Progress | None = None,
) -> Model:
    """The model of a plan's folder, over its base's own tensors.

    ``base`` is a model already in memory; otherwise the plan's own is found by name. Raises
    :class:`ModelError` where it cannot be found or is not the one the plan was made for.
    """
    file = read_plan(folder)
    base = base or _base(file, dtype, progress)
    if content_of(base) != file.content:
        raise ModelError(
            f"The plan {folder} was made for {file.base} with content {file.content[:12]}, but "
            f"{base.name} has {content_of(base)[:12]}: give the base it was made for."
        )
    try:
        norms = load_file(folder / NORMS) if (folder / NORMS).is_file() else {}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder / NORMS} cannot be read: {error}.") from error
    decoder = arrange(base.decoder, file.plan, norms)
    if (folder / ADAPTER).is_file():
        decoder = adapter_files.load(folder / ADAPTER, decoder).over(decoder)
    parts = [path for name in (NORMS, ADAPTER) if (path := folder / name).is_file()]
    cured = combined(parts) if parts else ""
    name = hashlib.sha256(f"{file.plan.key} {cured}".encode()).hexdigest()[:16]
    return replace(
        base,
        name=folder.resolve().name,
        config=decoder.config,
        decoder=decoder,
        fingerprint=f"{base.fingerprint}-{name}",
        path=folder,
        base=base,
    )


def _base(file: PlanFile, dtype: str, progress: Progress | None) -> Model:
    known = _bases.get((file.content, dtype))
    if known is None:
        known = load(file.base, dtype=dtype, progress=progress, lazily=True)
        _bases[content_of(known), dtype] = known
    return known
