"""The remote engine: any OpenAI-compatible endpoint behind the engine protocol."""

from __future__ import annotations

import asyncio
import math
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, TypeVar

import httpx
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from shoal.core.errors import ConfigError, EngineError, RemoteError, nearest
from shoal.core.protocols import (
    Completion,
    Delta,
    EngineInfo,
    ErrorKind,
    OnDelta,
    Prompt,
    Request,
    Score,
)
from shoal.core.records import Message, Usage
from shoal.engine.endpoint import Endpoint, Refused, Retryable, events, garbage, get, parse
from shoal.engine.remote_format import (
    Answer,
    Dialect,
    Embeddings,
    Models,
    Reply,
    body_of,
    chosen,
    conforms,
    dialects_of,
    path_of,
    raw,
    scores,
)

LEADER_CHARACTERS = 2000
"""A common prefix this long makes the first request of a group go ahead of the others."""

_OVERFLOW = re.compile(r"(?i)context_length_exceeded|context length|exceeds?[a-z ]* context")
_BYTES_PER_TOKEN = 3.5
_TOKENS_PER_MESSAGE = 4

B = TypeVar("B", bound=BaseModel)


class RemoteEngine:
    """Implements :class:`shoal.core.protocols.Engine` over HTTP; one object serves one loop.

    A group is sent concurrently; where its prompts begin alike the first request goes ahead
    until its first token, so that the endpoint's own prefix cache serves the rest. Cached tokens
    are those that the endpoint reports. Token counts before an answer are estimates, token ids
    are unknown, log-probabilities are as the endpoint defines them, and a salt is passed on as
    ``cache_salt``. One request may fail alone; when the endpoint fails all, the call raises.

    key             else SHOAL_API_KEY or OPENAI_API_KEY from the environment
    context_tokens  the model's context length, where it is known
    timeout, retries, concurrency, client  as in :class:`Endpoint`
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        key: str | None = None,
        context_tokens: int | None = None,
        timeout: float = 600.0,
        retries: int = 4,
        concurrency: int = 16,
        client: httpx.AsyncClient | None = None,
    ) -> None:
        self._endpoint = Endpoint(
            base_url,
            key=key or _key(),
            timeout=timeout,
            retries=retries,
            concurrency=concurrency,
            client=client,
        )
        self._info = EngineInfo(
            model=model,
            kind="remote",
            context_tokens=context_tokens,
            exact_counts=False,
            details={"url": str(self._endpoint)},
        )
        self._dialects: dict[str, Dialect] = {}
        self._limit = "max_tokens"
        self._closed = False

    @classmethod
    def open(cls, base_url: str, model: str | None = None, **options: Any) -> RemoteEngine:
        """Ask the endpoint for its models and take ``model``, or the only one it has.

        An endpoint that lists no models is trusted when a model is named. Raises
        :class:`RemoteError` where nothing answers and :class:`ConfigError` for a model that is
        not there. Blocks for up to 10 s; the options are those of the class.
        """
        try:
            listed = Models.model_validate(
                get(base_url, "/models", key=options.get("key") or _key())
            )
        except (Refused, ValidationError):
            listed = Models()
        names = [one.id for one in listed.data]
        if model is None and len(names) == 1:
            model = names[0]
        if model is None:
            known = f" It has {', '.join(map(repr, names[:8]))}." if names else ""
            raise ConfigError(f"Say which model of {base_url} to use (--model-name).{known}")
        if names and model not in names:
            raise ConfigError(f"{base_url} has no model {model!r}.{nearest(model, names)}")
        options.setdefault("context_tokens", listed.context_of(model))
        return cls(base_url, model, **options)

    @property
    def info(self) -> EngineInfo:
        """The endpoint's model."""
        return self._info

    async def generate(
        self, requests: Sequence[Request], on_delta: OnDelta | None = None
    ) -> list[Completion]:
        """See :meth:`shoal.core.protocols.Engine.generate`."""
        self._check_open()
        led = _begin_alike(requests)
        started = asyncio.Event()

        async def answer(index: int, request: Request) -> Completion | RemoteError:
            if led and index > 0:
                await started.wait()

            def on_text(piece: str) -> None:
                started.set()
                if on_delta is not None and piece:
                    on_delta(Delta(index, piece))

            try:
                return await self._answer(request, on_text, heard=on_delta is not None)
            except RemoteError as error:
                return error
            except EngineError as error:
                return Completion("", finish="error", error=str(error), error_kind=_kind(error))
            finally:
                started.set()

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(answer(*pair)) for pair in enumerate(requests)]
        return _settled([task.result() for task in tasks])

    async def score(self, prefix: Prompt, candidates: Sequence[str], salt: str = "") -> list[Score]:
        """See :meth:`shoal.core.protocols.Engine.score`.

        Needs an endpoint whose /completions echoes prompts with log-probabilities, and a prefix
        of text segments, as its chat template is not known here.
        """
        self._check_open()
        if not candidates:
            return []
        start = "" if not prefix or isinstance(prefix[0], Message) else raw(prefix)
        if not start or not isinstance(start, str):
            raise EngineError("A remote score needs a prefix of text segments.")
        body = {
            "model": self._info.model,
            "prompt": [start + text for text in candidates],
            "max_tokens": 1,
            "temperature": 0,
            "echo": True,
            "logprobs": 1,
        } | ({"cache_salt": salt} if salt else {})
        try:
            reply = await self._exchange("/completions", body, Reply)
        except Refused as error:
            raise EngineError(f"{self._endpoint} cannot score texts: {error}") from error
        return scores(reply, start, candidates)

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See :meth:`shoal.core.protocols.Engine.embed`."""
        self._check_open()
        body = {"model": self._info.model, "input": list(texts), "encoding_format": "float"}
        reply = await self._exchange("/embeddings", body, Embeddings)
        rows = [row.embedding for row in sorted(reply.data, key=lambda row: row.index)]
        if len(rows) != len(texts) or len({len(row) for row in rows}) > 1:
            raise RemoteError(
                f"{self._endpoint}/embeddings sent {len(rows)} vectors for {len(texts)} texts: "
                "check its model."
            )
        vectors = np.array(rows, np.float32).reshape(len(rows), -1)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit: NDArray[np.float32] = np.divide(vectors, np.maximum(norms, 1e-12), dtype=np.float32)
        return unit

    def count_tokens(self, prompt: Prompt) -> int:
        """An estimate from the length of the text, on the high side for English."""
        count = 0
        for part in prompt:
            if isinstance(part, Message):
                count += _TOKENS_PER_MESSAGE + _estimate(part.content)
            else:
                count += _estimate(part.text) if part.tokens is None else len(part.tokens)
        return count

    async def close(self) -> None:
        """Close the connections."""
        self._closed = True
        await self._endpoint.close()

    async def _answer(
        self, request: Request, on_text: Callable[[str], None], *, heard: bool
    ) -> Completion:
        """One answer that keeps to its grammar; the ways to say the grammar are tried in turn."""
        if not request.prompt:
            raise EngineError("The prompt is empty: give at least one message or segment.")
        grammar = request.grammar
        dialects = dialects_of(grammar)
        if grammar is None or len(dialects) == 1:
            completion = await self._ask(request, dialects[0], on_text, heard=heard)
            if grammar is None or completion.finish != "stop" or conforms(completion.text, grammar):
                return completion
        else:
            known = self._dialects.get(grammar.kind, dialects[0])
            for dialect in dialects[dialects.index(known) :]:
                try:  # nothing is passed on before it is known to keep to the grammar
                    completion = await self._ask(
                        request, dialect, lambda _: on_text(""), heard=False
                    )
                except Refused:
                    if dialect == dialects[-1]:
                        raise
                    continue
                if completion.finish != "stop" or conforms(completion.text, grammar):
                    self._dialects[grammar.kind] = dialect
                    on_text(completion.text)
                    return completion
        raise EngineError(
            f"{self._endpoint} does not keep to a {grammar.kind} constraint: use an endpoint with "
            "guided decoding, or ask without a grammar."
        )

    async def _ask(
        self, request: Request, dialect: Dialect, on_text: Callable[[str], None], *, heard: bool
    ) -> Completion:
        """One answer; with ``heard`` false it may be asked for again after text has come."""
        started = time.perf_counter()
        first: float | None = None

        async def read(response: httpx.Response) -> Answer:
            nonlocal first
            answer = Answer()
            try:
                async for reply in _replies(response):
                    piece = answer.add(reply)
                    if piece and first is None:
                        first = time.perf_counter()
                    on_text(piece)
            except (httpx.HTTPError, Retryable) as error:
                raise _cut(response, final=heard and bool(answer.text)) from error
            if answer.finish is None:
                raise _cut(response, final=heard and bool(answer.text))
            return answer

        body = body_of(request, self._info.model, dialect, self._limit)
        try:
            answer = await self._endpoint.post(path_of(request.prompt), body, read)
        except Refused as error:
            if self._limit in str(error) and "max_completion_tokens" in str(error):
                self._limit = "max_completion_tokens"  # newer OpenAI models want this name
                return await self._ask(request, dialect, on_text, heard=heard)
            raise
        ended = time.perf_counter()
        wrapped = request.grammar is not None and (request.grammar.kind, dialect) == (
            "choice",
            "json_schema",
        )
        counted = answer.prompt_tokens is not None
        return Completion(
            text=chosen(answer.text) if wrapped else answer.text,
            finish=answer.finish or "stop",
            usage=Usage(
                prompt_tokens=answer.prompt_tokens or self.count_tokens(request.prompt),
                shared_tokens=answer.shared_tokens,
                decoded_tokens=answer.decoded_tokens if counted else answer.pieces,
                first_token_ms=((first or ended) - started) * 1e3,
                total_ms=(ended - started) * 1e3,
            ),
            logprobs=tuple(answer.logprobs),
            tool_calls=answer.tool_calls,
            how="exact" if counted else "exact, token counts estimated",
            error=answer.error,
        )

    async def _exchange(self, path: str, body: Mapping[str, Any], shape: type[B]) -> B:
        """A plain JSON exchange; an endpoint without this path gets a sentence."""

        async def read(response: httpx.Response) -> B:
            await response.aread()
            return _shaped(shape, parse(response), response)

        try:
            return await self._endpoint.post(path, body, read)
        except Refused as error:
            if error.status in (404, 405):
                raise EngineError(f"{self._endpoint} has no {path}: use another one.") from error
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("The remote engine is closed: open a new one.")


def _key() -> str | None:
    return os.environ.get("SHOAL_API_KEY") or os.environ.get("OPENAI_API_KEY")


async def _replies(response: httpx.Response) -> AsyncIterator[Reply]:
    """The pieces of a streamed answer; the one piece of an endpoint that does not stream."""
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        async for event in events(response):
            yield _checked(_shaped(Reply, event, response), response)
    else:
        await response.aread()
        yield _checked(_shaped(Reply, parse(response), response), response)


def _checked(reply: Reply, response: httpx.Response) -> Reply:
    """The reply, unless it is an error sent after the answer had begun."""
    if reply.error:
        message = reply.error.get("message") if isinstance(reply.error, dict) else reply.error
        code = reply.error.get("code") if isinstance(reply.error, dict) else None
        sentence = f"{response.request.url.host} broke off: {str(message).rstrip('.')}."
        if isinstance(code, int) and 400 <= code < 500:
            raise Refused(sentence, code)
        raise RemoteError(sentence)
    return reply


def _shaped(shape: type[B], value: object, response: httpx.Response) -> B:
    try:
        return shape.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise garbage(response, f"JSON of another shape (in {where})") from error


def _cut(response: httpx.Response, *, final: bool) -> RemoteError:
    """The error for a stream that ended early; final where its text was passed on already."""
    sentence = f"{response.request.url.host} cut its answer short"
    if final:
        return RemoteError(f"{sentence} after it had begun: ask again.")
    return Retryable(f"{sentence}.")


def _begin_alike(requests: Sequence[Request]) -> bool:
    """Whether all prompts of a group share a prefix worth computing first."""
    if len(requests) < 2:
        return False
    first, *others = [_flat(one.prompt)[:LEADER_CHARACTERS] for one in requests]
    return len(first) == LEADER_CHARACTERS and all(other == first for other in others)


def _flat(prompt: Prompt) -> str:
    return "\0".join(
        f"{part.role}\0{part.content}" if isinstance(part, Message) else part.text
        for part in prompt
    )


def _settled(results: Sequence[Completion | RemoteError]) -> list[Completion]:
    """Requests that failed at the endpoint fail alone, unless all did."""
    failures = [result for result in results if isinstance(result, RemoteError)]
    if failures and len(failures) == len(results):
        raise failures[0]
    return [
        Completion("", finish="error", error=str(result), error_kind="remote")
        if isinstance(result, RemoteError)
        else result
        for result in results
    ]


def _kind(error: EngineError) -> ErrorKind | None:
    """Whose fault a refusal was: a key or model that the endpoint does not take is not the
    request's, and endpoints tell overlong prompts by a code or in words."""
    if isinstance(error, Refused) and error.status in (401, 403, 404):
        return "remote"
    return "context" if _OVERFLOW.search(str(error)) else None


def _estimate(text: str) -> int:
    return math.ceil(len(text.encode("utf-8", "surrogatepass")) / _BYTES_PER_TOKEN)
