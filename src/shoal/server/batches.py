"""/v1/files and /v1/batches: jobs that are handed in as a file and fetched as a file."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, File, Form, Query, Response, UploadFile
from fastapi import Request as HTTPRequest
from pydantic import Field

from shoal.core.ids import new_id
from shoal.server.batch_lines import URLS
from shoal.server.batch_store import BatchCard, BatchList, BatchStore, Deleted, FileCard, FileList
from shoal.server.batch_worker import BatchWorker
from shoal.server.errors import ApiError
from shoal.server.service import Service, tenant_of
from shoal.server.wire import Strict

DAY = 24 * 3600
MAX_FILES = 10_000
"""Files a tenant may keep."""


class BatchBody(Strict):
    """POST /v1/batches."""

    input_file_id: str
    endpoint: Annotated[str, Field(max_length=64)]
    completion_window: Literal["24h"] = "24h"
    metadata: dict[str, Annotated[str, Field(max_length=512)]] | None = None


def router(service: Service, folder: Path) -> APIRouter:
    """The routes over one service; files and batches are kept in ``folder``.

    Batches that are open when the app starts are gone on with; when it stops they are left as they
    are.
    """
    worker = BatchWorker(service.engine, service.model_name, folder)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker.resume()
        try:
            yield
        finally:
            await worker.stop()

    routes = APIRouter(lifespan=lifespan)

    def store(http: HTTPRequest) -> BatchStore:
        return worker.store(tenant_of(http))

    @routes.post("/v1/files")
    async def upload(
        http: HTTPRequest, file: Annotated[UploadFile, File()], purpose: Annotated[str, Form()]
    ) -> FileCard:
        if purpose != "batch":
            raise ApiError(400, "purpose: files are kept for 'batch' only.", param="purpose")
        if len(store(http).list_files()) >= MAX_FILES:
            message = f"There are {MAX_FILES:,} files already: delete some."
            raise ApiError(400, message, param="file")
        return store(http).add_file(await file.read(), file.filename or "batch.jsonl", purpose)

    @routes.get("/v1/files")
    async def files(http: HTTPRequest, purpose: str | None = None) -> FileList:
        found = store(http).list_files()
        return FileList(data=[card for card in found if purpose in (None, card.purpose)])

    @routes.get("/v1/files/{file_id}")
    async def file_card(file_id: str, http: HTTPRequest) -> FileCard:
        return store(http).file(file_id)

    @routes.get("/v1/files/{file_id}/content")
    async def content(file_id: str, http: HTTPRequest) -> Response:
        return Response(store(http).content(file_id), media_type="application/jsonl")

    @routes.delete("/v1/files/{file_id}")
    async def delete(file_id: str, http: HTTPRequest) -> Deleted:
        store(http).delete_file(file_id)
        return Deleted(id=file_id)

    @routes.post("/v1/batches")
    async def create(body: BatchBody, http: HTTPRequest) -> BatchCard:
        kept = store(http)
        if body.endpoint not in URLS:
            message = f"endpoint: {body.endpoint!r} cannot be batched; {', '.join(URLS)} can."
            raise ApiError(400, message, param="endpoint")
        kept.file(body.input_file_id)
        now = int(time.time())
        card = BatchCard(
            id=f"batch-{new_id()}",
            endpoint=body.endpoint,
            input_file_id=body.input_file_id,
            completion_window=body.completion_window,
            created_at=now,
            expires_at=now + DAY,
            metadata=body.metadata,
        )
        kept.save(card)
        worker.wake(kept.tenant)
        return card

    @routes.get("/v1/batches")
    async def batches(
        http: HTTPRequest,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> BatchList:
        found = store(http).list_batches()
        if after is not None:
            found = [card for card in found if card.id < after]
        shown = [worker.card(store(http), card.id) for card in found[:limit]]
        return BatchList(
            data=shown,
            first_id=shown[0].id if shown else None,
            last_id=shown[-1].id if shown else None,
            has_more=len(found) > limit,
        )

    @routes.get("/v1/batches/{batch_id}")
    async def batch(batch_id: str, http: HTTPRequest) -> BatchCard:
        return worker.card(store(http), batch_id)

    @routes.post("/v1/batches/{batch_id}/cancel")
    async def cancel(batch_id: str, http: HTTPRequest, _: Any = None) -> BatchCard:
        return worker.cancel(store(http), batch_id)

    return routes
