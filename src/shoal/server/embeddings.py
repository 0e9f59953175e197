"""/v1/embeddings: sentence vectors by MiniLM, or by the endpoint this server stands before.

The decoder that answers chats is not offered for this: the mean of its states finds nothing.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Response
from fastapi import Request as HTTPRequest
from numpy.typing import NDArray
from pydantic import BaseModel, Field, field_validator
from pydantic_core import PydanticCustomError

from shoal.core.errors import EngineError, MissingExtra, RemoteError
from shoal.engine.compute import compute
from shoal.models.embedder import DIMENSIONS, MAX_TOKENS, NAME, MiniLM, available
from shoal.server.errors import ApiError
from shoal.server.service import Service, tenant_of
from shoal.server.streaming import ClientGone, unless_gone
from shoal.server.wire import Strict, Text

MAX_INPUTS = 2048
_BATCH_TOKENS = 2048  # computed at a time, padding included: answers go on in between

Tokens = list[Annotated[int, Field(ge=0, lt=2**31)]]


class EmbeddingBody(Strict):
    """POST /v1/embeddings; ``truncate_prompt_tokens`` -1 cuts long texts at what is read."""

    model: str
    input: list[Text | Tokens]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None

    @field_validator("input", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        if isinstance(value, str) or (isinstance(value, list) and _is_tokens(value)):
            value = [value]
        if not isinstance(value, list) or not value or not all(value):
            raise PydanticCustomError("input", "give a text, token ids, or a list of those")
        if len(value) > MAX_INPUTS:
            raise PydanticCustomError("input", f"give at most {MAX_INPUTS} texts at once")
        return value


class Embedding(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class LocalEmbedder:
    """MiniLM on the compute thread, loaded when it is first asked for."""

    def __init__(self) -> None:
        self._loading: Future[MiniLM] | None = None

    async def model(self) -> MiniLM:
        """The model; who goes away while it is loaded does not stop that for the others."""
        if self._loading is None or (self._loading.done() and self._loading.exception()):
            self._loading = compute.future(MiniLM.open)
        return await asyncio.shield(asyncio.wrap_future(self._loading))

    async def read(self, inputs: Sequence[str | list[int]], cut: int | None) -> list[list[int]]:
        """Token ids of inputs, cut to ``cut`` tokens where that is given."""
        model = await self.model()

        def encoded() -> list[list[int]]:
            return [model.encode(one) if isinstance(one, str) else one for one in inputs]

        tokens = await asyncio.to_thread(encoded)
        for index, each in enumerate(tokens):
            if any(token >= model.vocabulary for token in each):
                message = f"A token id lies outside the vocabulary of {NAME}."
                raise ApiError(400, message, param="input")
            if cut is not None and len(each) > cut:
                tokens[index] = [*each[: cut - 1], each[-1]]
            elif len(each) > MAX_TOKENS:
                raise ApiError(
                    400,
                    f"Text {index} has {len(each)} tokens, but {NAME} reads {MAX_TOKENS}: split "
                    "it, or set truncate_prompt_tokens to -1.",
                    param="input",
                    code="context_length_exceeded",
                )
        return tokens

    async def vectors(self, tokens: Sequence[list[int]]) -> NDArray[np.float32]:
        """Unit vectors [B, D], computed in batches of texts of like length."""
        model = await self.model()
        found = np.zeros((len(tokens), DIMENSIONS), np.float32)
        order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]))
        while order:
            longest = len(tokens[order[-1]])
            batch = order[-max(1, _BATCH_TOKENS // longest) :]
            del order[-len(batch) :]
            rows = [tokens[index] for index in batch]
            vectors = await asyncio.wrap_future(compute.future(partial(model.vectors, rows)))
            found[batch] = vectors
        return found


def router(service: Service) -> APIRouter:
    """The route over one service."""
    routes = APIRouter()
    local = LocalEmbedder()
    remote = service.engine.info.kind == "remote"

    async def embed(body: EmbeddingBody) -> tuple[NDArray[np.float32], int]:
        if body.model == NAME:
            cut = body.truncate_prompt_tokens
            tokens = await local.read(body.input, MAX_TOKENS if cut == -1 else cut)
            return await local.vectors(tokens), sum(map(len, tokens))
        texts = [one for one in body.input if isinstance(one, str)]
        if len(texts) < len(body.input):
            raise ApiError(400, "Give texts: this endpoint's tokens are unknown.", param="input")
        try:
            return await service.engine.embed(texts), 0
        except RemoteError:
            raise
        except EngineError as error:  # the endpoint is there, but does not do this
            raise ApiError(400, str(error), param="model") from error

    async def placed(body: EmbeddingBody, http: HTTPRequest) -> Embeddings:
        async with service.gate.place(tenant_of(http)):
            vectors, count = await embed(body)
        wanted = body.dimensions
        if wanted is not None and wanted != vectors.shape[1]:
            message = f"{body.model} has {vectors.shape[1]} dimensions, not {wanted}."
            raise ApiError(400, message, param="dimensions")
        return Embeddings(
            data=[
                Embedding(index=index, embedding=_written(vector, body.encoding_format))
                for index, vector in enumerate(vectors)
            ],
            model=body.model,
            usage=EmbeddingUsage(prompt_tokens=count, total_tokens=count),
        )

    @routes.post("/v1/embeddings", response_model=Embeddings)
    async def embeddings(body: EmbeddingBody, http: HTTPRequest) -> Response:
        if body.model == NAME:
            if not available():
                missing = MissingExtra(f"{NAME!r}", "embeddings")
                raise ApiError(404, str(missing), param="model", code="model_not_found")
            if body.dimensions not in (None, DIMENSIONS):
                message = f"{NAME} has {DIMENSIONS} dimensions, not {body.dimensions}."
                raise ApiError(400, message, param="dimensions")
            if body.truncate_prompt_tokens in (0, 1) or (body.truncate_prompt_tokens or 0) > 256:
                message = f"Give -1, or from 2 to {MAX_TOKENS} tokens."
                raise ApiError(400, message, param="truncate_prompt_tokens")
        elif not remote or body.model != service.model_name:
            message = f"Embeddings come from {NAME!r} here, not from {body.model!r}."
            raise ApiError(404, message, param="model", code="model_not_found")
        try:
            answer = await unless_gone(http, placed(body, http))
        except ClientGone:
            return Response(status_code=499)
        return Response(answer.model_dump_json(), media_type="application/json")

    return routes


def _is_tokens(value: list[Any]) -> bool:
    return bool(value) and all(type(one) is int for one in value)


def _written(vector: NDArray[np.float32], form: str) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(number) for number in vector]
