"""What crosses the wire, in OpenAI's shapes: requests are checked strictly, answers are built.

Fields that have no effect here are accepted where OpenAI clients send them by themselves; any
other unknown field is an error, so that a typing mistake does not pass in silence.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from shoal.core.errors import nearest

MAX_CHOICES = 64
MAX_PROMPTS = 256
MAX_SEQUENCES = 256
"""Answers that one body may ask for: prompts times choices."""
MAX_LOGPROBS = 20
MAX_STOPS = 64
MAX_TOOLS = 128

_WITHOUT_EFFECT = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("annotations", "refusal", "audio", "function_call"),
    }
)

Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=2**31)]


def _whole(text: str) -> str:
    """JSON can spell half a character, which no tokenizer takes."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise PydanticCustomError("text", "the text holds half a character (a lone surrogate)")
    return text


Text = Annotated[str, AfterValidator(_whole)]
ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class Strict(BaseModel):
    """Part of a body: an unknown field is an error, and the nearest known one is named."""

    model_config = ConfigDict(
        extra="allow",
        protected_namespaces=(),
        json_schema_extra={"additionalProperties": False},
    )

    @model_validator(mode="after")
    def _known(self) -> Strict:
        for name, value in (self.model_extra or {}).items():
            if name not in _WITHOUT_EFFECT and value:
                guess = nearest(name, type(self).model_fields)
                raise PydanticCustomError(
                    "unknown_field",
                    "this server does not know the field '{name}'.{guess}",
                    {"name": name, "guess": guess},
                )
        return self


# -- requests -----------------------------------------------------------------------------


def joined(value: Any) -> Any:
    """Content in parts as one text, as far as the parts are text."""
    if not isinstance(value, list):
        return value
    texts = [part.get("text") for part in value if isinstance(part, dict)]
    if len(texts) < len(value) or not all(isinstance(text, str) for text in texts):
        raise PydanticCustomError("content", "only parts of type 'text' can be read")
    return "".join(map(str, texts))


class CalledFunction(Strict):
    name: ToolName
    arguments: Text = "{}"


class Call(Strict):
    """A call that the assistant made in an earlier turn."""

    id: Text
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(Strict):
    """A message; content in parts is joined."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | None = None
    name: Text | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: Text | None = None

    _joined = field_validator("content", mode="before")(joined)

    @model_validator(mode="after")
    def _fits_its_role(self) -> ChatMessage:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise PydanticCustomError("content", "a message needs content")
        if self.tool_calls and self.role != "assistant":
            raise PydanticCustomError("tool_calls", "only an assistant's message calls tools")
        if self.role == "tool" and self.tool_call_id is None:
            raise PydanticCustomError(
                "tool_call_id", "a message of role 'tool' needs the tool_call_id it answers"
            )
        return self


class Function(Strict):
    """A tool as it is offered to the model; ``strict`` changes nothing, calls always fit."""

    name: ToolName
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: Function


class FunctionName(Strict):
    name: ToolName


class NamedTool(Strict):
    type: Literal["function"]
    function: FunctionName


class JSONSchema(Strict):
    name: Text = ""
    description: Text | None = None
    schema_: dict[str, Any] | bool = Field(default=True, alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchema | None = None


class StreamOptions(Strict):
    include_usage: bool | None = None


class Sampled(Strict):
    """What all bodies that want an answer have in common; extensions follow vLLM's names."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Probability | None = None
    stop: Annotated[list[Annotated[Text, Field(min_length=1)]], Field(max_length=MAX_STOPS)] = []
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31)] | None = None
    min_p: Probability | None = None
    repetition_penalty: Annotated[float, Field(ge=1e-3, le=100, allow_inf_nan=False)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Count | None = None
    guided_choice: list[Text] | None = None
    guided_regex: Text | None = None
    guided_json: dict[str, Any] | Text | None = None
    guided_grammar: Text | None = None
    adapter: Text | None = None
    cache_salt: Text | None = None
    cache_scope: Literal["private", "shared"] | None = None
    reuse: Literal["off", "exact", "approx"] | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value or []

    @field_validator("guided_json", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return json.dumps(value) if isinstance(value, dict) else value

    @property
    def choices(self) -> int:
        """Answers a prompt gets."""
        return 1


class Body(Sampled):
    """What chats and plain completions have in common."""

    max_tokens: Count | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None

    @property
    def choices(self) -> int:
        """Answers a prompt gets."""
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatBody(Body):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None


class TextBody(Body):
    """POST /v1/completions; a prompt is text or token ids, alone or several in a list."""

    prompt: list[Text | list[int]]
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _several(cls, value: Any) -> list[str | list[int]]:
        if isinstance(value, str) or _are_tokens(value):
            value = [value]
        if not isinstance(value, list) or not value:
            raise PydanticCustomError(
                "prompt", "give a text, a list of token ids, or a list of those"
            )
        if len(value) > MAX_PROMPTS:
            raise PydanticCustomError("prompt", f"give at most {MAX_PROMPTS} prompts at once")
        if not all(_is_text(one) or _are_tokens(one) for one in value):
            raise PydanticCustomError("prompt", "each prompt is a text or a list of token ids")
        return value


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""
