"""Whose cache may be moved for whom: the key file says, a body can only ask for less.

``reuse`` in a body is "off" (nothing is found, not even an equal prefix), "exact" (equal prefixes)
or "approx" (cache of equal text is moved here, too); ``cache_scope`` "private" keeps to what the
tenant itself has asked before, "shared" adds what was declared for its groups or for everybody.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace

from shoal.core.errors import ConfigError
from shoal.core.protocols import Engine, Request
from shoal.engine.kvshare.sharing import KVShare, attach
from shoal.engine.kvshare.tenants import Access, Tenants
from shoal.engine.local import LocalEngine
from shoal.server.errors import ApiError
from shoal.server.tenants import Keyring, Tenant
from shoal.server.wire import Sampled


def allowed(requests: Sequence[Request], body: Sampled, tenant: Tenant) -> list[Request]:
    """The requests with the reuse that their body asks for; raises a 403 where it may not."""
    reuse = body.reuse or tenant.reuse
    if reuse == "off":
        return [replace(one, salt=f"{one.salt}/{secrets.token_hex(8)}") for one in requests]
    if reuse == "approx" and tenant.reuse != "approx":
        message = "This key may not have cache moved for it: leave reuse out, or ask the operator."
        raise ApiError(403, message, param="reuse", code="reuse_not_allowed")
    if reuse == "exact":
        return list(requests)
    own = body.cache_scope == "private"
    return [replace(one, reuse="own" if own else "approx") for one in requests]


def share(engine: Engine, keyring: Keyring) -> KVShare | None:
    """Let an engine move cache for those who may have it; None where nobody may.

    Raises :class:`ConfigError` for an engine whose cache is elsewhere.
    """
    if not keyring.moves:
        return None
    if not isinstance(engine, LocalEngine):
        raise ConfigError(
            "Only the cache of a local model can be moved: serve one, or set reuse to exact."
        )
    known = {
        tenant.salt: Access(tenant.groups, quota_bytes=tenant.quota_bytes, weight=tenant.weight)
        for tenant in keyring
    }
    return attach(engine, tenants=Tenants(None if keyring.open else known))
