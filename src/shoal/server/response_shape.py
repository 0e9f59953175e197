"""A completion as a response of /v1/responses, whole or as its typed events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from shoal.core.ids import new_id
from shoal.core.protocols import Completion
from shoal.server.answers import ChatToken
from shoal.server.errors import ApiError
from shoal.server.responses_wire import (
    CachedDetails,
    Event,
    IncompleteDetails,
    MadeCallItem,
    MadeMessage,
    Output,
    ResponseError,
    ResponseObject,
    ResponseUsage,
    Status,
    TextPart,
)
from shoal.server.shapes import chat_token, sent
from shoal.server.tool_calls import Called, CallReader, Piece, Said


@dataclass(slots=True)
class ResponseShape:
    """Builds one response item by item; each step is an event.

    asked  the response as it begins
    names  of tools that the answer may call
    kept   called with the finished response
    """

    asked: ResponseObject
    names: frozenset[str]
    kept: Callable[[ResponseObject], None]
    _output: list[Output] = field(default_factory=list)
    _number: int = 0
    _reader: CallReader | None = None

    # -- the way of a stream --------------------------------------------------------------

    def opening(self) -> Iterator[Event]:
        for kind in ("created", "in_progress"):
            yield self._event(f"response.{kind}", response=self.asked)

    def piece(self, index: int, text: str) -> Iterator[Event]:
        if not self.names:
            yield from self._add(Said(text))
            return
        self._reader = self._reader or CallReader(self.names)
        yield from self._pieces(self._reader.feed(text))

    def ending(self, index: int, completion: Completion) -> Iterator[Event]:
        if self._reader is not None:
            yield from self._pieces(self._reader.finish())
        for place, call in enumerate(completion.tool_calls):  # of endpoints that call by themselves
            yield from self._add(Called(place, "", call.id, call.name))
            yield from self._add(Called(place, call.arguments))
        if not self._output:
            yield from self._add(Said(""))
        status: Status = "completed" if completion.finish == "stop" else "incomplete"
        logprobs = [chat_token(token) for token in completion.logprobs]
        yield from self._close(status, logprobs)

    def closing(self, completions: Sequence[Completion]) -> Iterator[Event]:
        response = self._finished(completions[0])
        self.kept(response)
        yield self._event(f"response.{response.status}", response=response)

    def whole(self, completions: Sequence[Completion]) -> ResponseObject:
        (completion,) = completions
        for _ in (*self.piece(0, completion.text), *self.ending(0, completion)):
            pass
        response = self._finished(completion)
        self.kept(response)
        return response

    def event(self, answer: BaseModel) -> bytes:
        assert isinstance(answer, Event)
        return sent(answer.model_dump_json(), answer.type)

    def failure(self, error: ApiError) -> bytes:
        code = error.code or ("server_error" if error.status >= 500 else "invalid_prompt")
        failed = self.asked.model_copy(
            update={
                "status": "failed",
                "error": ResponseError(code=code, message=str(error)),
                "output": self._output,
            }
        )
        return self.event(self._event("response.failed", response=failed))

    def end(self) -> bytes:
        return b""

    # -- items ----------------------------------------------------------------------------

    def _pieces(self, pieces: Iterable[Piece]) -> Iterator[Event]:
        for piece in pieces:
            yield from self._add(piece)

    def _add(self, piece: Piece) -> Iterator[Event]:
        last = self._output[-1] if self._output else None
        if isinstance(piece, Said):
            if not isinstance(last, MadeMessage):
                yield from self._close("completed", [])
                last = MadeMessage(id=f"msg_{new_id()}")
                yield self._begin(last)
                last.content = [TextPart()]
                yield self._of(last, "content_part.added", content_index=0, part=TextPart())
            last.content[0].text += piece.text
            if piece.text:
                yield self._of(
                    last, "output_text.delta", content_index=0, delta=piece.text, logprobs=[]
                )
            return
        if piece.name:
            yield from self._close("completed", [])
            last = MadeCallItem(id=f"fc_{new_id()}", call_id=piece.id, name=piece.name)
            yield self._begin(last)
        assert isinstance(last, MadeCallItem), "arguments follow the begin of their call"
        last.arguments += piece.arguments
        if piece.arguments:
            yield self._of(last, "function_call_arguments.delta", delta=piece.arguments)

    def _begin(self, item: Output) -> Event:
        self._output.append(item)
        return self._event(
            "response.output_item.added",
            output_index=len(self._output) - 1,
            item=item.model_copy(deep=True),
        )

    def _close(self, status: Status, logprobs: list[ChatToken]) -> Iterator[Event]:
        """End the newest item, unless it has ended."""
        item = self._output[-1] if self._output else None
        if item is None or item.status != "in_progress":
            return
        item.status = status
        if isinstance(item, MadeMessage):
            part = item.content[0]
            part.logprobs = logprobs
            yield self._of(
                item, "output_text.done", content_index=0, text=part.text, logprobs=logprobs
            )
            yield self._of(item, "content_part.done", content_index=0, part=part)
        else:
            yield self._of(
                item, "function_call_arguments.done", arguments=item.arguments, name=item.name
            )
        yield self._event(
            "response.output_item.done", output_index=len(self._output) - 1, item=item
        )

    def _of(self, item: Output, kind: str, **fields: Any) -> Event:
        return self._event(
            f"response.{kind}", item_id=item.id, output_index=len(self._output) - 1, **fields
        )

    def _event(self, kind: str, **fields: Any) -> Event:
        event = Event(type=kind, sequence_number=self._number, **fields)
        self._number += 1
        return event

    def _finished(self, completion: Completion) -> ResponseObject:
        usage = completion.usage
        whole = completion.finish == "stop"
        return self.asked.model_copy(
            update={
                "status": "completed" if whole else "incomplete",
                "completed_at": int(time.time()) if whole else None,
                "incomplete_details": None if whole else IncompleteDetails(),
                "output": self._output,
                "usage": ResponseUsage(
                    input_tokens=usage.prompt_tokens,
                    input_tokens_details=CachedDetails(
                        cached_tokens=usage.shared_tokens,
                        approx_tokens=usage.approx_tokens,
                        repaired_tokens=usage.repaired_tokens,
                    ),
                    output_tokens=usage.decoded_tokens,
                    total_tokens=usage.asked_tokens,
                ),
            }
        )
