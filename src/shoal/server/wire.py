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
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from shoal.core.errors import nearest

MAX_CHOICES = 64
MAX_PROMPTS = 256
MAX_LOGPROBS = 20

_WITHOUT_EFFECT = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("parallel_tool_calls", "tool_choice", "annotations", "refusal", "audio"),
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


class _Strict(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())

    @model_validator(mode="after")
    def _known(self) -> _Strict:
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


class ChatMessage(_Strict):
    """A message; content in parts is joined, as far as the parts are text."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text
    name: Text | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _joined(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        texts = [part.get("text") for part in value if isinstance(part, dict)]
        if len(texts) < len(value) or not all(isinstance(text, str) for text in texts):
            raise PydanticCustomError("content", "only parts of type 'text' can be read")
        return "".join(map(str, texts))


class JSONSchema(_Strict):
    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] | bool = Field(default=True, alias="schema")
    strict: bool | None = None


class ResponseFormat(_Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchema | None = None


class StreamOptions(_Strict):
    include_usage: bool | None = None


class Body(_Strict):
    """What chats and plain completions have in common; extensions follow vLLM's names."""

    model: str
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Probability | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: list[Annotated[Text, Field(min_length=1)]] = []
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31)] | None = None
    min_p: Probability | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Count | None = None
    guided_choice: list[Text] | None = None
    guided_regex: Text | None = None
    guided_json: dict[str, Any] | Text | None = None
    cache_salt: Text | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value or []

    @field_validator("guided_json", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return json.dumps(value) if isinstance(value, dict) else value

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


# -- answers ------------------------------------------------------------------------------

FinishReason = Literal["stop", "length", "tool_calls"]


class PromptDetails(BaseModel):
    cached_tokens: int


class WireUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Alternative(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class ChatToken(Alternative):
    top_logprobs: list[Alternative]


class ChatLogprobs(BaseModel):
    content: list[ChatToken]


class TextLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class ChatAnswer(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str


class ChatDelta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None

    @model_serializer
    def _what_is_new(self) -> dict[str, str]:
        return {name: value for name, value in self if value is not None}


class ChatChoice(BaseModel):
    index: int
    message: ChatAnswer
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason


class ChatChunkChoice(BaseModel):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: FinishReason | None = None


class Answer(BaseModel):
    """What whole answers and chunks have in common; ``created`` is in seconds since the epoch."""

    id: str
    created: int
    model: str


class ChatCompletion(Answer):
    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    usage: WireUsage


class ChatChunk(Answer):
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatChunkChoice]
    usage: WireUsage | None = None


class TextCompletion(Answer):
    """A whole plain completion, and a chunk of one: OpenAI gives both the same shape."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[TextChoice]
    usage: WireUsage | None = None


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "shoal"
    max_model_len: int | None = None


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]
