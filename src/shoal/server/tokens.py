"""/tokenize and /detokenize, as vLLM has them: what a prompt is to the model."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter
from fastapi import Request as HTTPRequest
from pydantic import BaseModel, Field

from shoal.core.errors import EngineError
from shoal.core.protocols import Prompt, Segment, TokenCodec
from shoal.server.errors import ApiError
from shoal.server.service import Service, tenant_of
from shoal.server.tool_calls import described
from shoal.server.translate import message_of
from shoal.server.wire import ChatMessage, Strict, Text


class TokenizeBody(Strict):
    """POST /tokenize; a prompt or messages."""

    model: str | None = None
    prompt: Text | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    return_token_strs: bool | None = None


class Tokenized(BaseModel):
    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeBody(Strict):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[int]


class Detokenized(BaseModel):
    prompt: str


def router(service: Service) -> APIRouter:
    """The routes over one service."""
    routes = APIRouter()
    engine = service.engine

    def codec(model: str | None) -> TokenCodec:
        if model is not None:
            service.adapter_of(model)
        if not isinstance(engine, TokenCodec):
            message = f"The tokens of {service.model_name} are not known here: ask its endpoint."
            raise ApiError(404, message)
        return engine

    @routes.post("/tokenize")
    async def tokenize(body: TokenizeBody, http: HTTPRequest) -> Tokenized:
        known = codec(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "Give a prompt or messages, one of them.", param="prompt")
        prompt: Prompt
        if body.messages is None:
            prompt = (Segment(body.prompt or ""),)
        else:
            prompt = tuple(map(message_of, body.messages))
            if not engine.info.knows_tools:
                prompt = described(prompt, ())
        salt = tenant_of(http).salt

        def work() -> Tokenized:
            tokens = known.encode(prompt, salt)
            texts = [known.decode([one]) for one in tokens] if body.return_token_strs else None
            return Tokenized(
                count=len(tokens),
                max_model_len=engine.info.context_tokens,
                tokens=tokens,
                token_strs=texts,
            )

        async with service.gate.place(tenant_of(http)):
            return await asyncio.to_thread(work)

    @routes.post("/detokenize")
    async def detokenize(body: DetokenizeBody, http: HTTPRequest) -> Detokenized:
        known = codec(body.model)
        async with service.gate.place(tenant_of(http)):
            try:
                return Detokenized(prompt=await asyncio.to_thread(known.decode, body.tokens))
            except EngineError as error:
                raise ApiError(400, str(error), param="tokens") from error

    return routes
