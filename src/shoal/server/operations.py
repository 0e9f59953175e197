"""/health, /metrics and /v1/models: what is served, and how it is."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi import Request as HTTPRequest

from shoal.models import embedder
from shoal.server.adapters import id_of
from shoal.server.answers import ModelCard, ModelList
from shoal.server.errors import ApiError
from shoal.server.service import Service, tenant_of


def router(service: Service) -> APIRouter:
    """The routes over one service."""
    routes = APIRouter()

    def card(name: str, tokens: int | None, parent: str | None = None) -> ModelCard:
        return ModelCard(id=name, created=service.created, max_model_len=tokens, parent=parent)

    def through_adapter(adapter: str) -> ModelCard:
        tokens = service.engine.info.context_tokens
        return card(id_of(service.model_name, adapter), tokens, service.model_name)

    @routes.get("/health")
    async def health() -> dict[str, str]:
        if service.gate.draining:  # balancers send requests elsewhere
            raise ApiError(503, "The server is stopping.", code="stopping", retry_after=1)
        return {"status": "ok"}

    @routes.get("/metrics")
    async def metrics(http: HTTPRequest) -> Response:
        if not tenant_of(http).metrics:
            raise ApiError(403, "This key may not read the metrics, which name all tenants.")
        return Response(service.meters.text(), media_type="text/plain; version=0.0.4")

    @routes.get("/v1/models")
    async def models() -> ModelList:
        """The model that answers, then each of its adapters: clients take the first."""
        own = card(service.model_name, service.engine.info.context_tokens)
        return ModelList(data=[own, *map(through_adapter, service.adapters)])

    @routes.get("/v1/models/{name:path}")
    async def model(name: str) -> ModelCard:
        if name == embedder.NAME and embedder.available():
            return card(name, embedder.MAX_TOKENS)
        adapter = service.adapter_of(name)
        if adapter is not None:
            return through_adapter(adapter)
        return card(name, service.engine.info.context_tokens)

    return routes
