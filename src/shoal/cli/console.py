"""What every verb prints with: one console for people, plain JSON for programs."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console

from shoal.core.errors import ShoalError

console = Console()
errors = Console(stderr=True)


def print_json(value: Any) -> None:
    """One JSON document on stdout, for ``--json``."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n")


def fail(error: ShoalError) -> int:
    """Say what went wrong in one sentence (as JSON where JSON was asked for); the exit code."""
    if "--json" in sys.argv:
        print_json({"error": str(error), "kind": type(error).__name__})
    else:
        errors.print(f"[bold red]{type(error).__name__}:[/] ", end="")
        errors.print(str(error), markup=False, highlight=False)
    return error.exit_code
