"""The whole catalogue in one fresh process on one core: time, memory, changes.

    python benchmarks/toolbench/large.py < queries.json

Reads {"build": ..., "queries": [...], "names": [...]}; builds the index, or writes one JSON object.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any


def resident() -> float:
    """Megabytes of memory that this process has in use."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    given = json.load(sys.stdin)
    from shoal.models.embedding import Kept, open_embedder
    from shoal.tools import sources
    from shoal.tools.retrieval.kept import open_index

    names = given["names"]
    catalogue = sources.Catalogue.joined([sources.load(name) for name in names])
    embedder = Kept(open_embedder("wordllama"))
    if given["build"]:  # apart, so that what building takes is not what searching takes
        open_index(catalogue, embedder=embedder)
        return
    fresh = resident()
    started = time.perf_counter()
    index = open_index(catalogue, embedder=embedder)
    opened = time.perf_counter() - started
    out: dict[str, Any] = {"open_seconds": opened, "tools": len(index)}
    stats = index.stats()
    out["index_bytes"] = stats.lexical_bytes + stats.dense_bytes
    index.search("warm up the search", 5)
    out["search_ms"] = [timed(lambda q=q: index.search(q, 5)) for q in given["queries"]]
    out["resident_mb"] = resident() - fresh
    some = [catalogue[name] for name in catalogue.names[:: max(1, len(catalogue) // 100)]]
    copies = [replace(spec, name=f"copy.{number}.{spec.name}") for number, spec in enumerate(some)]
    out["add_ms"] = [timed(lambda spec=spec: index.add([spec], label="x")) for spec in copies]
    out["remove_ms"] = [timed(lambda spec=spec: index.remove(spec.name)) for spec in copies]
    changed = catalogue.names[::100]
    specs = {name: catalogue[name] for name in changed}
    index.add([replace(spec, name=f"c.{name}") for name, spec in specs.items()], label="sync")
    again = [
        replace(spec, name=f"c.{name}", description=f"{spec.description} Changed.")
        for name, spec in specs.items()
    ]
    out["sync_seconds"] = timed(lambda: index.sync(again, label="sync")) / 1e3
    out["sync_tools"] = len(again)
    json.dump(out, sys.stdout)


def timed(action: Any) -> float:
    """Milliseconds of one call."""
    started = time.perf_counter()
    action()
    return (time.perf_counter() - started) * 1e3


if __name__ == "__main__":
    main()
