"""Where a claim ran, as far as a reader elsewhere needs it: no host names, no paths."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

from shoal import __version__
from shoal.core.claims.records import Environment


def environment() -> Environment:
    """This machine and interpreter, now."""
    return Environment(
        shoal=__version__,
        python=platform.python_version(),
        torch=_version("torch"),
        cpu=_cpu(),
        cores=os.cpu_count() or 1,
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
