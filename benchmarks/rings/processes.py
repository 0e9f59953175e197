"""Processes that the claim of PCCL starts, and the text that they train on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WORKER = Path(__file__).parents[1] / "workers" / "pccl.py"
TEXTS = Path(__file__).parents[2] / "examples" / "documents"
TOKEN = "benchmark"


def command(role: str, **options: Any) -> list[str]:
    """A peer of that role."""
    return [sys.executable, str(WORKER), role, json.dumps(options)]


def lines_of(commands: Sequence[Sequence[str]], *, timeout: float) -> list[list[dict[str, Any]]]:
    """Run processes side by side until all have ended; what each printed."""
    running = [
        subprocess.Popen(one, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for one in commands
    ]
    try:
        found = [process.communicate(timeout=timeout) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    for process, (_, errors) in zip(running, found, strict=True):
        assert process.returncode in (0, -9), errors
    return [[json.loads(line) for line in out.splitlines()] for out, _ in found]


def write_text(folder: str) -> Path:
    """All documents of the examples as one file."""
    text = Path(folder) / "text"
    files = sorted(path for path in TEXTS.glob("*/*") if path.is_file())
    text.write_bytes(b"\n".join(path.read_bytes() for path in files))
    return text
