"""/v1/chat/completions and /v1/completions."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi import Request as HTTPRequest

from shoal.server.adapters import id_of, through
from shoal.server.reuse import allowed
from shoal.server.service import Service, tenant_of
from shoal.server.shapes import ChatShape, TextShape
from shoal.server.translate import chat_talk, talk_requests, text_requests
from shoal.server.wire import ChatBody, TextBody


def router(service: Service) -> APIRouter:
    """The routes over one service."""
    routes = APIRouter()

    @routes.post("/v1/chat/completions")
    async def chat(body: ChatBody, http: HTTPRequest) -> Response:
        adapter = service.adapter_of(body.model, body.adapter)
        talk = chat_talk(body)
        tenant = tenant_of(http)
        requests = talk_requests(body, talk, tenant.salt, service.engine.info)
        names = talk.use.names if talk.use else frozenset[str]()
        name = id_of(service.model_name, adapter)
        shape = ChatShape(name, body.n or 1, names, body.include_usage)
        reusing = through(allowed(requests, body, tenant), adapter)
        return await service.respond(http, reusing, shape, stream=bool(body.stream))

    @routes.post("/v1/completions")
    async def completions(body: TextBody, http: HTTPRequest) -> Response:
        adapter = service.adapter_of(body.model, body.adapter)
        tenant = tenant_of(http)
        requests = allowed(text_requests(body, tenant.salt), body, tenant)
        requests = through(requests, adapter)
        shape = TextShape(id_of(service.model_name, adapter), body.n or 1, body.include_usage)
        return await service.respond(http, requests, shape, stream=bool(body.stream))

    return routes
