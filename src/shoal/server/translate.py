"""From the wire to the engine: bodies become requests."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.core.protocols import EngineInfo, Grammar, Prompt, Request, Sampling, Segment
from shoal.core.records import Message, ToolCall, ToolSpec
from shoal.core.rng import seed_of
from shoal.server.errors import ApiError
from shoal.server.tool_calls import call_grammar, described, spec_of
from shoal.server.wire import (
    MAX_SEQUENCES,
    ChatBody,
    ChatMessage,
    ResponseFormat,
    Sampled,
    TextBody,
)

CHAT_TOKENS = 1024
"""Tokens of a chat answer where the body sets no limit."""
TEXT_TOKENS = 16
"""Tokens of a plain completion where the body sets no limit, as OpenAI has it."""


@dataclass(frozen=True, slots=True)
class ToolUse:
    """Tools that an answer may call, and whether it must."""

    tools: tuple[ToolSpec, ...]
    choice: str = "auto"
    parallel: bool = True

    @property
    def names(self) -> frozenset[str]:
        """What the tools are called."""
        return frozenset(tool.name for tool in self.tools)


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation to be answered, whichever endpoint it came to."""

    messages: tuple[Message, ...]
    max_tokens: int
    logprobs: int | None = None
    grammar: Grammar | None = None
    use: ToolUse | None = None


def chat_talk(body: ChatBody) -> Talk:
    """What a chat body asks for; raises :class:`ApiError` where it contradicts itself."""
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs to be true.", param="top_logprobs")
    limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    return Talk(
        tuple(map(message_of, body.messages)),
        max_tokens=CHAT_TOKENS if limit is None else limit,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        grammar=grammar_of(body, body.response_format),
        use=_chat_use(body),
    )


def chat_requests(body: ChatBody, salt: str, info: EngineInfo | None = None) -> list[Request]:
    """One request per choice, for an engine of this kind."""
    return talk_requests(body, chat_talk(body), salt, info)


def talk_requests(
    body: Sampled, talk: Talk, salt: str, info: EngineInfo | None = None
) -> list[Request]:
    """One request per choice. Endpoints call tools by themselves; elsewhere a grammar does."""
    use, messages, grammar = talk.use, talk.messages, talk.grammar
    tools = () if use is None else use.tools
    choice = "auto" if use is None else use.choice
    if info is None or info.kind != "remote":
        if use is not None:
            grammar = _with_calls(use, grammar)
        if info is not None and not info.knows_tools:
            messages, tools = described(messages, tools), ()
        choice = "auto"
    return _requests(
        body,
        [messages],
        salt,
        max_tokens=talk.max_tokens,
        logprobs=talk.logprobs,
        grammar=grammar,
        tools=tools,
        tool_choice=choice,
    )


def message_of(one: ChatMessage) -> Message:
    """A message of a chat."""
    calls = tuple(
        ToolCall(call.id, call.function.name, call.function.arguments)
        for call in one.tool_calls or ()
    )
    role = "system" if one.role == "developer" else one.role
    return Message(role, one.content or "", one.name, calls, one.tool_call_id)


def _chat_use(body: ChatBody) -> ToolUse | None:
    specs = tuple(
        spec_of(tool.function.name, tool.function.description, tool.function.parameters)
        for tool in body.tools or ()
    )
    given = body.tool_choice
    choice = given if isinstance(given, str) else given.function.name if given else "auto"
    named = given is not None and not isinstance(given, str)
    return tool_use(specs, choice, named=named, parallel=body.parallel_tool_calls is not False)


def tool_use(
    tools: Sequence[ToolSpec], choice: str, *, named: bool, parallel: bool
) -> ToolUse | None:
    """What the fields about tools say together; None where no tool may be called."""
    names = [tool.name for tool in tools]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ApiError(400, f"There are two tools named {twice!r}.", param="tools")
    if named and choice not in names:
        raise ApiError(400, f"tool_choice names {choice!r}, no tool of it.", param="tool_choice")
    if choice == "required" and not tools:
        raise ApiError(400, "tool_choice 'required' needs tools.", param="tool_choice")
    if not tools or (choice == "none" and not named):
        return None
    return ToolUse(tuple(tools), choice, parallel)


def _with_calls(use: ToolUse, grammar: Grammar | None) -> Grammar:
    """A grammar for calls; an answer without any keeps to its own JSON schema."""
    if grammar is not None and (
        grammar.kind != "json_schema" or not isinstance(grammar.value, str)
    ):
        raise ApiError(400, "Tools go together with JSON schemas only.", param="tools")
    schema = None if grammar is None else str(grammar.value)
    if schema is not None and use.choice == "auto":
        try:
            schema = json.dumps(json.loads(schema))
        except ValueError as error:
            raise ApiError(400, f"The JSON schema is no JSON: {error}.") from error
    return call_grammar(use.tools, use.choice, parallel=use.parallel, schema=schema)


def text_requests(body: TextBody, salt: str) -> list[Request]:
    """One request per prompt and choice, the choices of a prompt together."""
    prompts = [
        (Segment(one),) if isinstance(one, str) else (Segment(tokens=tuple(one)),)
        for one in body.prompt
    ]
    limit = TEXT_TOKENS if body.max_tokens is None else body.max_tokens
    grammar = grammar_of(body, body.response_format)
    return _requests(body, prompts, salt, max_tokens=limit, logprobs=body.logprobs, grammar=grammar)


def _requests(
    body: Sampled,
    prompts: Sequence[Prompt],
    salt: str,
    *,
    max_tokens: int,
    logprobs: int | None,
    grammar: Grammar | None,
    tools: tuple[ToolSpec, ...] = (),
    tool_choice: str = "auto",
) -> list[Request]:
    if (count := len(prompts) * body.choices) > MAX_SEQUENCES:
        message = f"This asks for {count} answers, but {MAX_SEQUENCES} at once are the most."
        raise ApiError(400, message, param="n")
    seed = secrets.randbits(63) if body.seed is None else body.seed & (2**63 - 1)
    scope = f"{salt}/{body.cache_salt}" if body.cache_salt else salt
    return [
        Request(
            prompt,
            _sampling(body, max_tokens, logprobs, _seed(seed, choice)),
            grammar,
            tools,
            scope,
            tool_choice=tool_choice,
        )
        for prompt in prompts
        for choice in range(body.choices)
    ]


def _seed(seed: int, choice: int) -> int:
    """The first choice draws as the only choice would; the others draw differently."""
    return seed if choice == 0 else seed_of(seed, choice)


def _sampling(body: Sampled, max_tokens: int, logprobs: int | None, seed: int) -> Sampling:
    return Sampling(
        max_tokens=max_tokens,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(0, body.top_k or 0),
        min_p=body.min_p or 0.0,
        repetition_penalty=body.repetition_penalty or 1.0,
        presence_penalty=body.presence_penalty or 0.0,
        stop=tuple(body.stop),
        seed=seed,
        min_tokens=body.min_tokens or 0,
        ignore_eos=bool(body.ignore_eos),
        logprobs=logprobs,
    )


def grammar_of(body: Sampled, form: ResponseFormat | None) -> Grammar | None:
    """What an answer is held to; raises :class:`ApiError` where that is said in two ways."""
    found: dict[str, Grammar] = {}
    if form and form.type == "json_object":
        found["response_format"] = Grammar("json_schema", '{"type": "object"}')
    if form and form.type == "json_schema":
        if form.json_schema is None:
            raise ApiError(400, "response_format needs a json_schema.", param="response_format")
        found["response_format"] = Grammar("json_schema", json.dumps(form.json_schema.schema_))
    if body.guided_choice is not None:
        found["guided_choice"] = Grammar("choice", tuple(body.guided_choice))
    if body.guided_regex is not None:
        found["guided_regex"] = Grammar("regex", body.guided_regex)
    if isinstance(body.guided_json, str):
        found["guided_json"] = Grammar("json_schema", body.guided_json)
    if body.guided_grammar is not None:
        found["guided_grammar"] = Grammar("lark", body.guided_grammar)
    if len(found) > 1:
        names = " and ".join(found)
        raise ApiError(400, f"{names} exclude each other: give one.", param=list(found)[1])
    return next(iter(found.values()), None)
