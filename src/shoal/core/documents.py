"""Reading users' files and folders: text, Markdown, HTML, PDF and source code."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shoal.core.errors import InputError, nearest
from shoal.core.extract import Kind, Unreadable, extract

MAX_BYTES = 64 << 20
"""Bytes of one file that are read at most; a larger one is refused."""
MAX_FILES = 10_000
"""Files of one reading at most; a larger folder is refused."""

_GENERATED = frozenset({"__pycache__", "node_modules"})


@dataclass(frozen=True, slots=True)
class Document:
    """One file as text.

    name   the path as given (for a file of a folder: the folder as given, then the way to it)
    title  what the file calls itself, else the file's name without its suffix
    words  words between white space
    note   a guess that was made in reading (an encoding), or empty
    """

    name: str
    title: str
    text: str
    kind: Kind
    words: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file or folder below a given folder that was not read, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read, in order, and what was left out."""

    documents: tuple[Document, ...]
    skipped: tuple[Skipped, ...] = ()

    @property
    def words(self) -> int:
        """Words of all documents."""
        return sum(document.words for document in self.documents)


def read_documents(paths: Iterable[str | Path]) -> Reading:
    """Read files and folders in the order given; a file reached twice is read once.

    Folders are walked in sorted order, the files of each before its sub-folders. Hidden,
    generated, empty, binary and unreadable entries of a folder, and links to folders, are
    skipped and listed. Raises :class:`InputError`, one sentence, for a path that does not
    exist, a file given directly that cannot be read as text, and a folder with nothing to read.
    """
    documents: list[Document] = []
    skipped: list[Skipped] = []
    seen: set[tuple[int, int]] = set()
    for path in map(Path, paths):
        if not os.path.lexists(path):
            raise InputError(f"There is no file or folder {path}.{_nearest_name(path)}")
        if path.is_dir():
            read, left_out = _read_folder(path, seen)
            documents += read
            skipped += left_out
        else:
            try:
                documents += _read_file(path, seen)
            except Unreadable as error:
                raise InputError(f"{path} {error}.") from error
    if not documents:
        raise InputError("There is nothing to read: give at least one file or folder.")
    return Reading(tuple(documents), tuple(skipped))


def _read_folder(folder: Path, seen: set[tuple[int, int]]) -> tuple[list[Document], list[Skipped]]:
    documents: list[Document] = []
    skipped: list[Skipped] = []
    files = readable = 0
    for entry in _walk(folder):
        if isinstance(entry, Skipped):
            skipped.append(entry)
            continue
        files += 1
        if files > MAX_FILES:
            raise InputError(
                f"The folder {folder} holds more than {MAX_FILES:,} files: give a smaller one."
            )
        try:
            documents += _read_file(entry, seen)
            readable += 1
        except Unreadable as error:
            skipped.append(Skipped(str(entry), str(error)))
    if not readable:
        why = f" ({skipped[0].name} {skipped[0].reason})" if skipped else ""
        raise InputError(f"The folder {folder} holds nothing that can be read{why}.")
    return documents, skipped


def _walk(folder: Path) -> Iterator[Path | Skipped]:
    """Files in order, and what is passed over. Links to folders are not followed: no loops."""
    refused: list[Skipped] = []

    def refuse(error: OSError) -> None:
        refused.append(Skipped(str(error.filename), f"cannot be opened: {error.strerror}"))

    for where, folders, files in os.walk(folder, onerror=refuse):
        folders.sort()
        for name in list(folders):
            if reason := _passed_over(Path(where, name)):
                folders.remove(name)
                yield Skipped(str(Path(where, name)), reason)
        for name in sorted(files):
            path = Path(where, name)
            yield Skipped(str(path), "is hidden") if name.startswith(".") else path
        yield from refused
        refused.clear()
    yield from refused


def _passed_over(folder: Path) -> str:
    if folder.name.startswith("."):
        return "is hidden"
    if folder.name in _GENERATED:
        return "holds generated files"
    return "is a link to a folder" if folder.is_symlink() else ""


def _read_file(path: Path, seen: set[tuple[int, int]]) -> list[Document]:
    """The file's document, or nothing where the same file was read before."""
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise Unreadable("is not a regular file")
        if facts.st_size > MAX_BYTES:
            raise Unreadable(
                f"has {facts.st_size / 2**20:.0f} MiB, more than {MAX_BYTES >> 20}: split it"
            )
        identity = (facts.st_dev, facts.st_ino)
        if identity in seen:
            return []
        with path.open("rb") as file:
            data = file.read(MAX_BYTES)
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror}") from error
    found = extract(path.name, data)
    words = len(found.text.split())
    if not words:
        raise Unreadable("is empty")
    seen.add(identity)
    title = found.title or path.stem
    return [Document(str(path), title, found.text, found.kind, words, found.note)]


def _nearest_name(path: Path) -> str:
    try:
        return nearest(path.name, os.listdir(path.parent))
    except OSError:
        return ""
