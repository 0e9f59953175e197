"""Identifiers: strings that sort by the time they were made."""

from __future__ import annotations

import secrets
import threading
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford base 32: no i, l, o, u
_lock = threading.Lock()
_last_ms = 0


def _base32(number: int, digits: int) -> str:
    return "".join(_ALPHABET[(number >> (5 * i)) & 31] for i in reversed(range(digits)))


def new_id() -> str:
    """A 16-character id: 9 characters of milliseconds, 7 of randomness.

    Ids made by one process sort strictly by creation; between processes they sort by the
    clock, and 35 random bits keep them apart.
    """
    global _last_ms
    with _lock:
        _last_ms = max(time.time_ns() // 1_000_000, _last_ms + 1)
        return _base32(_last_ms, 9) + _base32(secrets.randbits(35), 7)
