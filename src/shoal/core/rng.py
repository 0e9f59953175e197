"""Counter-based randomness: a draw is a function of its name, never of what ran before it.

Keys are anything printable (run seed, member, superstep). Two runs that differ in one member
draw the same numbers for all the others, and a resumed run draws what the first would have.
"""

from __future__ import annotations

import hashlib

import numpy as np


def _digest(keys: tuple[object, ...], size: int) -> int:
    name = "\x1f".join(f"{type(key).__name__}:{key}" for key in keys).encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=size).digest(), "little")


def seed_of(*keys: object) -> int:
    """A 63-bit seed for these keys."""
    return _digest(keys, 8) >> 1


def uniform(*keys: object) -> float:
    """One draw from [0, 1) with 53 random bits."""
    return (_digest(keys, 8) >> 11) * 2.0**-53


def generator(*keys: object) -> np.random.Generator:
    """A numpy generator (Philox) of its own for these keys."""
    return np.random.Generator(np.random.Philox(key=_digest(keys, 16)))
