"""What crosses the wire at /v1/responses: bodies, their items, and the response itself."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator
from pydantic_core import PydanticCustomError

from shoal.server.answers import ChatToken
from shoal.server.wire import MAX_LOGPROBS, MAX_TOOLS, Sampled, Strict, Text, ToolName

MAX_ITEMS = 4096

# -- requests -----------------------------------------------------------------------------


def _joined(value: Any) -> Any:
    """Content in parts as one text, as far as the parts are text."""
    if not isinstance(value, list):
        return value
    kinds = ("input_text", "output_text", "text")
    texts = [
        part.get("text") for part in value if isinstance(part, dict) and part.get("type") in kinds
    ]
    if len(texts) < len(value) or not all(isinstance(text, str) for text in texts):
        raise PydanticCustomError("content", "only parts of type 'input_text' can be read")
    return "".join(map(str, texts))


class _Item(Strict):
    """``id`` and ``status`` come along where a client sends back what it was sent."""

    id: Text | None = None
    status: Text | None = None


class MessageItem(_Item):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Text
    phase: Text | None = None

    _joined = field_validator("content", mode="before")(_joined)


class CallItem(_Item):
    """A call that the model made in an earlier turn."""

    type: Literal["function_call"]
    call_id: Text
    name: ToolName
    arguments: Text
    namespace: Text | None = None


class OutputItem(_Item):
    """What a called tool gave back."""

    type: Literal["function_call_output"]
    call_id: Text
    output: Text

    _joined = field_validator("output", mode="before")(_joined)


def _kind(value: Any) -> str:
    kind = value.get("type", "message") if isinstance(value, dict) else value.type
    return kind if isinstance(kind, str) else "message"


InputItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[OutputItem, Tag("function_call_output")],
    Discriminator(_kind),
]


class FlatTool(Strict):
    type: Literal["function"]
    name: ToolName
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FlatName(Strict):
    type: Literal["function"]
    name: ToolName


class TextFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    name: Text = ""
    description: Text | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextOptions(Strict):
    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class EventOptions(Strict):
    include_obfuscation: bool | None = None


Include = Literal["message.output_text.logprobs", "reasoning.encrypted_content"]


class ResponseBody(Sampled):
    """POST /v1/responses; a text as input is a user's message.

    ``verbosity`` and ``include_obfuscation`` are accepted and change nothing here.
    """

    input: Annotated[list[InputItem], Field(min_length=1, max_length=MAX_ITEMS)]
    instructions: Text | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    previous_response_id: Text | None = None
    store: bool | None = None
    text: TextOptions | None = None
    tools: Annotated[list[FlatTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FlatName | None = None
    parallel_tool_calls: bool | None = None
    include: list[Include] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    metadata: dict[Text, Text] | None = None
    truncation: Literal["disabled"] | None = None
    stream_options: EventOptions | None = None

    @field_validator("input", mode="before")
    @classmethod
    def _listed_input(cls, value: Any) -> Any:
        return [{"role": "user", "content": value}] if isinstance(value, str) else value


# -- answers ------------------------------------------------------------------------------

Status = Literal["in_progress", "completed", "incomplete", "failed"]


class TextPart(BaseModel):
    type: Literal["output_text"] = "output_text"
    text: str = ""
    annotations: list[None] = []
    logprobs: list[ChatToken] = []


class MadeMessage(BaseModel):
    id: str
    type: Literal["message"] = "message"
    status: Status = "in_progress"
    role: Literal["assistant"] = "assistant"
    content: list[TextPart] = []


class MadeCallItem(BaseModel):
    id: str
    type: Literal["function_call"] = "function_call"
    status: Status = "in_progress"
    call_id: str
    name: str
    arguments: str = ""


Output = MadeMessage | MadeCallItem


class CachedDetails(BaseModel):
    cached_tokens: int
    approx_tokens: int = 0
    repaired_tokens: int = 0


class ReasoningDetails(BaseModel):
    reasoning_tokens: int = 0


class ResponseUsage(BaseModel):
    input_tokens: int
    input_tokens_details: CachedDetails
    output_tokens: int
    output_tokens_details: ReasoningDetails = ReasoningDetails()
    total_tokens: int


class IncompleteDetails(BaseModel):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseError(BaseModel):
    code: str
    message: str


class ResponseObject(BaseModel):
    """A response, also while it is being made; what was asked for is echoed."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Status = "in_progress"
    background: bool = False
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    model: str
    output: list[Output] = []
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    store: bool = True
    temperature: float = 1.0
    text: dict[str, Any]
    tool_choice: str | dict[str, Any] = "auto"
    tools: list[dict[str, Any]] = []
    top_logprobs: int = 0
    top_p: float = 1.0
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    metadata: dict[str, str] = {}


class Event(BaseModel):
    """One event of a stream; fields beyond these follow from its type."""

    model_config = ConfigDict(extra="allow")

    type: str
    sequence_number: int


class Deleted(BaseModel):
    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


class ItemList(BaseModel):
    object: Literal["list"] = "list"
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool
