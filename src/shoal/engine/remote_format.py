"""Requests and answers in the OpenAI format, as other programs speak it: pure translation.

What endpoints send is read leniently: unknown fields are ignored, missing ones have defaults.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

from shoal.core.errors import EngineError
from shoal.core.protocols import Grammar, Prompt, Request, Sampling, Score, TokenLogprob
from shoal.core.records import Finish, Message, ToolCall, ToolSpec

Dialect = Literal["guided", "structured_outputs", "json_schema"]
"""How an endpoint is held to a choice or regex: the older or newer vLLM fields, or a schema."""

UNKNOWN_TOKEN = -1
"""The id of a token that came over the wire as text only."""

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_EXTENSIONS = (
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "min_tokens",
    "ignore_eos",
)


# -- what is sent -------------------------------------------------------------------------


def path_of(prompt: Prompt) -> str:
    """Where a prompt goes: messages to the chat, segments to plain completion."""
    return "/chat/completions" if isinstance(prompt[0], Message) else "/completions"


def body_of(
    request: Request, model: str, dialect: Dialect, limit: str = "max_tokens"
) -> dict[str, Any]:
    """The body for a request, asking for a stream.

    ``limit`` is the endpoint's name for the answer's length. Penalties and fields beyond the
    OpenAI ones are sent only where they differ from their defaults. Raises
    :class:`EngineError` for what cannot be said in this format.
    """
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": request.adapter or model,
        limit: sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if isinstance(request.prompt[0], Message):
        body["messages"] = [_message(part) for part in request.prompt if isinstance(part, Message)]
        if sampling.logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": sampling.logprobs}
    else:
        body["prompt"] = raw(request.prompt)
        if sampling.logprobs is not None:
            body["logprobs"] = sampling.logprobs
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    default = Sampling()
    for name in _EXTENSIONS:
        if getattr(sampling, name) != getattr(default, name):
            body[name] = getattr(sampling, name)
    if request.salt:
        body["cache_salt"] = request.salt
    if request.tools:
        body["tools"] = [_tool(tool) for tool in request.tools]
        if request.tool_choice != "auto":
            body["tool_choice"] = _choice(request.tool_choice)
    return body | (_constraint(request.grammar, dialect) if request.grammar else {})


def raw(prompt: Prompt) -> str | list[int]:
    """A segmented prompt as one text or one list of token ids; a mixture cannot be sent."""
    if all(not isinstance(part, Message) and part.tokens is not None for part in prompt):
        return [token for part in prompt for token in getattr(part, "tokens", ())]
    if any(isinstance(part, Message) or part.tokens is not None for part in prompt):
        raise EngineError("A remote prompt is all text or all token ids, not a mixture.")
    return "".join(getattr(part, "text", "") for part in prompt)


def dialects_of(grammar: Grammar | None) -> tuple[Dialect, ...]:
    """The ways in which an endpoint may be held to this grammar, best first."""
    match grammar.kind if grammar else None:
        case "choice":
            return ("guided", "structured_outputs", "json_schema")
        case "regex":
            return ("guided", "structured_outputs")
        case _:
            return ("json_schema",)


def _constraint(grammar: Grammar, dialect: Dialect) -> dict[str, Any]:
    value = list(grammar.value) if isinstance(grammar.value, tuple) else grammar.value
    if grammar.kind == "lark":
        raise EngineError("An endpoint cannot be held to a Lark grammar: use a JSON schema.")
    if grammar.kind == "json_schema":
        try:
            return _schema(json.loads(str(value)))
        except ValueError as error:
            raise EngineError(f"The JSON schema is no JSON: {error}.") from error
    if dialect == "guided":
        return {f"guided_{grammar.kind}": value}
    if dialect == "structured_outputs":
        return {"structured_outputs": {grammar.kind: value}}
    return _schema(
        {
            "type": "object",
            "properties": {"answer": {"type": "string", "enum": value}},
            "required": ["answer"],
            "additionalProperties": False,
        }
    )


def _schema(schema: Any) -> dict[str, Any]:
    named = {"name": "answer", "schema": schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def _message(message: Message) -> dict[str, Any]:
    fields: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name and _NAME.fullmatch(message.name):  # endpoints refuse other names
        fields["name"] = message.name
    if message.tool_calls:
        fields["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        fields["tool_call_id"] = message.tool_call_id
    return fields


def _tool(tool: ToolSpec) -> dict[str, Any]:
    parameters = dict(tool.parameters)
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}


def _choice(choice: str) -> str | dict[str, Any]:
    if choice in ("none", "required"):
        return choice
    return {"type": "function", "function": {"name": choice}}


def conforms(text: str, grammar: Grammar) -> bool:
    """Whether a finished answer keeps to its grammar (of a JSON schema: that it is JSON)."""
    match grammar.kind:
        case "choice":
            return text in grammar.value
        case "regex":
            try:
                return re.fullmatch(str(grammar.value), text) is not None
            except re.error:  # a dialect of regular expressions that Python does not read
                return True
        case _:
            return _json(text) is not None


def chosen(text: str) -> str:
    """The choice inside the object that the ``json_schema`` dialect asks for, or nothing."""
    found = _json(text)
    return str(found.get("answer", "")) if isinstance(found, dict) else ""


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


# -- what comes back ----------------------------------------------------------------------


class _Function(BaseModel):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(BaseModel):
    index: int = 0
    id: str | None = None
    function: _Function = _Function()


class _Said(BaseModel):
    content: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Alternative(BaseModel):
    token: str
    logprob: float


class _Token(_Alternative):
    top_logprobs: list[_Alternative] = []


class _Logprobs(BaseModel):
    """Chat endpoints fill ``content``, plain completion the parallel lists."""

    content: list[_Token] | None = None
    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = None
    text_offset: list[int] = []


class _Choice(BaseModel):
    index: int = 0
    text: str | None = None
    delta: _Said | None = None
    message: _Said | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Details(BaseModel):
    cached_tokens: int | None = None


class _Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class Reply(BaseModel):
    """A chunk of a stream or a whole answer, of a chat or of plain completion."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


class _Vector(BaseModel):
    index: int = 0
    embedding: list[float]


class Embeddings(BaseModel):
    """The answer of /embeddings."""

    data: list[_Vector]


class _Model(BaseModel):
    id: str
    max_model_len: int | None = None
    context_length: int | None = None


class Models(BaseModel):
    """The answer of /models; two names are in use for the context length."""

    data: list[_Model] = []

    def context_of(self, model: str) -> int | None:
        """Tokens of context of a model, where the endpoint tells."""
        found = (one.max_model_len or one.context_length for one in self.data if one.id == model)
        return next(found, None)


@dataclass(slots=True)
class Answer:
    """An answer put together from its replies, in order."""

    text: str = ""
    finish: Finish | None = None
    error: str | None = None
    prompt_tokens: int | None = None
    shared_tokens: int = 0
    decoded_tokens: int = 0
    pieces: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    _calls: dict[int, list[str]] = field(default_factory=dict)

    def add(self, reply: Reply) -> str:
        """Take one reply; the text it adds."""
        if reply.usage:
            self.prompt_tokens = reply.usage.prompt_tokens
            self.decoded_tokens = reply.usage.completion_tokens
            details = reply.usage.prompt_tokens_details
            self.shared_tokens = (details.cached_tokens if details else None) or 0
        if not reply.choices:
            return ""
        choice = reply.choices[0]
        said = choice.delta or choice.message
        piece = (said.content if said else choice.text) or ""
        self.text += piece
        self.pieces += bool(piece)
        for call in (said.tool_calls if said else None) or ():
            parts = self._calls.setdefault(call.index, ["", "", ""])
            for place, new in enumerate((call.id, call.function.name, call.function.arguments)):
                parts[place] += new or ""
        if choice.logprobs:
            self.logprobs += _logprobs(choice.logprobs)
        if choice.finish_reason:
            self._end(choice.finish_reason)
        return piece

    def _end(self, reason: str) -> None:
        if reason == "content_filter":
            self.finish, self.error = "error", "The endpoint's content filter withheld the answer."
        else:
            self.finish = "length" if reason == "length" else "stop"

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls, in the order of their indices."""
        calls = (self._calls[index] for index in sorted(self._calls))
        return tuple(ToolCall(id, name, arguments or "{}") for id, name, arguments in calls)


def _logprobs(wire: _Logprobs) -> list[TokenLogprob]:
    if wire.content is not None:
        return [
            _token(entry.token, entry.logprob, {x.token: x.logprob for x in entry.top_logprobs})
            for entry in wire.content
        ]
    tops = wire.top_logprobs or [None] * len(wire.tokens)
    return [
        _token(text, logprob or 0.0, top or {})
        for text, logprob, top in zip(wire.tokens, wire.token_logprobs, tops, strict=False)
    ]


def _token(text: str, logprob: float, top: Mapping[str, float]) -> TokenLogprob:
    ranked = sorted(top.items(), key=lambda item: -item[1])
    return TokenLogprob(
        UNKNOWN_TOKEN,
        text,
        logprob,
        tuple((UNKNOWN_TOKEN, other, value) for other, value in ranked),
    )


def scores(reply: Reply, prefix: str, candidates: Sequence[str]) -> list[Score]:
    """Log-likelihoods from echoed prompts; a token across the border counts to the candidate.

    Raises :class:`EngineError` where the reply has no echoed log-probabilities.
    """
    choices = sorted(reply.choices, key=lambda choice: choice.index)
    wires = [choice.logprobs for choice in choices if choice.logprobs]
    if len(wires) != len(candidates) or not all(wire.text_offset for wire in wires):
        raise EngineError(
            "The endpoint does not echo prompts with log-probabilities: score with a local model."
        )
    return [_score(wire, prefix, text) for wire, text in zip(wires, candidates, strict=True)]


def _score(wire: _Logprobs, prefix: str, text: str) -> Score:
    end = len(prefix) + len(text)
    parts = tuple(
        logprob or 0.0
        for offset, token, logprob in zip(
            wire.text_offset, wire.tokens, wire.token_logprobs, strict=False
        )
        if offset < end and offset + len(token) > len(prefix)
    )
    return Score(text, sum(parts), parts)
