"""An OpenAI-compatible endpoint on loopback, for the benchmark of the planner in front of one.

    python benchmarks/workers/endpoint.py openvino|llamacpp

llama.cpp brings its own server. OpenVINO GenAI's continuous batching has none; here is the least
that lets it answer ``/v1/completions``, streamed and whole, with its prefix cache on. The first
line printed is the address. The endpoint ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import socket
import sys
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from shoal.models.catalog import find

KV_GIB = 1
SLOTS = 8


def llamacpp() -> None:
    """llama.cpp's own server with one slot for each of eight requests."""
    import xllamacpp

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    params = xllamacpp.CommonParams()
    params.model.path = str(find("smollm2-135m").path)
    params.n_parallel, params.n_ctx, params.port = SLOTS, SLOTS * 1024, port
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
    params.endpoint_props = True
    params.verbosity = -1
    server = xllamacpp.Server(params)
    print(f"{server.listening_address}/v1", flush=True)
    sys.stdin.read()
    os._exit(0)  # its threads do not end by themselves


@dataclass(frozen=True, slots=True)
class _Asked:
    """A prompt on its way, and where its pieces of text go; None ends them."""

    prompt: str
    most: int
    ignore_eos: bool
    pieces: asyncio.Queue[tuple[str, int] | None]
    loop: asyncio.AbstractEventLoop

    def say(self, piece: tuple[str, int] | None) -> None:
        self.loop.call_soon_threadsafe(self.pieces.put_nowait, piece)


class _Pipe(threading.Thread):
    """Steps the pipeline while there is something to do; requests join between steps."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        import openvino_genai as genai

        self._genai = genai
        config = genai.SchedulerConfig()
        config.cache_size, config.enable_prefix_caching = KV_GIB, True
        self._pipe = genai.ContinuousBatchingPipeline(str(find("smollm2-135m").path), config, "CPU")
        self._tokenizer = self._pipe.get_tokenizer()
        self.asked: queue.SimpleQueue[_Asked] = queue.SimpleQueue()
        self._running: list[tuple[_Asked, Any, list[int]]] = []
        self._count = 0

    def run(self) -> None:
        while True:
            while not self._running or not self.asked.empty():
                self._add(self.asked.get())
            self._pipe.step()
            self._running = [each for each in self._running if not self._read(*each)]

    def _add(self, asked: _Asked) -> None:
        settings = self._genai.GenerationConfig(max_new_tokens=asked.most, do_sample=False)
        settings.ignore_eos = asked.ignore_eos
        settings.apply_chat_template = False  # a completion's prompt is text as it is
        self._count += 1
        handle = self._pipe.add_request(self._count, asked.prompt, settings)
        self._running.append((asked, handle, []))

    def _read(self, asked: _Asked, handle: Any, tokens: list[int]) -> bool:
        """Pass on what is new; whether the answer has ended."""
        done = handle.get_status() != self._genai.GenerationStatus.RUNNING
        before = self._tokenizer.decode(tokens) if tokens else ""
        while handle.can_read():
            for output in handle.read().values():
                tokens += output.generated_ids
        text = self._tokenizer.decode(tokens) if tokens else ""
        if text != before or done:
            asked.say((text[len(before) :], len(tokens)))
        if done:
            asked.say(None)
        return done


def openvino() -> None:
    """OpenVINO GenAI behind a few lines of HTTP."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    pipe = _Pipe()
    pipe.start()

    async def pieces(body: dict[str, Any]) -> AsyncIterator[tuple[str, int]]:
        found: asyncio.Queue[tuple[str, int] | None] = asyncio.Queue()
        most, ignore = body.get("max_tokens", 16), bool(body.get("ignore_eos"))
        pipe.asked.put(_Asked(body["prompt"], most, ignore, found, asyncio.get_running_loop()))
        while (piece := await found.get()) is not None:
            yield piece

    def chunk(text: str, finish: str | None, count: int) -> dict[str, Any]:
        choice = {"index": 0, "text": text, "finish_reason": finish, "logprobs": None}
        usage = {"prompt_tokens": 0, "completion_tokens": count, "total_tokens": count}
        head = {"id": "cmpl", "object": "text_completion", "created": 0, "model": "smollm2"}
        return {**head, "choices": [choice], "usage": usage}

    async def streamed(body: dict[str, Any]) -> AsyncIterator[str]:
        count = 0
        async for text, count in pieces(body):
            yield f"data: {json.dumps(chunk(text, None, count))}\n\n"
        yield f"data: {json.dumps(chunk('', 'length', count))}\n\ndata: [DONE]\n\n"

    async def completions(request: Request) -> Response:
        body = await request.json()
        if body.get("stream"):
            return StreamingResponse(streamed(body), media_type="text/event-stream")
        found = [piece async for piece in pieces(body)]
        return JSONResponse(chunk("".join(text for text, _ in found), "length", found[-1][1]))

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "smollm2", "object": "model"}]})

    routes = [Route("/v1/completions", completions, methods=["POST"]), Route("/v1/models", models)]
    app = Starlette(routes=routes)
    sock = socket.create_server(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{sock.getsockname()[1]}/v1", flush=True)
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[sock])


if __name__ == "__main__":
    {"openvino": openvino, "llamacpp": llamacpp}[sys.argv[1]]()
