"""Who may reuse whose cache: private unless its owner declared it, and decided by the server.

A request comes with a salt, which the server derives from the API key; a body can narrow it
(``salt/anything``) and never widen it. The part before the slash is the tenant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from shoal.core.errors import ConfigError, ShoalError

Visibility = Literal["private", "group", "public"]


class AccessDenied(ShoalError):
    """A tenant that is not known, or that asks for what it may not."""


@dataclass(frozen=True, slots=True, order=True)
class Scope:
    """Who can find a segment: one salt, the members of a group, or everybody."""

    visibility: Visibility
    name: str = ""

    def __post_init__(self) -> None:
        if (self.visibility == "public") == bool(self.name) and self.visibility != "private":
            raise ConfigError(
                f"A {self.visibility} scope is named {self.name!r}: groups have names, and the "
                "public scope has none."
            )


PUBLIC = Scope("public")


@dataclass(frozen=True, slots=True)
class Access:
    """What one tenant may read and keep.

    groups       whose declared segments it reads
    reads_public whether it reads public segments
    declares     whether it may declare texts for groups and for everybody
    quota_bytes  what its segments may take of the store; None: all of it
    weight       its fair share of the engine, relative to others
    """

    groups: frozenset[str] = frozenset()
    reads_public: bool = True
    declares: bool = False
    quota_bytes: int | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise ConfigError(f"A tenant's weight is {self.weight}, but must be positive.")
        if self.quota_bytes is not None and self.quota_bytes < 0:
            raise ConfigError(f"A quota is {self.quota_bytes} bytes, but cannot be negative.")


class Tenants:
    """What each tenant may do. Without a list every salt is a tenant that keeps to itself."""

    def __init__(self, known: Mapping[str, Access] | None = None) -> None:
        self._known = None if known is None else dict(known)

    def access(self, salt: str) -> Access:
        """Of the tenant behind a salt; raises :class:`AccessDenied` where it is not known."""
        if self._known is None:
            return Access()
        found = self._known.get(tenant_of(salt))
        if found is None:
            raise AccessDenied(
                "The cache has no such tenant: let the operator add it, or ask with reuse='exact'."
            )
        return found

    def weight(self, tenant: str) -> float:
        """Fair share of a tenant; 1 of one that is not known."""
        known = self._known or {}
        return known[tenant].weight if tenant in known else 1.0

    def readable(self, salt: str) -> tuple[Scope, ...]:
        """Scopes in which this salt's requests look, nearest first."""
        access = self.access(salt)
        groups = (Scope("group", name) for name in sorted(access.groups))
        public = (PUBLIC,) if access.reads_public else ()
        return (Scope("private", salt), *groups, *public)


def tenant_of(salt: str) -> str:
    """The tenant a salt belongs to."""
    return salt.partition("/")[0]
