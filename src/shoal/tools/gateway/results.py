"""Results too long for a prompt: their head is shown, the rest is kept under a handle."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from shoal.core.errors import InputError


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a result; ``next`` is where to read on, None at its end."""

    text: str
    offset: int
    size: int
    next: int | None


class Results:
    """Keeps texts by handle, up to ``most`` characters together; the oldest go first."""

    def __init__(self, head: int = 4000, most: int = 64 << 20) -> None:
        self.head = head
        self.most = most
        self._kept: OrderedDict[str, str] = OrderedDict()
        self._held = 0
        self._count = 0

    def shown(self, text: str) -> tuple[str, str | None]:
        """What to show of a result, and the handle of the whole where that is longer."""
        if len(text) <= self.head:
            return text, None
        self._count += 1
        handle = f"result-{self._count}"
        self._kept[handle] = text
        self._held += len(text)
        while self._held > self.most and len(self._kept) > 1:
            _, old = self._kept.popitem(last=False)
            self._held -= len(old)
        return text[: self.head], handle

    def read(self, handle: str, offset: int = 0, length: int | None = None) -> Piece:
        """Part of a kept result; raises :class:`InputError` for a handle that is not kept."""
        text = self._kept.get(handle)
        if text is None:
            raise InputError(f"There is no result {handle!r} any more: call the tool again.")
        offset = max(0, offset)
        part = text[offset : offset + (self.head if length is None else max(1, length))]
        end = offset + len(part)
        return Piece(part, offset, len(text), end if end < len(text) and part else None)
