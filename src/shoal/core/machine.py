"""What machine this is, as far as reports say it."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def processor() -> str:
    """The processor's name."""
    return _line("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()


def memory() -> tuple[int, int]:
    """Bytes of memory available, and in all."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    available = _line("/proc/meminfo", "MemAvailable")
    if available:
        return int(available.split()[0]) * 1024, total
    return page * os.sysconf("SC_AVPHYS_PAGES"), total


def _line(path: str, name: str) -> str:
    """What stands behind a name in one of Linux's tables, or an empty string."""
    file = Path(path)
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith(name):
                return line.partition(":")[2].strip()
    return ""
