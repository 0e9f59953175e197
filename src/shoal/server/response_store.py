"""Responses that may be continued or looked up again, in bounded memory.

When memory runs out, the tenant that holds most loses its oldest response. A conversation shares
its messages with the responses it continues, so a long one is counted once.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from shoal.core.records import Message

_ENTRY_BYTES = 1024  # of the objects around the texts, roughly
_SHARED_BYTES = 16  # of a message that an earlier response holds too
_MESSAGE_BYTES = 256  # of one that none does, beside its text


@dataclass(frozen=True, slots=True)
class Stored:
    """A response, the items that were sent for it, and the conversation up to its end.

    The first two are JSON, which takes a fraction of the objects' memory.
    """

    response: str
    items: tuple[str, ...]
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
        id: str,
        response: str,
        items: tuple[str, ...],
        messages: tuple[Message, ...],
        new: int,
    ) -> None:
        """Keep a response whose conversation has ``new`` messages that no earlier one holds."""
        texts = sum(_MESSAGE_BYTES + _bytes(one) for one in messages[-new:])
        texts += len(response) + sum(map(len, items))
        size = _ENTRY_BYTES + texts + _SHARED_BYTES * len(messages)
        if size > self._max:
            return
        self.drop(scope, id)
        stored = Stored(response, items, messages, size)
        self._tenants.setdefault(scope, OrderedDict())[id] = stored
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


def _bytes(message: Message) -> int:
    return len(message.content) + sum(len(call.arguments) for call in message.tool_calls)
