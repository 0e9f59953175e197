"""An OpenAI-compatible endpoint with a scripted model that writes down what it is asked.

Who is asked it tells by the role that stands last; every answer takes the same time. Counting is
left for later, so that it takes nothing from the time of a run. With an upstream, a real model
there answers instead, and each run has a cache of its own (``cache_salt``).
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from task import EDITOR, READERS

from shoal.core.records import Message
from shoal.server.serve import listen

MODEL = "scripted"
SECONDS = 0.05
"""How long the model takes for an answer."""
NOTES = {
    "purpose": "It welcomes readers to a dictionary of words.",
    "audience": "People who wonder how programmers talk.",
    "doubts": "It does not say who keeps it up to date.",
    "editor": "The text opens a dictionary of slang. Whoever wonders about it should read it.",
}

Prompt = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run has asked for: requests, prompt tokens, and those a prefix cache leaves."""

    requests: int
    prompt_tokens: int
    computed_tokens: int


def cost(prompts: Sequence[Prompt], encode: Callable[[Prompt], Sequence[int]]) -> Cost:
    """What these prompts cost, each token after a prefix seen before counted once."""
    trie: dict[int, Any] = {}
    asked = computed = 0
    for prompt in prompts:
        tokens, node = encode(prompt), trie
        asked += len(tokens)
        for token in tokens:
            computed += token not in node
            node = node.setdefault(token, {})
    return Cost(len(prompts), asked, computed)


def speaker(messages: Prompt) -> str:
    """Whose turn it is: whose role stands latest in the prompt."""
    text = "\n".join(message.content for message in messages)
    roles = READERS | {"editor": EDITOR}
    # CrewAI shows the editor what it expects of it behind the notes, the others at the very end
    return max(roles, key=lambda name: text.rfind(roles[name]))


def application(asked: dict[str, list[Prompt]], upstream: str, salt: str) -> Starlette:
    """The endpoint; what run ``i`` asks at ``/i/v1`` is kept under ``"i"``."""
    http = httpx.AsyncClient(timeout=120)
    real = httpx.get(f"{upstream}/models").json()["data"][0]["id"] if upstream else MODEL

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    async def passed_on(body: dict[str, Any], run: str) -> Response:
        body |= {"model": real, "cache_salt": f"{salt}-{run}"}
        if body.get("stream"):
            lines = http.stream("POST", f"{upstream}/chat/completions", json=body)

            async def pieces() -> AsyncIterator[bytes]:
                async with lines as response:
                    async for piece in response.aiter_bytes():
                        yield piece

            return StreamingResponse(pieces(), media_type="text/event-stream")
        answer = await http.post(f"{upstream}/chat/completions", json=body)
        return Response(answer.content, answer.status_code, media_type="application/json")

    async def completions(request: Request) -> Response:
        body = await request.json()
        messages = tuple(
            Message("system" if one["role"] == "system" else "user", str(one["content"]))
            for one in body["messages"]
        )
        run = request.path_params["run"]
        asked.setdefault(run, []).append(messages)
        if upstream:
            return await passed_on(body, run)
        text = NOTES[speaker(messages)]
        await asyncio.sleep(SECONDS)
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        head = {"id": "chatcmpl-1", "created": 1, "model": MODEL}
        if not body.get("stream"):
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            kind = {"object": "chat.completion"}
            return JSONResponse(head | kind | {"choices": [choice], "usage": usage})

        async def lines() -> AsyncIterator[str]:
            kind = {"object": "chat.completion.chunk"}
            delta = {"role": "assistant", "content": text}
            for choice in (
                {"index": 0, "delta": delta, "finish_reason": None},
                {"index": 0, "delta": {}, "finish_reason": "stop"},
            ):
                yield f"data: {json.dumps(head | kind | {'choices': [choice]})}\n\n"
            last = head | kind | {"choices": [], "usage": usage}
            yield f"data: {json.dumps(last)}\n\ndata: [DONE]\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream")

    return Starlette(
        routes=[
            Route("/{run}/v1/models", models),
            Route("/{run}/v1/chat/completions", completions, methods=["POST"]),
        ]
    )


@contextmanager
def serving(asked: dict[str, list[Prompt]], *, upstream: str = "", salt: str = "") -> Iterator[str]:
    """The address of the endpoint, on a free port of this machine."""
    with listen("127.0.0.1", 0) as sock:
        app = application(asked, upstream, salt)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        while not server.started:
            threading.Event().wait(0.02)
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
