"""Chat templates: messages to one text, as ``transformers`` renders it, and safely to tokens.

What members, users and tools wrote is not trusted: the text ``<|im_end|>`` inside a message must
not end the turn. Before rendering, every special token's text inside such strings gets a mark in
its middle, so that in the rendered text only the template's own special tokens are whole. The
text between these is then encoded as ordinary characters, the marks taken out. The template sees
real contents, so what it trims or tests comes out the same, and ordinary messages give exactly
the tokens of the rendered text.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shoal.core.errors import InputError, ModelError
from shoal.core.records import Message, ToolSpec
from shoal.models.tokenizer import Tokenizer

_MARK = "\udfff"  # half a character: no text that can be encoded holds it


class ChatTemplate:
    """A model's way to write down a conversation."""

    def __init__(self, template: str | None, bos: str = "", eos: str = "") -> None:
        """``template`` is None for models that were not trained to chat.

        Raises :class:`ModelError` where the template is no valid Jinja.
        """
        self.template = template
        self.bos = bos
        self.eos = eos
        try:
            self._compiled = _environment().from_string(template or "")
        except TemplateError as error:
            raise ModelError(f"The model's chat template is broken: {error}.") from error

    @property
    def knows_tools(self) -> bool:
        """Whether the template writes down the tools it is given."""
        return "tools" in (self.template or "")

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        add_generation_prompt: bool = True,
    ) -> str:
        """The conversation as one text.

        Raises :class:`ModelError` where there is no template or the template refuses.
        """
        return self._render(
            [_message(message) for message in messages],
            [_tool(tool) for tool in tools],
            add_generation_prompt,
        )

    def encode(
        self,
        messages: Sequence[Message],
        tokenizer: Tokenizer,
        *,
        tools: Sequence[ToolSpec] = (),
        add_generation_prompt: bool = True,
        salt: str = "",
    ) -> list[int]:
        """The conversation as tokens, in which only the template sets special tokens.

        ``salt`` keeps what is remembered apart; see :meth:`Tokenizer.encode`.
        Raises :class:`ModelError` like :meth:`render`, and :class:`InputError` for messages
        that are not valid Unicode.
        """
        text = self._render(
            _marked([_message(message) for message in messages], tokenizer),
            _marked([_tool(tool) for tool in tools], tokenizer),
            add_generation_prompt,
        )
        return _encode(text, tokenizer, salt)

    def encode_apart(
        self,
        messages: Sequence[Message],
        tokenizer: Tokenizer,
        texts: Sequence[str],
        *,
        tools: Sequence[ToolSpec] = (),
        salt: str = "",
    ) -> list[list[int]]:
        """The conversation cut around ``texts``, each part as tokens of its own.

        The texts stand in the messages in this order; the parts are what comes before the first,
        the first, what lies between, and so on: ``2 len(texts) + 1`` of them. Raises like
        :meth:`encode`, and :class:`InputError` for a text that is not there.
        """
        rendered = self._render(
            _marked([_message(message) for message in messages], tokenizer),
            _marked([_tool(tool) for tool in tools], tokenizer),
            True,
        )
        parts, done = [], 0
        for text in texts:
            marked = _marked(text, tokenizer)
            place = rendered.find(marked, done)
            if place < 0:
                raise InputError(
                    f"The text {text[:40]!r} is not in the messages, or not in this order."
                )
            parts += [rendered[done:place], marked]
            done = place + len(marked)
        return [_encode(part, tokenizer, salt) for part in (*parts, rendered[done:])]

    def _render(self, messages: list[Any], tools: list[Any], add_generation_prompt: bool) -> str:
        if self.template is None:
            raise ModelError(
                "The model has no chat template: give it plain text, or an instruct model."
            )
        try:
            return self._compiled.render(
                messages=messages,
                tools=tools or None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                bos_token=self.bos,
                eos_token=self.eos,
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise ModelError(f"The chat template refuses these messages: {error}.") from error


def _encode(text: str, tokenizer: Tokenizer, salt: str) -> list[int]:
    """Tokens of a rendered text in which only unmarked special tokens are special."""
    if _MARK not in text:
        return tokenizer.encode(text, salt=salt)
    pieces = tokenizer.special_pattern.split(text)
    return tokenizer.encode_pieces(
        [piece.replace(_MARK, "") for piece in pieces], tokenizer.specials_in(text), salt=salt
    )


def _message(message: Message) -> dict[str, Any]:
    """The dictionary templates are written for."""
    fields: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name is not None:
        fields["name"] = message.name
    if message.tool_calls:
        fields["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": _arguments(call.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        fields["tool_call_id"] = message.tool_call_id
    return fields


def _arguments(text: str) -> Any:
    """A model may have written broken JSON: then the template shows what it wrote."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _tool(tool: ToolSpec) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": dict(tool.parameters),
        },
    }


def _marked(value: Any, tokenizer: Tokenizer) -> Any:
    """The same value with every special token's text broken by a mark."""
    if isinstance(value, str):
        if _MARK in value:
            raise InputError("A message holds half a character (a lone surrogate).")
        return tokenizer.special_pattern.sub(lambda m: m[0][0] + _MARK + m[0][1:], value)
    if isinstance(value, Mapping):
        return {_marked(k, tokenizer): _marked(v, tokenizer) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_marked(item, tokenizer) for item in value]
    return value


class _Generation(Extension):
    """``{% generation %}`` marks the assistant's part for training; rendering ignores it."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 reads it from the class)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it stands, without the escapes for HTML that Jinja's own filter makes."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _refuse(reason: str) -> None:
    raise TemplateError(reason)
