"""What stays and what changes in a prompt.

A prompt is fixed pieces with placeholders between them. Every part is turned into tokens by
itself, in exact and in approximate answers alike: the joined text would give other tokens at the
seams, and the two could not be compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """Some tokens; ``placeholder`` names what fills this place in this call."""

    tokens: tuple[int, ...]
    placeholder: str = ""


@dataclass(frozen=True, slots=True)
class Template:
    """The parts of a prompt, fixed and changing ones in turn, first and last of them fixed.

    A fixed part is empty where placeholders touch or stand at an end.
    """

    parts: tuple[Part, ...]

    def key(self, *scope: str) -> str:
        """The same for all calls that differ in nothing but what fills their placeholders.

        ``scope`` says what else they must have in common.
        """
        digest = hashlib.blake2b(repr(scope).encode(), digest_size=12)
        for part in self.parts:
            digest.update(repr(part.placeholder or part.tokens).encode())
        return digest.hexdigest()

    @property
    def tokens(self) -> tuple[int, ...]:
        """The whole prompt."""
        return tuple(token for part in self.parts for token in part.tokens)

    @classmethod
    def of(cls, parts: Sequence[Part]) -> Template:
        """Fixed neighbours become one part, as do those around a placeholder without tokens."""
        joined: list[Part] = []
        for part in parts:
            if part.placeholder and not part.tokens:
                continue
            if joined and not part.placeholder and not joined[-1].placeholder:
                joined[-1] = Part(joined[-1].tokens + part.tokens)
            else:
                if part.placeholder and (not joined or joined[-1].placeholder):
                    joined.append(Part(()))
                joined.append(part)
        if not joined or joined[-1].placeholder:
            joined.append(Part(()))
        return cls(tuple(joined))
