"""Where a claim ran, as far as a reader elsewhere needs it: no host names, no paths."""

from __future__ import annotations

import importlib.metadata
import os
import platform

from shoal import __version__
from shoal.core.claims.records import Environment
from shoal.core.machine import processor


def environment() -> Environment:
    """This machine and interpreter, now."""
    return Environment(
        shoal=__version__,
        python=platform.python_version(),
        torch=_version("torch"),
        cpu=processor(),
        cores=os.cpu_count() or 1,
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
