"""Results on disk as they come: an interrupted job goes on where it stopped.

The journal lies beside the output (``OUT.part``). Its first line says which job it belongs to, each
further line is one finished result with its place in the input. Lines are appended and reach the
disk within a second; half a line at the end, from a process that was killed, is dropped. When all
results are there, the output is written in the order of the input, whole or not at all.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from shoal.core.errors import InputError
from shoal.core.files import atomic_path

FORMAT = 1
SYNC_SECONDS = 1.0


class Journal:
    """Results of one job by their place; ``done`` are the places that have one.

    Raises :class:`InputError` where the journal belongs to another job or another process writes
    it, and where the output exists.
    """

    def __init__(self, output: Path, job: str) -> None:
        """``job`` names the job: everything that its results depend on."""
        self.output = output
        self.path = output.with_name(output.name + ".part")
        self._job = job
        self._places: dict[int, tuple[int, int]] = {}  # place -> offset and length
        self._synced = time.monotonic()
        self._lock = FileLock(str(self.path) + ".lock")
        if output.exists():
            raise InputError(f"{output} exists already: choose another output, or remove it.")
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"Another process is writing {output}: wait until it ends.") from None
        except OSError as error:
            raise InputError(f"Cannot write {output}: {error.strerror}.") from error
        try:
            self._file = self._open()
        except BaseException:
            self._lock.release()
            raise

    @property
    def done(self) -> frozenset[int]:
        """Places whose results are on disk."""
        return frozenset(self._places)

    def _open(self) -> BinaryIO:
        file = self.path.open("a+b")
        file.seek(0)
        head = file.readline()
        if not head.endswith(b"\n"):
            file.truncate(0)
            file.write(json.dumps({"format": FORMAT, "job": self._job}).encode() + b"\n")
            file.flush()
            return file
        if not self._ours(head):
            file.close()
            raise InputError(
                f"{self.path} holds results of another job (other input, model or options): "
                "remove it, or choose another output."
            )
        offset = len(head)
        for line in file:
            place, _, result = line.partition(b"\t")
            if not line.endswith(b"\n") or not place.isdigit():
                break
            self._places[int(place)] = (offset + len(place) + 1, len(result))
            offset += len(line)
        file.truncate(offset)
        file.seek(0, os.SEEK_END)
        return file

    def _ours(self, head: bytes) -> bool:
        try:
            found = json.loads(head)
        except ValueError:
            return False
        return bool(found == {"format": FORMAT, "job": self._job})

    def add(self, place: int, result: Any) -> None:
        """Append a result; ignored where the place has one."""
        if place in self._places:
            return
        line = json.dumps(result, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
        head = f"{place}\t".encode()
        self._file.seek(0, os.SEEK_END)
        self._places[place] = (self._file.tell() + len(head), len(line))
        self._file.write(head + line)
        self._file.flush()
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def result(self, place: int) -> bytes:
        """A result as it was written, its line feed included."""
        offset, length = self._places[place]
        self._file.seek(offset)
        return self._file.read(length)

    def finish(self) -> None:
        """Write the output in order of the places, then forget the journal."""
        with atomic_path(self.output) as temporary, temporary.open("wb") as file:
            for place in sorted(self._places):
                file.write(self.result(place))
        self._file.close()
        self.path.unlink()

    def close(self) -> None:
        """Leave the journal for later."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        self._lock.release()
        Path(self._lock.lock_file).unlink(missing_ok=True)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
