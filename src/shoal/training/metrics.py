"""Metrics of a run: one JSON line an iteration, and TensorBoard where it is installed."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from shoal.core.errors import InputError


class Metrics:
    """Appends to ``metrics.jsonl`` and, with the extra ``train``, to ``tensorboard/``.

    A run that is resumed at iteration n drops what was written after n: it will be measured again.
    """

    def __init__(self, folder: Path, *, done: int = 0) -> None:
        self._path = folder / "metrics.jsonl"
        lines = [line for line in read_metrics(folder) if line["iteration"] <= done]
        with self._path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        self._file = self._path.open("a", encoding="utf-8")
        self._board: Any = None
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        """One iteration's numbers; what is not finite is left out."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._file.write(json.dumps({"iteration": iteration, **finite}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in finite.items():
                self._board.add_scalar(name.replace(".", "/"), value, iteration)

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """All iterations of a run, oldest first; a last line that was cut off is dropped.

    Raises :class:`InputError` for a line in the middle that is no JSON.
    """
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    found: list[dict[str, float]] = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise InputError(f"Line {number} of {path} is no JSON: {error}.") from error
    return found
