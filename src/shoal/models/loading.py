"""One call from a model's name to something that runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer as Backend

from shoal.core.errors import ModelError
from shoal.models.catalog import DEFAULT, find
from shoal.models.chat import ChatTemplate
from shoal.models.decoder import Decoder, DecoderConfig
from shoal.models.digests import combined, digest
from shoal.models.fetching import Progress
from shoal.models.folder import ModelFolder
from shoal.models.prepared import prepare
from shoal.models.tokenizer import Tokenizer

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "packed": torch.bfloat16}
"""Number formats; "packed" is bf16 with a second, packed copy of the matrices for small steps."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Model:
    """A model in memory.

    ``fingerprint`` names weights, format and tokenizer by content: what was computed under one
    fingerprint (a KV cache) is valid for every model that has the same. ``base`` is the model over
    whose weights this one executes a plan (:mod:`shoal.models.depth`), or None.
    """

    name: str
    config: DecoderConfig
    decoder: Decoder
    tokenizer: Tokenizer
    chat: ChatTemplate
    dtype: torch.dtype
    fingerprint: str
    path: Path
    base: Model | None = None


def load(
    name: str = DEFAULT,
    *,
    dtype: str = "bf16",
    progress: Progress | None = None,
    lazily: bool = False,
) -> Model:
    """Load a model by a known name, a path or a hub name; see :mod:`shoal.models.catalog`.

    ``progress`` hears of downloads and dequantisation; ``lazily`` is for the base of a plan, see
    :class:`~shoal.models.decoder.Decoder`. Raises :class:`ModelError` where the model cannot be
    found, verified or used.
    """
    if dtype not in DTYPES:
        raise ModelError(f"There is no number format {dtype!r}: give {' or '.join(DTYPES)}.")
    source = find(name, progress)
    if source.kind == "plan":
        from shoal.models.depth.store import load_plan

        return load_plan(source.path, dtype=dtype, progress=progress)
    if source.kind == "gguf":
        content = digest(source.path)
        description, weights = prepare(source.path, content, DTYPES[dtype], progress)
    else:
        folder = ModelFolder(source.path)
        content = combined(folder.files)
        description = folder.describe()
        weights = dict(folder.weights(description.config, DTYPES[dtype]))
    config = description.config
    return Model(
        name=source.name,
        config=config,
        decoder=Decoder(
            config, weights, kernels="packed" if dtype == "packed" else "blocked", lazily=lazily
        ),
        tokenizer=Tokenizer(
            Backend.from_str(description.tokenizer), eos_ids=config.eos_ids, bos_id=config.bos_id
        ),
        chat=ChatTemplate(description.chat_template, description.bos, description.eos),
        dtype=DTYPES[dtype],
        fingerprint=f"{content[:32]}-{dtype}",
        path=source.path,
    )
