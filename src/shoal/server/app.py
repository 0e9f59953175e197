"""The routes of the OpenAI-compatible server."""

import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, Header, Response
from fastapi import Request as HTTPRequest

from shoal.core.errors import ShoalError, nearest
from shoal.core.protocols import Completion, Engine, Request
from shoal.server.errors import ApiError, install
from shoal.server.limits import BodyLimit
from shoal.server.streaming import ClientGone, EventStream, Live, unless_gone
from shoal.server.translate import ChatShape, Shape, TextShape, chat_requests, text_requests
from shoal.server.wire import Answer, Body, ChatBody, ModelCard, ModelList, TextBody

MAX_BODY_BYTES = 16 << 20


def create_app(
    engine: Engine,
    *,
    model_name: str,
    api_key: str | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> FastAPI:
    """An app that serves ``engine`` under ``model_name`` and closes it at shutdown.

    With ``api_key`` all of /v1 wants it as a bearer token. Caches are shared only among requests
    with the same token: the scope is decided here, and a body's ``cache_salt`` can only narrow
    it.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await engine.close()

    app = FastAPI(title="shoal", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_middleware(BodyLimit, max_bytes=max_body_bytes)
    install(app)
    card = ModelCard(
        id=model_name, created=int(time.time()), max_model_len=engine.info.context_tokens
    )

    def salt(authorization: Annotated[str, Header()] = "") -> str:
        kind, _, token = authorization.partition(" ")
        token = token.strip() if kind.lower() == "bearer" else ""
        if api_key is not None and not secrets.compare_digest(
            token.encode("latin-1"), api_key.encode()
        ):
            raise ApiError(401, "This server wants a valid API key.", code="invalid_api_key")
        return hashlib.blake2b(token.encode(), digest_size=16).hexdigest() if token else ""

    Salt = Annotated[str, Depends(salt)]

    def check_model(name: str) -> None:
        if name != model_name:
            guess = nearest(name, [model_name]) or f" It serves {model_name!r}."
            message = f"This server has no model {name!r}.{guess}"
            raise ApiError(404, message, param="model", code="model_not_found")

    async def respond(
        http: HTTPRequest, body: Body, requests: Sequence[Request], shape: Shape
    ) -> Response:
        try:
            if not body.stream:
                completions = await unless_gone(http, engine.generate(requests))
                _check(engine, requests, completions)
                return _json(shape.whole(completions))
            live = Live(engine, requests)
            stream = EventStream(live, shape, count=len(requests), include_usage=body.include_usage)
            try:  # an error before the first text still gets its status
                ended = await unless_gone(http, live.begin())
                _check(engine, requests, ended or ())
            except BaseException:
                live.task.cancel()
                raise
            return stream
        except ClientGone:
            return Response(status_code=499)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models", dependencies=[Depends(salt)])
    async def models() -> ModelList:
        return ModelList(data=[card])

    @app.get("/v1/models/{name:path}", dependencies=[Depends(salt)])
    async def model(name: str) -> ModelCard:
        check_model(name)
        return card

    @app.post("/v1/chat/completions")
    async def chat(body: ChatBody, salt: Salt, http: HTTPRequest) -> Response:
        check_model(body.model)
        requests = chat_requests(body, salt)
        return await respond(http, body, requests, ChatShape(model_name, body.n or 1))

    @app.post("/v1/completions")
    async def completions(body: TextBody, salt: Salt, http: HTTPRequest) -> Response:
        check_model(body.model)
        requests = text_requests(body, salt)
        return await respond(http, body, requests, TextShape(model_name, body.n or 1))

    return app


def _json(answer: Answer) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")


def _check(engine: Engine, requests: Sequence[Request], completions: Sequence[Completion]) -> None:
    """Raise for the first request that failed alone: its body asked for what cannot be done."""
    for request, completion in zip(requests, completions, strict=False):
        if completion.error is not None:
            code = "context_length_exceeded" if _overflows(engine, request) else None
            raise ApiError(400, completion.error, code=code)


def _overflows(engine: Engine, request: Request) -> bool:
    context = engine.info.context_tokens
    if context is None:
        return False
    try:
        return engine.count_tokens(request.prompt) >= context
    except ShoalError:  # the prompt cannot even be counted: something else is wrong with it
        return False
