"""What a file contains, without reading it again: SHA-256 remembered by path, size and time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from shoal.core.errors import ModelError
from shoal.core.files import cache_folder, sha256, write_text
from shoal.core.records import from_json, to_json


@dataclass(frozen=True, slots=True)
class _Record:
    path: str
    size: int
    modified_ns: int
    sha256: str


def digest(path: Path) -> str:
    """SHA-256 (hex) of a file's content, computed when the file is new or has changed.

    Raises :class:`ModelError` where the file cannot be read or the digest cannot be kept.
    """
    path = path.resolve()
    key = hashlib.sha256(str(path).encode()).hexdigest()[:32]
    kept = cache_folder() / "models" / "digests" / f"{key}.json"
    try:
        facts = path.stat()
        now = (str(path), facts.st_size, facts.st_mtime_ns)
        known = _known(kept)
        if known and (known.path, known.size, known.modified_ns) == now:
            return known.sha256
        content = sha256(path)
    except OSError as error:
        raise ModelError(f"Cannot read {path}: {error.strerror}.") from error
    try:
        write_text(kept, to_json(_Record(*now, content)))
    except OSError as error:
        raise ModelError(
            f"Cannot write to the cache folder {cache_folder()} ({error.strerror}): "
            "set SHOAL_CACHE to one that can be written."
        ) from error
    return content


def _known(kept: Path) -> _Record | None:
    try:
        return from_json(_Record, kept.read_bytes())
    except (OSError, ValueError):
        return None


def combined(paths: Iterable[Path]) -> str:
    """One SHA-256 (hex) for several files, by their names and contents."""
    lines = [f"{path.name} {digest(path)}\n" for path in sorted(paths)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
