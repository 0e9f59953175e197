"""GGUF models ready to run: dequantised once, kept as memory-mapped safetensors.

Beside the weights lies a small JSON with everything else that a GGUF file says, so that the
second load reads neither the file nor its quarter million metadata strings. Processes that load
at the same time wait for one of them to prepare, and then share the pages of one file.
"""

from __future__ import annotations

from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from shoal.core.errors import ModelError
from shoal.core.files import atomic_path, cache_folder, write_text
from shoal.core.records import from_json, to_json
from shoal.models.description import Description
from shoal.models.fetching import Progress
from shoal.models.gguf import GGUFFile
from shoal.models.gguf_tokenizer import tokenizer_of
from shoal.models.weights import layout

_VERSION = 2  # of the files written here; a new number lets old ones lie


def prepare(
    path: Path, content: str, dtype: torch.dtype, progress: Progress | None = None
) -> tuple[Description, dict[str, torch.Tensor]]:
    """Description and weights of a GGUF file whose SHA-256 is ``content``.

    The weights are mapped copy-on-write. Raises :class:`ModelError` where the file cannot be
    used or the cache folder cannot be written.
    """
    stem = cache_folder() / "models" / f"{content[:32]}-v{_VERSION}"
    described = stem.with_name(f"{stem.name}.json")
    weights = stem.with_name(f"{stem.name}-{str(dtype).removeprefix('torch.')}.safetensors")
    prepared = _read(described, weights)
    if prepared:
        return prepared
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{stem}.lock"):
            prepared = _read(described, weights)  # another process may have been quicker
            if not prepared:
                _write(GGUFFile(path), described, weights, dtype, progress)
                prepared = _read(described, weights)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"Cannot write the model to {stem.parent}: {error}.") from error
    assert prepared, "what was just written can be read"
    return prepared


def _read(described: Path, weights: Path) -> tuple[Description, dict[str, torch.Tensor]] | None:
    """What was prepared before; None where it is missing, damaged or of an older shoal."""
    try:
        return from_json(Description, described.read_bytes()), load_file(weights)
    except (FileNotFoundError, ValueError, SafetensorError):
        return None


def _write(
    file: GGUFFile, described: Path, weights: Path, dtype: torch.dtype, progress: Progress | None
) -> None:
    description = _describe(file)
    fused: dict[str, torch.Tensor] = {}
    for name, tensor in file.weights(description.config, dtype):
        fused[name] = tensor
        if progress:
            progress("Dequantising", len(fused), len(layout(description.config)))
    with atomic_path(weights) as temporary:
        save_file(fused, temporary)
    write_text(described, to_json(description))


def _describe(file: GGUFFile) -> Description:
    def text_of(token: str) -> str:
        index = file.get(f"tokenizer.ggml.{token}_token_id")
        return "" if index is None else file.need("tokenizer.ggml.tokens")[index]

    return Description(
        config=file.config(),
        tokenizer=tokenizer_of(file).to_str(),
        chat_template=file.get("tokenizer.chat_template"),
        bos=text_of("bos"),
        eos=text_of("eos"),
    )
