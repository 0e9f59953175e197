"""Run folders: ``runs/<id>/`` with ``log.sqlite``, ``config.toml`` and artefacts."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from shoal.core.errors import InputError, nearest
from shoal.core.files import write_text
from shoal.core.ids import new_id
from shoal.core.log import EventLog


def runs_folder() -> Path:
    """Where runs are kept: ``SHOAL_RUNS`` or ``runs`` in the current folder."""
    return Path(os.environ.get("SHOAL_RUNS", "runs"))


@dataclass(frozen=True, slots=True)
class Run:
    """One run's folder."""

    id: str
    folder: Path

    def log(self) -> EventLog:
        """Open the run's event log."""
        return EventLog(self.folder / "log.sqlite")

    def config(self) -> dict[str, Any]:
        """What the run was started with; raises :class:`InputError` where it cannot be read."""
        path = self.folder / "config.toml"
        try:
            return tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"Run {self.id} has no readable config.toml: {error}.") from error


def create_run(config: Mapping[str, Any], *, root: Path | None = None) -> Run:
    """A new folder with its configuration, which is written before anything else happens."""
    run_id = new_id()
    folder = (root or runs_folder()) / run_id
    try:
        folder.mkdir(parents=True)
        write_text(folder / "config.toml", tomli_w.dumps(dict(config)))
    except OSError as error:
        raise InputError(f"Cannot create the run folder {folder}: {error.strerror}.") from error
    return Run(run_id, folder)


def list_runs(*, root: Path | None = None) -> Iterator[Run]:
    """All runs, oldest first."""
    folder = root or runs_folder()
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if (path / "config.toml").is_file():
                yield Run(path.name, path)


def find_run(run_id: str, *, root: Path | None = None) -> Run:
    """The run with this id, a unique beginning of it, or ``last``.

    Raises :class:`InputError`, naming the nearest, where there is no such run.
    """
    runs = list(list_runs(root=root))
    if run_id == "last" and runs:
        return runs[-1]
    found = [run for run in runs if run.id.startswith(run_id)]
    if len(found) == 1 or (found and found[0].id == run_id):
        return found[0]
    if found:
        raise InputError(f"{run_id!r} is the beginning of {len(found)} run ids: give more of it.")
    where = root or runs_folder()
    raise InputError(
        f"There is no run {run_id!r} in {where}.{nearest(run_id, (run.id for run in runs))}"
    )
