"""What this machine has: the facts behind ``shoal doctor``."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shoal.core.files import cache_folder
from shoal.core.machine import memory, processor


@dataclass(frozen=True, slots=True)
class Fact:
    """One line of the report; ``fix`` says what to do where ``ok`` is false."""

    name: str
    value: str
    ok: bool = True
    fix: str = ""


OPTIONAL = {
    "matplotlib": ("plots of claims", "claims"),
    "mkdocs": ("the documentation site", "docs"),
    "pytest": ("the test suite", "dev"),
}


def facts() -> Iterator[Fact]:
    """Everything that can be said without loading a model."""
    yield Fact("python", platform.python_version())
    yield Fact("processor", processor())
    yield Fact("threads", f"{os.cpu_count()} processors")
    free, total = memory()
    yield Fact(
        "memory",
        f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB available",
        free > 2 << 30,
        "The packaged model with a full cache wants 2 GiB.",
    )
    folder = cache_folder()
    disk = shutil.disk_usage(_existing(folder)).free
    yield Fact(
        "cache",
        f"{folder} ({_size(folder) / 2**20:.0f} MiB used, {disk / 2**30:.1f} GiB free)",
        disk > 2 << 30,
        "Set SHOAL_CACHE to a folder on a larger disk.",
    )
    for package in ("torch", "transformers", "tokenizers", "llguidance"):
        yield Fact(package, importlib.metadata.version(package))
    for package, (what, extra) in OPTIONAL.items():
        found = importlib.util.find_spec(package) is not None
        value = importlib.metadata.version(package) if found else "not installed"
        yield Fact(f"{package} ({what})", value, found, f"pip install 'shoal[{extra}]'")


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
