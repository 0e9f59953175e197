"""How much a tree of processes holds: read from /proc, from outside."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Load:
    """Processes and threads of a tree, and bytes of memory that they hold together."""

    tasks: int = 0
    resident: int = 0


def load_of(root: int) -> Load:
    """What ``root`` and all below it hold now; processes that end meanwhile are left out."""
    tasks = resident = 0
    waiting, seen = [root], set()
    while waiting:
        pid = waiting.pop()
        if pid in seen:
            continue
        seen.add(pid)
        folder = Path("/proc") / str(pid)
        try:
            shared = (folder / "statm").read_text().split()
            threads = os.listdir(folder / "task")
            for thread in threads:
                children = (folder / "task" / thread / "children").read_text()
                waiting += map(int, children.split())
        except (OSError, ValueError):
            continue
        tasks += len(threads)
        resident += (int(shared[1]) - int(shared[2])) * PAGE
    return Load(tasks, resident)
