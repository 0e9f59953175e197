"""/v1/chat/completions and /v1/completions."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi import Request as HTTPRequest

from shoal.server.reuse import allowed
from shoal.server.service import Service, tenant_of
from shoal.server.shapes import ChatShape, TextShape
from shoal.server.translate import chat_talk, talk_requests, text_requests
from shoal.server.wire import ChatBody, TextBody


def router(service: Service) -> APIRouter:
    """The routes over one service."""
    routes = APIRouter()
    name = service.model_name

    @routes.post("/v1/chat/completions")
    async def chat(body: ChatBody, http: HTTPRequest) -> Response:
        service.check_model(body.model)
        talk = chat_talk(body)
        tenant = tenant_of(http)
        requests = talk_requests(body, talk, tenant.salt, service.engine.info)
        names = talk.use.names if talk.use else frozenset[str]()
        shape = ChatShape(name, body.n or 1, names, body.include_usage)
        reusing = allowed(requests, body, tenant)
        return await service.respond(http, reusing, shape, stream=bool(body.stream))

    @routes.post("/v1/completions")
    async def completions(body: TextBody, http: HTTPRequest) -> Response:
        service.check_model(body.model)
        tenant = tenant_of(http)
        requests = allowed(text_requests(body, tenant.salt), body, tenant)
        shape = TextShape(name, body.n or 1, body.include_usage)
        return await service.respond(http, requests, shape, stream=bool(body.stream))

    return routes
