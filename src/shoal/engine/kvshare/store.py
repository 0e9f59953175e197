"""Segments by content: what was computed once for a text can be found wherever it stands again.

A segment is found by model, scope and the hash of its tokens, and is compared token by token, so
only equal text ever lends its cache. When memory is short, the segment goes whose

    saved seconds · hit rate / bytes

is least, among those that no request under way holds; first the tenant's own where its quota is
what is short. KVShare (arXiv 2503.16525) leaves scopes and eviction open.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from shoal.core.errors import EngineError
from shoal.core.files import write_text
from shoal.engine.kvshare.chunks import digest as digest_of
from shoal.engine.kvshare.tenants import Scope, Visibility, tenant_of
from shoal.engine.segments import KVSegment

STORE_BYTES = 1 << 28
_INDEX = "index.json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Behind:
    """What stood before a declared segment: the first ``length`` of its text's ``tokens``.

    Such a segment is found behind these tokens only. Otherwise whoever declares a text could put
    before a well-known one whatever it wants others to read.
    """

    tokens: tuple[int, ...]
    length: int

    def stands(self, before: Sequence[int]) -> bool:
        """Whether a text so far ends with these tokens."""
        start = len(before) - self.length
        return start >= 0 and tuple(before[start:]) == self.tokens[: self.length]


@dataclass(slots=True, eq=False)
class Entry:
    """A stored segment.

    behind   what it was declared behind; None: what stood before it does not matter
    owner    tenant whose quota it takes
    seconds  of prefill that finding it saves
    depth    0: computed behind exact tokens; n: behind a segment of depth n - 1
    born     requests that had looked when it came
    holds    requests under way that were put together with it
    """

    segment: KVSegment
    digest: bytes
    scope: Scope
    owner: str
    seconds: float
    depth: int
    born: int
    behind: Behind | None = None
    hits: int = 0
    holds: int = 0

    def worth(self, now: int) -> float:
        """Seconds saved per request and byte; one hit is assumed of what has just come."""
        return self.seconds * (1 + self.hits) / (1 + now - self.born) / self.segment.nbytes


@dataclass(slots=True)
class StoreCounts:
    """What has happened to a store.

    requests  that have looked; hits and misses are chunks they found or not, by visibility
    refused   segments there was no room for
    corrupt   stored files that were damaged, and dropped
    """

    requests: int = 0
    misses: int = 0
    hits: dict[Visibility, int] = field(
        default_factory=lambda: {"private": 0, "group": 0, "public": 0}
    )
    stored: int = 0
    evicted: int = 0
    refused: int = 0
    corrupt: int = 0


_Key = tuple[Scope, bytes]  # and the content of the chunk


class SegmentStore:
    """Segments of one model, within a number of bytes. To be used from one thread."""

    def __init__(self, fingerprint: str, *, max_bytes: int = STORE_BYTES) -> None:
        self.fingerprint = fingerprint
        self.max_bytes = max_bytes
        self.bytes = 0
        self.version = 0  # grows with every change of what can be found
        self.counts = StoreCounts()
        self._entries: dict[_Key, list[Entry]] = {}
        self._owned: dict[str, int] = {}  # tenant -> bytes

    def __len__(self) -> int:
        return sum(map(len, self._entries.values()))

    def __iter__(self) -> Iterator[Entry]:
        return itertools.chain.from_iterable(self._entries.values())

    def find(
        self, digest: bytes, tokens: Sequence[int], start: int, end: int, scopes: Iterable[Scope]
    ) -> Entry | None:
        """The first of the scopes' segments for ``tokens[start:end]`` where they stand.

        Counts nothing.
        """
        for scope in scopes:
            for entry in self._entries.get((scope, digest), ()):
                if entry.segment.tokens == tuple(tokens[start:end]) and (
                    entry.behind is None or entry.behind.stands(tokens[:start])
                ):
                    return entry
        return None

    def hold(self, found: Sequence[Entry]) -> None:
        """Keep segments while a request is put together with them."""
        for entry in found:
            entry.holds += 1

    def release(self, found: Sequence[Entry]) -> None:
        """The request has ended."""
        for entry in found:
            assert entry.holds > 0, "a segment is released once for every hold"
            entry.holds -= 1

    def count(self, found: Sequence[Entry], missed: int) -> None:
        """A request has looked for chunks, and found these."""
        self.counts.requests += 1
        self.counts.misses += missed
        for entry in found:
            entry.hits += 1
            self.counts.hits[entry.scope.visibility] += 1

    def put(
        self,
        segment: KVSegment,
        digest: bytes,
        scope: Scope,
        *,
        owner: str,
        seconds: float,
        depth: int = 0,
        behind: Behind | None = None,
        quota: int | None = None,
    ) -> bool:
        """Store a segment, in place of one that is further from exact; whether it is stored.

        Raises :class:`EngineError` for a segment of another model.
        """
        if segment.fingerprint != self.fingerprint:
            raise EngineError(
                "The segment was computed by another model or number format: its cache is of no "
                "use here; compute it again."
            )
        old = self._same(scope, digest, behind)
        if old is not None and (old.depth <= depth or old.holds):
            return False
        if old is not None:
            self._drop(old)
        if not self._make_room(segment.nbytes, owner, quota):
            self.counts.refused += 1
            return False
        born = self.counts.requests
        entry = Entry(segment, digest, scope, owner, seconds, depth, born, behind)
        self._entries.setdefault((scope, digest), []).append(entry)
        self.bytes += segment.nbytes
        self._owned[owner] = self._owned.get(owner, 0) + segment.nbytes
        self.counts.stored += 1
        self.version += 1
        return True

    def _same(self, scope: Scope, digest: bytes, behind: Behind | None) -> Entry | None:
        before = None if behind is None else behind.tokens[: behind.length]
        for entry in self._entries.get((scope, digest), ()):
            if (entry.behind and entry.behind.tokens[: entry.behind.length]) == before:
                return entry
        return None

    def _make_room(self, wanted: int, owner: str, quota: int | None) -> bool:
        owned = self._owned.get(owner, 0)
        if quota is not None and owned + wanted > quota:
            mine = [entry for entry in self if entry.owner == owner]
            if not self._evict(mine, owned + wanted - quota):
                return False
        if self.bytes + wanted > self.max_bytes:
            return self._evict(self, self.bytes + wanted - self.max_bytes)
        return True

    def _evict(self, among: Iterable[Entry], wanted: int) -> bool:
        """Drop what is worth least until so many bytes came free; nothing where it cannot."""
        now = self.counts.requests
        idle = sorted((e for e in among if not e.holds), key=lambda entry: entry.worth(now))
        if sum(entry.segment.nbytes for entry in idle) < wanted:
            return False
        for entry in idle:
            if wanted <= 0:
                break
            wanted -= entry.segment.nbytes
            self._drop(entry)
            self.counts.evicted += 1
        return True

    def _drop(self, entry: Entry) -> None:
        bucket = self._entries[entry.scope, entry.digest]
        bucket.remove(entry)
        if not bucket:
            del self._entries[entry.scope, entry.digest]
        self.bytes -= entry.segment.nbytes
        self._owned[entry.owner] -= entry.segment.nbytes
        self.version += 1

    def private_to_others(self, digests: Iterable[bytes], tenant: str) -> bool:
        """Whether any of these chunks is in the private scope of another tenant."""
        wanted = set(digests)
        return any(
            entry.digest in wanted
            and entry.scope.visibility == "private"
            and tenant_of(entry.scope.name) != tenant
            for entry in self
        )

    def forget(self, tenant: str) -> None:
        """Drop everything a tenant owns."""
        for entry in [entry for entry in self if entry.owner == tenant]:
            self._drop(entry)

    # -- on disk ------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """Write every segment with a checksum, and the index last. Only the user may read it."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        rows = []
        for entry in self:
            name = _file_name(self.fingerprint, entry)
            if not (folder / name).exists():
                entry.segment.save(folder / name)
            rows.append(
                _Row(
                    file=name,
                    visibility=entry.scope.visibility,
                    scope=entry.scope.name,
                    owner=entry.owner,
                    seconds=entry.seconds,
                    depth=entry.depth,
                    hits=entry.hits,
                    behind=None if entry.behind is None else list(entry.behind.tokens),
                    at=0 if entry.behind is None else entry.behind.length,
                )
            )
        write_text(folder / _INDEX, _Index(segments=rows).model_dump_json())
        kept = {row.file for row in rows}
        for path in folder.glob("*.safetensors"):
            if path.name not in kept:
                path.unlink()

    def load(self, folder: Path) -> None:
        """Take what a folder holds for this model; damaged files are dropped and logged."""
        try:
            index = _Index.model_validate_json((folder / _INDEX).read_bytes())
        except FileNotFoundError:
            return
        except (OSError, ValidationError) as error:
            self.counts.corrupt += 1
            _log.warning(
                "The index of %s is damaged, so nothing is taken from it: %s", folder, error
            )
            return
        for row in index.segments:
            try:
                segment = KVSegment.load(folder / row.file)
            except EngineError as error:
                self.counts.corrupt += 1
                _log.warning("%s It is dropped, and will be computed again.", error)
                (folder / row.file).unlink(missing_ok=True)
                continue
            if segment.fingerprint != self.fingerprint:
                continue  # of another model, or this one in another number format
            scope, name = Scope(row.visibility, row.scope), digest_of(segment.tokens)
            behind = None if row.behind is None else Behind(tuple(row.behind), row.at)
            stored = self.put(
                segment,
                name,
                scope,
                owner=row.owner,
                seconds=row.seconds,
                depth=row.depth,
                behind=behind,
            )
            if stored:
                self._entries[scope, name][-1].hits = row.hits


class _Row(BaseModel):
    """One segment in the index of a folder."""

    model_config = ConfigDict(extra="forbid", strict=True)

    file: str
    visibility: Visibility
    scope: str
    owner: str
    seconds: float
    depth: int
    hits: int
    behind: list[int] | None
    at: int


class _Index(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    segments: list[_Row]


def _file_name(fingerprint: str, entry: Entry) -> str:
    """Names content, scope, depth and what stood before, so a file is never out of date."""
    before = None if entry.behind is None else entry.behind.tokens[: entry.behind.length]
    scope = entry.scope
    parts = (fingerprint, scope.visibility, scope.name, str(entry.depth), str(before))
    name = blake2b("\x1f".join(parts).encode() + entry.digest, digest_size=16)
    return f"{name.hexdigest()}.safetensors"
