"""From the engine to the wire: completions become answers, whole or piece by piece."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal, Protocol

from pydantic import BaseModel

from shoal.core.ids import new_id
from shoal.core.protocols import Completion, TokenLogprob
from shoal.core.records import ToolCall
from shoal.server.answers import (
    Alternative,
    CallDelta,
    ChatAnswer,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatToken,
    FinishReason,
    FunctionDelta,
    MadeCall,
    MadeFunction,
    PromptDetails,
    TextChoice,
    TextCompletion,
    TextLogprobs,
    WireUsage,
)
from shoal.server.errors import ApiError, error_body
from shoal.server.tool_calls import Called, CallReader, Piece, Said, read


class Shape(Protocol):
    """How the answers of one endpoint look; each object serves one request."""

    def opening(self) -> Iterable[BaseModel]:
        """What a stream begins with."""
        ...

    def piece(self, index: int, text: str) -> Iterable[BaseModel]:
        """New text of a choice."""
        ...

    def ending(self, index: int, completion: Completion) -> Iterable[BaseModel]:
        """The end of a choice."""
        ...

    def closing(self, completions: Sequence[Completion]) -> Iterable[BaseModel]:
        """What a stream ends with, once all choices have ended."""
        ...

    def whole(self, completions: Sequence[Completion]) -> BaseModel:
        """All of it at once."""
        ...

    def event(self, answer: BaseModel) -> bytes:
        """A part of a stream as a server-sent event."""
        ...

    def failure(self, error: ApiError) -> bytes:
        """Events that end a stream which cannot go on; empty where only the connection ends."""
        ...

    def end(self) -> bytes:
        """What follows the last event."""
        ...


def sent(data: str, name: str = "") -> bytes:
    """A server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {data}\n\n".encode()


class _DataEvents:
    """Streams of the older endpoints: events without names, and a mark at the end."""

    __slots__ = ()

    def event(self, answer: BaseModel) -> bytes:
        return sent(answer.model_dump_json())

    def failure(self, error: ApiError) -> bytes:
        return sent(json.dumps(error_body(error)))

    def end(self) -> bytes:
        return sent("[DONE]")


@dataclass(slots=True)
class ChatShape(_DataEvents):
    """/v1/chat/completions. In a stream the log-probabilities come with the ending.

    names          of tools that an answer may call
    include_usage  whether a stream ends with the counts
    """

    model: str
    choices: int = 1
    names: frozenset[str] = frozenset()
    include_usage: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{new_id()}")
    created: int = field(default_factory=lambda: int(time.time()))
    _readers: dict[int, CallReader] = field(default_factory=dict)

    def opening(self) -> Iterator[ChatChunk]:
        for index in range(self.choices):
            yield self._chunk(index, ChatDelta(role="assistant", content=""))

    def piece(self, index: int, text: str) -> Iterator[ChatChunk]:
        if not self.names:
            yield self._chunk(index, ChatDelta(content=text))
            return
        yield from self._pieces(index, self._reader(index).feed(text))

    def ending(self, index: int, completion: Completion) -> Iterator[ChatChunk]:
        calls = completion.tool_calls
        if self.names:
            reader = self._reader(index)
            yield from self._pieces(index, reader.finish())
            for place, call in enumerate(calls):  # of endpoints that call tools by themselves
                yield self._chunk(index, ChatDelta(tool_calls=[_call_delta(place, call)]))
        called = bool(calls) or (index in self._readers and self._readers[index].calls > 0)
        chunk = self._chunk(index, ChatDelta())
        chunk.choices[0].logprobs = _chat_logprobs(completion)
        chunk.choices[0].finish_reason = _reason(completion, called=called)
        yield chunk

    def closing(self, completions: Sequence[Completion]) -> Iterator[ChatChunk]:
        if self.include_usage:
            usage = usage_of(completions, self.choices)
            yield ChatChunk(
                id=self.id, created=self.created, model=self.model, choices=[], usage=usage
            )

    def whole(self, completions: Sequence[Completion]) -> ChatCompletion:
        return ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=[self._choice(*pair) for pair in enumerate(completions)],
            usage=usage_of(completions, self.choices),
        )

    def _choice(self, index: int, completion: Completion) -> ChatChoice:
        text, calls = said_and_called(completion, self.names)
        made = [
            MadeCall(id=call.id, function=MadeFunction(name=call.name, arguments=call.arguments))
            for call in calls
        ]
        return ChatChoice(
            index=index,
            message=ChatAnswer(content=text if text or not made else None, tool_calls=made or None),
            logprobs=_chat_logprobs(completion),
            finish_reason=_reason(completion, called=bool(made)),
        )

    def _reader(self, index: int) -> CallReader:
        return self._readers.setdefault(index, CallReader(self.names))

    def _pieces(self, index: int, pieces: Iterable[Piece]) -> Iterator[ChatChunk]:
        for piece in pieces:
            if isinstance(piece, Said):
                yield self._chunk(index, ChatDelta(content=piece.text))
            else:
                yield self._chunk(index, ChatDelta(tool_calls=[_called_delta(piece)]))

    def _chunk(self, index: int, delta: ChatDelta) -> ChatChunk:
        choice = ChatChunkChoice(index=index, delta=delta)
        return ChatChunk(id=self.id, created=self.created, model=self.model, choices=[choice])


def said_and_called(
    completion: Completion, names: frozenset[str]
) -> tuple[str, tuple[ToolCall, ...]]:
    """Text and calls of an answer, from an endpoint that tells them apart or from the text."""
    if completion.tool_calls or not names:
        return completion.text, completion.tool_calls
    return read(completion.text, names)


def _called_delta(piece: Called) -> CallDelta:
    function = FunctionDelta(name=piece.name or None, arguments=piece.arguments)
    if not piece.id:
        return CallDelta(index=piece.index, function=function)
    return CallDelta(index=piece.index, id=piece.id, type="function", function=function)


def _call_delta(place: int, call: ToolCall) -> CallDelta:
    return _called_delta(Called(place, call.arguments, call.id, call.name))


@dataclass(slots=True)
class TextShape(_DataEvents):
    """/v1/completions. In a stream the log-probabilities come with the ending."""

    model: str
    choices: int = 1
    include_usage: bool = False
    id: str = field(default_factory=lambda: f"cmpl-{new_id()}")
    created: int = field(default_factory=lambda: int(time.time()))

    def opening(self) -> Iterator[TextCompletion]:
        yield from ()

    def piece(self, index: int, text: str) -> Iterator[TextCompletion]:
        yield self._answer([TextChoice(index=index, text=text)])

    def ending(self, index: int, completion: Completion) -> Iterator[TextCompletion]:
        yield self._answer([self._choice(index, completion, "")])

    def closing(self, completions: Sequence[Completion]) -> Iterator[TextCompletion]:
        if self.include_usage:
            yield self._answer([], usage_of(completions, self.choices))

    def whole(self, completions: Sequence[Completion]) -> TextCompletion:
        choices = [self._choice(index, one, one.text) for index, one in enumerate(completions)]
        return self._answer(choices, usage_of(completions, self.choices))

    def _choice(self, index: int, completion: Completion, text: str) -> TextChoice:
        return TextChoice(
            index=index,
            text=text,
            logprobs=_text_logprobs(completion),
            finish_reason=_reason(completion),
        )

    def _answer(self, choices: list[TextChoice], usage: WireUsage | None = None) -> TextCompletion:
        return TextCompletion(
            id=self.id, created=self.created, model=self.model, choices=choices, usage=usage
        )


def _reason(completion: Completion, *, called: bool = False) -> FinishReason:
    if called and completion.finish == "stop":
        return "tool_calls"
    reason: dict[str, Literal["length"]] = {"length": "length", "budget": "length"}
    return reason.get(completion.finish, "stop")


def usage_of(completions: Sequence[Completion], choices: int) -> WireUsage:
    """Prompts are counted once, however many choices each has."""
    prompts = [completion.usage for completion in completions[::choices]]
    prompt = sum(usage.prompt_tokens for usage in prompts)
    decoded = sum(completion.usage.decoded_tokens for completion in completions)
    return WireUsage(
        prompt_tokens=prompt,
        completion_tokens=decoded,
        total_tokens=prompt + decoded,
        prompt_tokens_details=PromptDetails(
            cached_tokens=sum(usage.shared_tokens for usage in prompts),
            approx_tokens=sum(usage.approx_tokens for usage in prompts),
            repaired_tokens=sum(usage.repaired_tokens for usage in prompts),
        ),
    )


def _chat_logprobs(completion: Completion) -> ChatLogprobs | None:
    if not completion.logprobs:
        return None
    return ChatLogprobs(content=[chat_token(token) for token in completion.logprobs])


def chat_token(token: TokenLogprob) -> ChatToken:
    return ChatToken(
        token=token.text,
        logprob=token.logprob,
        bytes=list(token.text.encode()),
        top_logprobs=[
            Alternative(token=text, logprob=logprob, bytes=list(text.encode()))
            for _, text, logprob in token.top
        ],
    )


def _text_logprobs(completion: Completion) -> TextLogprobs | None:
    if not completion.logprobs:
        return None
    tokens = [token.text for token in completion.logprobs]
    return TextLogprobs(
        tokens=tokens,
        token_logprobs=[token.logprob for token in completion.logprobs],
        top_logprobs=[{text: lp for _, text, lp in token.top} for token in completion.logprobs],
        text_offset=list(accumulate(map(len, tokens[:-1]), initial=0)),
    )
