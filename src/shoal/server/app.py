"""The OpenAI-compatible app: middleware, routes and errors around one engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI

from shoal.core.protocols import Engine
from shoal.server import batches, chats, embeddings, operations, responses, settlements, tokens
from shoal.server.errors import install
from shoal.server.limits import Authenticated, BodyLimit, Metered
from shoal.server.reuse import share
from shoal.server.service import ServerLimits, Service
from shoal.server.tenants import Keyring


def create_app(
    engine: Engine,
    *,
    model_name: str,
    keyring: Keyring | None = None,
    limits: ServerLimits | None = None,
    batch_folder: Path | None = None,
) -> FastAPI:
    """An app that serves ``engine`` under ``model_name`` and closes it at shutdown.

    With a ``batch_folder`` it also takes files and batches, which are kept there.

    With a ``keyring`` all but /health wants one of its keys. Caches are shared only among
    requests of the same tenant: the scope is decided here, and a body's ``cache_salt`` can only
    narrow it. Where the keyring lets a tenant have cache moved, a local engine is made to; raises
    :class:`ConfigError` for an engine that cannot.
    """
    keyring = keyring or Keyring()
    share(engine, keyring)
    service = Service(engine, model_name, keyring=keyring, limits=limits or ServerLimits())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await engine.close()

    app = FastAPI(title="shoal", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.service = service
    app.add_middleware(
        BodyLimit,
        max_bytes=service.limits.max_body_bytes,
        max_file_bytes=service.limits.max_file_bytes,
    )
    app.add_middleware(Authenticated, keyring=service.keyring)
    app.add_middleware(Metered, meters=service.meters)
    install(app)
    for room in (operations, chats, responses, embeddings, tokens, settlements):
        app.include_router(room.router(service))
    if batch_folder is not None:
        app.include_router(batches.router(service, batch_folder))
    return app
