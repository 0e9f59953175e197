"""Responses that may be continued or looked up again, in bounded memory.

When memory runs out, the tenant that holds most loses its oldest response. A conversation shares
its messages with the responses it continues, so a long one is counted once.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from shoal.core.records import Message
from shoal.server.responses_wire import ResponseObject

_ENTRY_BYTES = 2048  # of objects around the texts, roughly
_MESSAGE_BYTES = 64  # of a message that an earlier response holds too


@dataclass(frozen=True, slots=True)
class Stored:
    """A response, the items that were sent for it, and the conversation up to its end."""

    response: ResponseObject
    items: tuple[dict[str, Any], ...]
    messages: tuple[Message, ...]
    size: int


class ResponseStore:
    """Stored responses by tenant; nobody finds those of another."""

    def __init__(self, max_bytes: int) -> None:
        self._max = max_bytes
        self._tenants: dict[str, OrderedDict[str, Stored]] = {}
        self._sizes: dict[str, int] = {}

    @property
    def size(self) -> int:
        """Bytes held, roughly."""
        return sum(self._sizes.values())

    def put(
        self,
        scope: str,
        response: ResponseObject,
        items: tuple[dict[str, Any], ...],
        messages: tuple[Message, ...],
        new: int,
    ) -> None:
        """Keep a response whose conversation has ``new`` messages that no earlier one holds."""
        texts = sum(len(one.content) + len(str(one.tool_calls)) for one in messages[-new:])
        size = _ENTRY_BYTES + 3 * texts + _MESSAGE_BYTES * len(messages)
        if size > self._max:
            return
        self.drop(scope, response.id)
        self._tenants.setdefault(scope, OrderedDict())[response.id] = Stored(
            response, items, messages, size
        )
        self._sizes[scope] = self._sizes.get(scope, 0) + size
        while self.size > self._max:
            most = max(self._sizes, key=self._sizes.__getitem__)
            self.drop(most, next(iter(self._tenants[most])))

    def get(self, scope: str, id: str) -> Stored | None:
        """A response, which becomes the newest of its tenant."""
        mine = self._tenants.get(scope)
        if mine is None or id not in mine:
            return None
        mine.move_to_end(id)
        return mine[id]

    def drop(self, scope: str, id: str) -> bool:
        """Forget a response; whether it was there."""
        mine = self._tenants.get(scope)
        if mine is None or id not in mine:
            return False
        self._sizes[scope] -= mine.pop(id).size
        if not mine:
            del self._tenants[scope], self._sizes[scope]
        return True
