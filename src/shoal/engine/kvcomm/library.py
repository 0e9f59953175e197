"""What is computed once for all calls: fixed pieces, base caches, anchors, comparisons."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine, MutableMapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from shoal.engine.kvcomm.anchors import Anchor, AnchorPool, Comparison
from shoal.engine.kvcomm.comparing import Comparer
from shoal.engine.kvcomm.policy import Bases, CommPolicy, Known
from shoal.engine.kvcomm.templates import Template
from shoal.engine.local import LocalEngine
from shoal.engine.segments import KVSegment

T = TypeVar("T")
K = TypeVar("K")
_log = logging.getLogger(__name__)


class Library:
    """What one engine knows of templates and texts; anchors outlive it in ``folder``."""

    def __init__(self, engine: LocalEngine, policy: CommPolicy, folder: Path | None) -> None:
        self.engine = engine
        self.policy = policy
        self.folder = folder
        self._known: dict[str, asyncio.Task[Known]] = {}
        self._bases: OrderedDict[tuple[str, tuple[int, ...]], asyncio.Task[KVSegment]]
        self._bases = OrderedDict()
        self._compare = Comparer()

    def with_policy(self, policy: CommPolicy) -> Library:
        """The same knowledge, put to work by another policy."""
        other = Library(self.engine, policy, self.folder)
        other._known, other._bases, other._compare = self._known, self._bases, self._compare
        return other

    @property
    def templates(self) -> list[Known]:
        """What is known of every template that was seen."""
        return [task.result() for task in self._known.values() if _made(task)]

    @property
    def texts(self) -> int:
        """Texts whose base caches are here, or on their way."""
        return len(self._bases)

    def save(self) -> None:
        """Keep the anchors, where there is a folder for them."""
        if self.folder is None:
            return
        for key, task in self._known.items():
            pools = task.result().pools if _made(task) else ()
            for index, pool in enumerate(pools):
                if pool.anchors:
                    pool.save(self._file(key, index))

    def compare(self, salt: str, base: KVSegment, anchors: Sequence[Anchor]) -> Comparison:
        """Base caches of equal tokens are equal in one scope and behind one beginning."""
        return self._compare(repr((salt, self.policy.beginning)), base, anchors)

    async def read(self, template: Template, salt: str) -> tuple[Known, Bases]:
        """What is known of a template, and the base caches of its texts."""
        if len(template.parts) == 1:
            return Known([], []), []
        known = await self._about(template, salt)
        texts = [part.tokens for part in template.parts[1::2]]
        longest = max(map(len, texts))

        async def base(text: tuple[int, ...]) -> KVSegment | None:
            if len(text) <= self.policy.short and 4 * len(text) <= longest:
                return None
            return await self._base(text, salt)

        return known, await asyncio.gather(*map(base, texts))

    async def _about(self, template: Template, salt: str) -> Known:
        """What is known of a template; its fixed pieces are computed once."""
        key = self._key(template, salt)
        return await _once(self._known, key, lambda: self._first_seen(template, salt))

    def _key(self, template: Template, salt: str) -> str:
        """Names what anchors are of use to; a fingerprint tells those of another model."""
        return template.key(salt, self.policy.beginning)

    async def _first_seen(self, template: Template, salt: str) -> Known:
        encode = self.engine.model.tokenizer.encode
        parts = [
            part.tokens if not part.placeholder else tuple(encode(f"{{{part.placeholder}}}"))
            for part in template.parts
        ]
        start = len(parts[0])  # the beginning is exact, and shared like any other
        tokens = [token for part in parts for token in part]
        rest = await self.engine.capture(tokens, start, salt)
        fixed, done = [], 0
        for index, part in enumerate(parts[1:], 1):
            if index % 2 == 0:
                fixed.append(rest.slice(done, done + len(part)))
            done += len(part)
        policy = self.policy
        pools = [
            AnchorPool(policy.size, policy.window, policy.budget) for _ in range(len(parts) // 2)
        ]
        if self.folder is not None:
            for index, pool in enumerate(pools):
                path = self._file(self._key(template, salt), index)
                if not pool.load(path, self.engine.model.fingerprint) and path.exists():
                    _log.warning("%s is damaged or of another model: anchors begin anew.", path)
        return Known(fixed, pools)

    def _file(self, key: str, index: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}-{index}.safetensors"

    async def _base(self, tokens: tuple[int, ...], salt: str) -> KVSegment:
        """A text's own keys and values, behind the fixed beginning; computed once."""
        before = self.engine.model.tokenizer.encode(self.policy.beginning)
        key = (salt, (*before, *tokens))
        task = _once(self._bases, key, lambda: self.engine.capture(key[1], len(before), salt))
        self._bases.move_to_end(key)
        while len(self._bases) > self.policy.bases:
            self._bases.popitem(last=False)
        return await task


def _once(
    kept: MutableMapping[K, asyncio.Task[T]], key: K, make: Callable[[], Coroutine[Any, Any, T]]
) -> asyncio.Future[T]:
    """What is made once for all who ask, and again where it failed; who leaves does not end it."""
    task = kept.get(key)
    if task is None or (task.done() and not _made(task)):
        task = kept[key] = asyncio.create_task(make())
    return asyncio.shield(task)


def _made(task: asyncio.Task[T]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None
