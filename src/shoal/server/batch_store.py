"""Files and batches of tenants on disk: a restarted server finds them as they were.

``<folder>/<tenant>/files/<id>`` holds a file, ``<id>.json`` beside it what is known of it;
``<folder>/<tenant>/batches/<id>.json`` holds a batch. Everything is written whole or not at all.
A tenant finds nothing of another's.
"""

from __future__ import annotations

import hashlib
import re
import time
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ValidationError

from shoal.core.files import atomic_path, write_text
from shoal.core.ids import new_id
from shoal.server.errors import ApiError
from shoal.server.tenants import Tenant

_ID = re.compile(r"(?:file|batch)-[0-9a-z]{16}")

Status = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]
OPEN: tuple[Status, ...] = ("validating", "in_progress", "finalizing", "cancelling")


class FileCard(BaseModel):
    """A file as OpenAI describes it; times are in seconds since the epoch."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"


class FileList(BaseModel):
    object: Literal["list"] = "list"
    data: list[FileCard]
    has_more: bool = False


class Deleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class Counts(BaseModel):
    total: int = 0
    completed: int = 0
    failed: int = 0


class Fault(BaseModel):
    """What is wrong with a batch's file, and in which line."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class Faults(BaseModel):
    object: Literal["list"] = "list"
    data: list[Fault]


class BatchCard(BaseModel):
    """A batch as OpenAI describes it."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: Faults | None = None
    input_file_id: str
    completion_window: str
    status: Status = "validating"
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: Counts = Counts()
    metadata: dict[str, str] | None = None


class BatchList(BaseModel):
    object: Literal["list"] = "list"
    data: list[BatchCard]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


C = TypeVar("C", bound=BaseModel)


class BatchStore:
    """One tenant's files and batches."""

    def __init__(self, folder: Path, tenant: Tenant) -> None:
        # Without keys a tenant is told by its salt alone, which may be empty.
        name = hashlib.sha256(f"{tenant.name}\0{tenant.salt}".encode()).hexdigest()[:32]
        self.files = folder / name / "files"
        self.batches = folder / name / "batches"
        self.tenant = tenant

    def add_file(self, data: bytes, filename: str, purpose: str) -> FileCard:
        """Keep a file; its card is written last, so half a file is none."""
        card = FileCard(
            id=f"file-{new_id()}",
            bytes=len(data),
            created_at=int(time.time()),
            filename=filename,
            purpose=purpose,
        )
        with atomic_path(self.files / card.id) as temporary:
            temporary.write_bytes(data)
        write_text(self.files / f"{card.id}.json", card.model_dump_json())
        return card

    def file(self, file_id: str) -> FileCard:
        """A file's card; raises :class:`ApiError` 404."""
        return _read(self.files, file_id, FileCard)

    def content(self, file_id: str) -> bytes:
        """A file's content; raises :class:`ApiError` 404."""
        self.file(file_id)
        return (self.files / file_id).read_bytes()

    def delete_file(self, file_id: str) -> None:
        """Forget a file; raises :class:`ApiError` 404."""
        self.file(file_id)
        (self.files / f"{file_id}.json").unlink(missing_ok=True)
        (self.files / file_id).unlink(missing_ok=True)

    def list_files(self) -> list[FileCard]:
        """All files, newest first."""
        return _all(self.files, FileCard)

    def save(self, card: BatchCard) -> None:
        """Write a batch down."""
        write_text(self.batches / f"{card.id}.json", card.model_dump_json())

    def batch(self, batch_id: str) -> BatchCard:
        """A batch's card; raises :class:`ApiError` 404."""
        return _read(self.batches, batch_id, BatchCard)

    def list_batches(self) -> list[BatchCard]:
        """All batches, newest first."""
        return _all(self.batches, BatchCard)

    def journal(self, batch_id: str) -> Path:
        """Where a batch's results are gathered while it runs."""
        return self.batches / f"{batch_id}.out"


def _read(folder: Path, name: str, shape: type[C]) -> C:
    path = folder / f"{name}.json"
    what = "file" if shape is FileCard else "batch"
    if not _ID.fullmatch(name) or not path.is_file():
        raise ApiError(404, f"There is no {what} {name!r}.", param=f"{what}_id")
    return shape.model_validate_json(path.read_bytes())


def _all(folder: Path, shape: type[C]) -> list[C]:
    found = []
    for path in sorted(folder.glob("*.json"), reverse=True):
        try:
            found.append(shape.model_validate_json(path.read_bytes()))
        except (OSError, ValidationError):
            continue  # deleted meanwhile, or of a version this one does not know
    return found
