"""Who asks: API keys, the tenants behind them, and what each tenant may use.

The scope of a cache follows from the tenant and is decided here; no body can widen it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shoal.core.errors import ConfigError, InputError, nearest

OPEN = "open"
"""The tenant of everybody where no key is asked for."""

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"

Places = Annotated[int, Field(ge=1)]
Reuse = Literal["exact", "approx"]


@dataclass(frozen=True, slots=True)
class Tenant:
    """Somebody with keys of their own.

    salt         scope of what this tenant's requests share in the engine
    max_running  requests answered at a time; None: as many as the server has places
    max_waiting  requests that may wait for a place
    metrics      whether /metrics, which names all tenants, may be read
    reuse        "approx" lets cache of equal text be moved between its prompts
    groups       whose declared texts it finds then, beside its own and public ones
    quota_bytes  what it may keep to be moved; None: all there is room for
    weight       its share of the engine where requests are ordered by what they find
    """

    name: str
    salt: str = ""
    max_running: int | None = None
    max_waiting: int | None = None
    metrics: bool = False
    reuse: Reuse = "exact"
    groups: frozenset[str] = frozenset()
    quota_bytes: int | None = None
    weight: float = 1.0


class _Entry(BaseModel):
    """What a key file says of one tenant."""

    model_config = ConfigDict(extra="forbid", strict=True)

    keys: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
    max_running: Places | None = None
    max_waiting: Annotated[int, Field(ge=0)] | None = None
    metrics: bool = False
    reuse: Reuse = "exact"
    groups: list[Annotated[str, Field(pattern=f"^{_NAME}$")]] = []
    cache_quota_mib: Annotated[int, Field(ge=0)] | None = None
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0

    def tenant(self, name: str, digests: list[bytes]) -> Tenant:
        quota = self.cache_quota_mib
        return Tenant(
            name,
            _salt(name, digests),
            self.max_running,
            self.max_waiting,
            self.metrics,
            self.reuse,
            frozenset(self.groups),
            None if quota is None else quota << 20,
            self.weight,
        )


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    tenants: Annotated[
        dict[Annotated[str, Field(pattern=f"^{_NAME}$")], _Entry], Field(min_length=1)
    ]


class Keyring:
    """Finds the tenant of a key. Without keys everybody is let in, each token a scope of its own.

    Only SHA-256 digests of keys are kept, and every look-up compares with all of them.
    """

    def __init__(
        self, tenants: Mapping[bytes, Tenant] | None = None, *, reuse: Reuse = "exact"
    ) -> None:
        """``tenants`` by the SHA-256 digest of their keys; None lets everybody in.

        ``reuse`` is what everybody may who comes without a key that is known.
        """
        self._tenants = None if tenants is None else dict(tenants)
        self._reuse: Reuse = reuse

    @classmethod
    def single(cls, key: str, *, reuse: Reuse = "exact") -> Keyring:
        """One key, whose holder may also read the metrics."""
        digest = _digest(key)
        salt = _salt("default", [digest])
        return cls({digest: Tenant("default", salt, metrics=True, reuse=reuse)})

    @classmethod
    def read(cls, path: Path) -> Keyring:
        """A key file, TOML or JSON by its ending; see docs/serving.md.

        Raises :class:`InputError` where it cannot be read and :class:`ConfigError` where it
        makes no sense. No key appears in either.
        """
        try:
            data = path.read_bytes().decode()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"The key file {path} cannot be read: {error}.") from None
        try:
            raw = json.loads(data) if path.suffix == ".json" else tomllib.loads(data)
        except (ValueError, RecursionError):  # their texts may quote a key
            kind = "JSON" if path.suffix == ".json" else "TOML"
            raise ConfigError(f"The key file {path} is not valid {kind}.") from None
        try:
            found = _File.model_validate(raw)
        except ValidationError as error:
            raise ConfigError(f"The key file {path}: {_sentence(error)}") from None
        tenants: dict[bytes, Tenant] = {}
        for name, entry in found.tenants.items():
            digests = [_digest(key) for key in entry.keys]
            tenant = entry.tenant(name, digests)
            for digest in digests:
                if digest in tenants:
                    other = tenants[digest].name
                    raise ConfigError(
                        f"The key file {path}: {name!r} and {other!r} have a key in common, or "
                        "one of them has it twice: every key belongs to one tenant, once."
                    )
                tenants[digest] = tenant
        return cls(tenants)

    @property
    def open(self) -> bool:
        """Whether everybody is let in."""
        return self._tenants is None

    @property
    def moves(self) -> bool:
        """Whether anybody may have cache moved."""
        return self._reuse == "approx" or any(one.reuse == "approx" for one in self)

    def __iter__(self) -> Iterator[Tenant]:
        """All tenants that are known by name."""
        return iter({tenant.name: tenant for tenant in (self._tenants or {}).values()}.values())

    def tenant(self, token: str) -> Tenant | None:
        """Whose key this is; None where it is nobody's. Takes as long for each answer."""
        if self._tenants is None:
            salt = hashlib.blake2b(token.encode(), digest_size=16).hexdigest() if token else ""
            return Tenant(OPEN, salt, metrics=True, reuse=self._reuse)
        given = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        found = None
        for digest, tenant in self._tenants.items():
            if hmac.compare_digest(digest, given):
                found = tenant
        return found


def token_of(authorization: str) -> str:
    """The bearer token of an ``Authorization`` header, or nothing."""
    kind, _, token = authorization.partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def _digest(key: str) -> bytes:
    """SHA-256 of a key, which may be written down as its digest already."""
    known = _DIGEST.fullmatch(key)
    return bytes.fromhex(known[1]) if known else hashlib.sha256(key.encode()).digest()


def _salt(name: str, digests: list[bytes]) -> str:
    """A scope that nobody can name who has not the tenant's keys: endpoints may see it."""
    return hashlib.blake2b(name.encode(), key=min(digests), digest_size=16).hexdigest()


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"] if part != "[key]")
    if first["type"] == "extra_forbidden":
        known = _Entry.model_fields if len(first["loc"]) > 1 else _File.model_fields
        return f"there is no setting {where!r}.{nearest(str(first['loc'][-1]), known)}"
    return f"{where or 'the whole'}: {first['msg'].rstrip('.')}."
