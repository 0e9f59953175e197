"""What a planner can know of an endpoint: requests by their text, for want of tokens; slots."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import httpx

from shoal.core.protocols import Request
from shoal.core.records import Message, ToolSpec
from shoal.engine.endpoint import base

BYTES_PER_TOKEN = 3.5
"""What a token of English text takes, for estimates."""


def stable_tools(tools: Sequence[ToolSpec]) -> tuple[ToolSpec, ...]:
    """The same tools in one order, whatever the caller's, so that prompts begin alike."""
    return tuple(
        replace(tool, parameters=_sorted(dict(tool.parameters)))
        for tool in sorted(tools, key=lambda tool: tool.name)
    )


def _sorted(value: Any) -> Any:
    """JSON with the keys of its objects in order."""
    return json.loads(json.dumps(value, sort_keys=True))


def text_of(request: Request) -> bytes:
    """What an endpoint's prompt begins with, in the order in which templates write it down."""
    parts = [request.adapter or ""]
    parts += [json.dumps([tool.name, tool.description, tool.parameters]) for tool in request.tools]
    for part in request.prompt:
        if isinstance(part, Message):
            parts += ["\x1e", part.role, "\x1f", part.content]
            parts += [f"{call.name}{call.arguments}" for call in part.tool_calls]
        elif part.tokens is not None:
            parts.append("".join(f"{token:06x}" for token in part.tokens))
        else:
            parts.append(part.text)
    return "".join(parts).encode("utf-8", "surrogatepass") or b"\0"


def same_key(request: Request) -> Hashable:
    """Equal for requests whose answer is the same one: greedy, or drawn from the same seed."""
    sampling = request.sampling
    if sampling.temperature == 0:
        sampling = replace(sampling, seed=0)
    tools = tuple(json.dumps([t.name, t.description, t.parameters]) for t in request.tools)
    return (
        request.prompt,
        sampling,
        request.grammar,
        tools,
        request.salt,
        request.adapter,
        request.tool_choice,
    )


def slots_of(base_url: str) -> int | None:
    """How many slots a llama.cpp server has; None for an endpoint that says nothing of slots."""
    url = httpx.URL(base(base_url)).join("/props")
    try:
        with httpx.Client(trust_env=False, timeout=5.0) as client:
            found = client.get(url).json()
    except (httpx.HTTPError, ValueError):
        return None
    slots = found.get("total_slots") if isinstance(found, dict) else None
    return slots if isinstance(slots, int) and slots > 0 else None
