"""Between the wire and the engine: bodies become requests, completions become answers."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal, Protocol

from shoal.core.ids import new_id
from shoal.core.protocols import (
    Completion,
    Grammar,
    Prompt,
    Request,
    Sampling,
    Segment,
    TokenLogprob,
)
from shoal.core.records import Message
from shoal.core.rng import seed_of
from shoal.server.errors import ApiError
from shoal.server.wire import (
    Alternative,
    Answer,
    Body,
    ChatAnswer,
    ChatBody,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatToken,
    FinishReason,
    PromptDetails,
    TextBody,
    TextChoice,
    TextCompletion,
    TextLogprobs,
    WireUsage,
)

CHAT_TOKENS = 1024
"""Tokens of a chat answer where the body sets no limit."""
TEXT_TOKENS = 16
"""Tokens of a plain completion where the body sets no limit, as OpenAI has it."""

# -- from the wire ------------------------------------------------------------------------


def chat_requests(body: ChatBody, salt: str) -> list[Request]:
    """One request per choice."""
    prompt = tuple(
        Message("system" if one.role == "developer" else one.role, one.content, one.name)
        for one in body.messages
    )
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs to be true.", param="top_logprobs")
    limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    return _requests(
        body,
        [prompt],
        salt,
        max_tokens=CHAT_TOKENS if limit is None else limit,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )


def text_requests(body: TextBody, salt: str) -> list[Request]:
    """One request per prompt and choice, the choices of a prompt together."""
    prompts = [
        (Segment(one),) if isinstance(one, str) else (Segment(tokens=tuple(one)),)
        for one in body.prompt
    ]
    limit = TEXT_TOKENS if body.max_tokens is None else body.max_tokens
    return _requests(body, prompts, salt, max_tokens=limit, logprobs=body.logprobs)


def _requests(
    body: Body, prompts: Sequence[Prompt], salt: str, *, max_tokens: int, logprobs: int | None
) -> list[Request]:
    grammar = _grammar(body)
    seed = secrets.randbits(63) if body.seed is None else body.seed & (2**63 - 1)
    scope = f"{salt}/{body.cache_salt}" if body.cache_salt else salt
    return [
        Request(
            prompt, _sampling(body, max_tokens, logprobs, _seed(seed, choice)), grammar, salt=scope
        )
        for prompt in prompts
        for choice in range(body.n or 1)
    ]


def _seed(seed: int, choice: int) -> int:
    """The first choice draws as the only choice would; the others draw differently."""
    return seed if choice == 0 else seed_of(seed, choice)


def _sampling(body: Body, max_tokens: int, logprobs: int | None, seed: int) -> Sampling:
    return Sampling(
        max_tokens=max_tokens,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(0, body.top_k or 0),
        min_p=body.min_p or 0.0,
        repetition_penalty=body.repetition_penalty or 1.0,
        stop=tuple(body.stop),
        seed=seed,
        min_tokens=body.min_tokens or 0,
        ignore_eos=bool(body.ignore_eos),
        logprobs=logprobs,
    )


def _grammar(body: Body) -> Grammar | None:
    found: dict[str, Grammar] = {}
    form = body.response_format
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
    if len(found) > 1:
        names = " and ".join(found)
        raise ApiError(400, f"{names} exclude each other: give one.", param=list(found)[1])
    return next(iter(found.values()), None)


# -- to the wire --------------------------------------------------------------------------


class Shape(Protocol):
    """How answers of one endpoint look; ``choices`` is how many a prompt has."""

    choices: int

    def opening(self, index: int) -> Answer | None: ...
    def piece(self, index: int, text: str) -> Answer: ...
    def ending(self, index: int, completion: Completion) -> Answer: ...
    def counts(self, completions: Sequence[Completion]) -> Answer: ...
    def whole(self, completions: Sequence[Completion]) -> Answer: ...


@dataclass(slots=True)
class ChatShape:
    """/v1/chat/completions. In a stream the log-probabilities come with the ending."""

    model: str
    choices: int
    id: str = field(default_factory=lambda: f"chatcmpl-{new_id()}")
    created: int = field(default_factory=lambda: int(time.time()))

    def opening(self, index: int) -> ChatChunk:
        return self._chunk(index, ChatDelta(role="assistant", content=""))

    def piece(self, index: int, text: str) -> ChatChunk:
        return self._chunk(index, ChatDelta(content=text))

    def ending(self, index: int, completion: Completion) -> ChatChunk:
        chunk = self._chunk(index, ChatDelta())
        chunk.choices[0].logprobs = _chat_logprobs(completion)
        chunk.choices[0].finish_reason = _reason(completion)
        return chunk

    def counts(self, completions: Sequence[Completion]) -> ChatChunk:
        usage = _usage(completions, self.choices)
        return ChatChunk(
            id=self.id, created=self.created, model=self.model, choices=[], usage=usage
        )

    def whole(self, completions: Sequence[Completion]) -> ChatCompletion:
        choices = [
            ChatChoice(
                index=index,
                message=ChatAnswer(content=completion.text),
                logprobs=_chat_logprobs(completion),
                finish_reason=_reason(completion),
            )
            for index, completion in enumerate(completions)
        ]
        return ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=choices,
            usage=_usage(completions, self.choices),
        )

    def _chunk(self, index: int, delta: ChatDelta) -> ChatChunk:
        choice = ChatChunkChoice(index=index, delta=delta)
        return ChatChunk(id=self.id, created=self.created, model=self.model, choices=[choice])


@dataclass(slots=True)
class TextShape:
    """/v1/completions. In a stream the log-probabilities come with the ending."""

    model: str
    choices: int
    id: str = field(default_factory=lambda: f"cmpl-{new_id()}")
    created: int = field(default_factory=lambda: int(time.time()))

    def opening(self, index: int) -> None:
        return None

    def piece(self, index: int, text: str) -> TextCompletion:
        return self._answer([TextChoice(index=index, text=text)])

    def ending(self, index: int, completion: Completion) -> TextCompletion:
        return self._answer([self._choice(index, completion, "")])

    def counts(self, completions: Sequence[Completion]) -> TextCompletion:
        return self._answer([], _usage(completions, self.choices))

    def whole(self, completions: Sequence[Completion]) -> TextCompletion:
        choices = [self._choice(index, one, one.text) for index, one in enumerate(completions)]
        return self._answer(choices, _usage(completions, self.choices))

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


def _reason(completion: Completion) -> FinishReason:
    reason: dict[str, Literal["length"]] = {"length": "length", "budget": "length"}
    return reason.get(completion.finish, "stop")


def _usage(completions: Sequence[Completion], choices: int) -> WireUsage:
    """Prompts are counted once, however many choices each has."""
    prompts = [completion.usage for completion in completions[::choices]]
    prompt = sum(usage.prompt_tokens for usage in prompts)
    decoded = sum(completion.usage.decoded_tokens for completion in completions)
    return WireUsage(
        prompt_tokens=prompt,
        completion_tokens=decoded,
        total_tokens=prompt + decoded,
        prompt_tokens_details=PromptDetails(
            cached_tokens=sum(usage.shared_tokens for usage in prompts)
        ),
    )


def _chat_logprobs(completion: Completion) -> ChatLogprobs | None:
    if not completion.logprobs:
        return None
    return ChatLogprobs(content=[_chat_token(token) for token in completion.logprobs])


def _chat_token(token: TokenLogprob) -> ChatToken:
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
