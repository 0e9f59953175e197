"""The index of a catalogue, kept in a file: built once for a catalogue and a way to index it."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import numpy as np

from shoal.core.errors import InputError
from shoal.core.files import atomic_path, cache_folder
from shoal.models.embedding import Embedder
from shoal.tools.catalogue import Catalogue
from shoal.tools.retrieval.index import ToolIndex
from shoal.tools.retrieval.settings import Settings

FORMAT = 2
"""Counts up when files of an older shoal cannot be read, or would be built differently."""


def open_index(
    catalogue: Catalogue,
    settings: Settings = Settings(),
    *,
    embedder: Embedder | None = None,
    folder: Path | None = None,
) -> ToolIndex:
    """The index of a catalogue: read from the cache where it is there, built and kept otherwise.

    A file that cannot be read is set aside as ``.damaged`` and built anew.
    """
    folder = folder or cache_folder() / "indexes"
    target = folder / f"tools-{_key(catalogue, settings, embedder)[:16]}.npz"
    if target.exists():
        try:
            with np.load(target, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            return ToolIndex.of_arrays(arrays, catalogue, settings, embedder)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, TypeError):
            target.replace(target.with_suffix(".damaged"))
    index = ToolIndex(settings, embedder=embedder)
    index.add(catalogue)
    try:
        with atomic_path(target) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **index.arrays())
    except OSError as error:
        raise InputError(
            f"Cannot keep the index in {folder} ({error.strerror}): set SHOAL_CACHE to a folder "
            "that can be written."
        ) from error
    return index


def _key(catalogue: Catalogue, settings: Settings, embedder: Embedder | None) -> str:
    files = " ".join(path.name for path in catalogue.paths)
    revision = embedder.revision if embedder else ""
    text = f"{FORMAT} {catalogue.digest} {files} {settings.document_weights} {revision}"
    return hashlib.sha256(text.encode()).hexdigest()
