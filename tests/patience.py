"""Waiting in tests: for what is to happen, never for an amount of time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

LONG = 60.0  # seconds: longer than any machine stands still, shorter than a test may take


def wait_until(happens: Callable[[], object], seconds: float = LONG) -> bool:
    """Whether it happens within ``seconds``."""
    until = time.monotonic() + seconds
    while not happens():
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True


async def until(happens: Callable[[], object], seconds: float = LONG) -> bool:
    """The same on an event loop."""
    end = time.monotonic() + seconds
    while not happens():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.002)
    return True
