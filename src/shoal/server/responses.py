"""/v1/responses: answers that may be continued, with typed events when streamed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from fastapi import Request as HTTPRequest

from shoal.core.ids import new_id
from shoal.core.records import Message, ToolCall
from shoal.server.adapters import id_of, through
from shoal.server.errors import ApiError
from shoal.server.response_shape import ResponseShape
from shoal.server.response_store import ResponseStore, Stored
from shoal.server.responses_wire import (
    CallItem,
    Deleted,
    FlatName,
    InputItem,
    ItemList,
    MadeCallItem,
    MessageItem,
    Output,
    ResponseBody,
    ResponseObject,
    TextFormat,
)
from shoal.server.reuse import allowed
from shoal.server.service import Service, tenant_of
from shoal.server.tool_calls import spec_of
from shoal.server.translate import CHAT_TOKENS, Talk, ToolUse, grammar_of, talk_requests, tool_use
from shoal.server.wire import JSONSchema, ResponseFormat


def router(service: Service) -> APIRouter:
    """The routes over one service, with a store of their own."""
    routes = APIRouter()
    store = ResponseStore(service.limits.stored_bytes)

    def stored(http: HTTPRequest, id: str) -> Stored:
        found = store.get(tenant_of(http).salt, id)
        if found is None:
            raise ApiError(404, f"There is no response {id!r}, or no longer.", param="response_id")
        return found

    @routes.post("/v1/responses", response_model=ResponseObject)
    async def create(body: ResponseBody, http: HTTPRequest) -> Response:
        adapter = service.adapter_of(body.model, body.adapter)
        scope = tenant_of(http).salt
        earlier: tuple[Message, ...] = ()
        if body.previous_response_id is not None:
            before = store.get(scope, body.previous_response_id)
            if before is None:
                raise ApiError(
                    400,
                    f"There is no response {body.previous_response_id!r}, or no longer: send the "
                    "conversation instead.",
                    param="previous_response_id",
                    code="previous_response_not_found",
                )
            earlier = before.messages
        items = body.input
        new = messages_of(items)
        told = (Message("system", body.instructions),) if body.instructions else ()
        talk = Talk(
            (*told, *earlier, *new),
            max_tokens=body.max_output_tokens or CHAT_TOKENS,
            logprobs=_logprobs(body),
            grammar=grammar_of(body, _format(body)),
            use=_use(body),
        )
        asked = _asked(body, id_of(service.model_name, adapter))

        def keep(response: ResponseObject) -> None:
            if asked.store:
                added = (*new, *_said(response.output))
                shown = tuple(json.dumps(_shown(item)) for item in items)
                whole = response.model_dump_json()
                store.put(scope, response.id, whole, shown, (*earlier, *added), len(added))

        shape = ResponseShape(asked, talk.use.names if talk.use else frozenset(), keep)
        requests = talk_requests(body, talk, scope, service.engine.info)
        requests = through(allowed(requests, body, tenant_of(http)), adapter)
        return await service.respond(http, requests, shape, stream=bool(body.stream))

    @routes.get("/v1/responses/{response_id}", response_model=ResponseObject)
    async def retrieve(response_id: str, http: HTTPRequest) -> Response:
        return Response(stored(http, response_id).response, media_type="application/json")

    @routes.delete("/v1/responses/{response_id}")
    async def delete(response_id: str, http: HTTPRequest) -> Deleted:
        stored(http, response_id)
        store.drop(tenant_of(http).salt, response_id)
        return Deleted(id=response_id)

    @routes.get("/v1/responses/{response_id}/input_items")
    async def input_items(
        response_id: str,
        http: HTTPRequest,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
    ) -> ItemList:
        items = [json.loads(item) for item in stored(http, response_id).items]
        if order == "desc":
            items.reverse()
        ids = [str(item["id"]) for item in items]
        start = ids.index(after) + 1 if after in ids else 0
        page = items[start : start + limit]
        shown = ids[start : start + limit]
        return ItemList(
            data=page,
            first_id=shown[0] if shown else None,
            last_id=shown[-1] if shown else None,
            has_more=start + limit < len(items),
        )

    return routes


# -- from the wire ------------------------------------------------------------------------


def messages_of(items: Iterable[InputItem]) -> tuple[Message, ...]:
    """Items as messages; calls join the assistant's message before them."""
    messages: list[Message] = []
    for item in items:
        if isinstance(item, MessageItem):
            role = "system" if item.role == "developer" else item.role
            messages.append(Message(role, item.content))
        elif isinstance(item, CallItem):
            _join(messages, ToolCall(item.call_id, item.name, item.arguments))
        else:
            messages.append(Message("tool", item.output, tool_call_id=item.call_id))
    return tuple(messages)


def _said(output: Sequence[Output]) -> tuple[Message, ...]:
    """What was answered, as messages."""
    messages: list[Message] = []
    for item in output:
        if isinstance(item, MadeCallItem):
            _join(messages, ToolCall(item.call_id, item.name, item.arguments))
        else:
            messages.append(Message("assistant", item.content[0].text))
    return tuple(messages)


def _join(messages: list[Message], call: ToolCall) -> None:
    last = messages.pop() if messages and messages[-1].role == "assistant" else None
    last = last or Message("assistant", "")
    messages.append(Message("assistant", last.content, tool_calls=(*last.tool_calls, call)))


def _shown(item: InputItem) -> dict[str, Any]:
    """An item as it is listed."""
    kinds = {"message": "msg", "function_call": "fc", "function_call_output": "fco"}
    shown = item.model_dump(exclude_none=True)
    shown.setdefault("id", f"{kinds[item.type]}_{new_id()}")
    if isinstance(item, MessageItem):
        kind = "output_text" if item.role == "assistant" else "input_text"
        part: dict[str, Any] = {"type": kind, "text": item.content}
        shown["content"] = [part | ({"annotations": []} if kind == "output_text" else {})]
        shown.setdefault("status", "completed")
    return shown


def _logprobs(body: ResponseBody) -> int | None:
    wanted = "message.output_text.logprobs" in (body.include or ())
    return (body.top_logprobs or 0) if wanted or body.top_logprobs else None


def _format(body: ResponseBody) -> ResponseFormat | None:
    given = body.text.format if body.text else None
    if given is None or given.type == "text":
        return None
    if given.type == "json_object":
        return ResponseFormat(type="json_object")
    if given.schema_ is None:
        raise ApiError(400, "text.format needs a schema.", param="text.format.schema")
    return ResponseFormat(type="json_schema", json_schema=JSONSchema(schema=given.schema_))


def _use(body: ResponseBody) -> ToolUse | None:
    specs = [spec_of(tool.name, tool.description, tool.parameters) for tool in body.tools or ()]
    given = body.tool_choice
    named = isinstance(given, FlatName)
    choice = given.name if isinstance(given, FlatName) else given or "auto"
    return tool_use(specs, choice, named=named, parallel=body.parallel_tool_calls is not False)


def _asked(body: ResponseBody, model: str) -> ResponseObject:
    form = (body.text and body.text.format) or TextFormat(type="text")
    given = body.tool_choice
    return ResponseObject(
        id=f"resp_{new_id()}",
        created_at=int(time.time()),
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        model=model,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        previous_response_id=body.previous_response_id,
        store=body.store is not False,
        temperature=1.0 if body.temperature is None else body.temperature,
        text={"format": form.model_dump(by_alias=True, exclude_unset=True)},
        tool_choice=given.model_dump() if isinstance(given, FlatName) else given or "auto",
        tools=[tool.model_dump() for tool in body.tools or ()],
        top_logprobs=body.top_logprobs or 0,
        top_p=1.0 if body.top_p is None else body.top_p,
        metadata=body.metadata or {},
    )
