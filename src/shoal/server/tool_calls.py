"""Tool calls as text: how they are described, constrained, and read back as they are written.

The form is the one Hermes and Qwen models are trained on, ``<tool_call>`` around an object with
``name`` and ``arguments``. A grammar holds the answer to it, so that every call that is begun
names a known tool and its arguments fit the tool's schema, whatever model writes them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.core.ids import new_id
from shoal.core.protocols import Grammar
from shoal.core.records import Message, ToolCall, ToolSpec
from shoal.server.errors import ApiError

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MAX_CALLS = 8
"""Calls of one answer at most."""

_HEAD = re.compile(r'\s*\{"name": "([^"\\]+)", "arguments": ')
_LONGEST_HEAD = 200
_COMPACT = {"whitespace_flexible": False, "key_separator": ": ", "item_separator": ", "}
"""How arguments are spaced: free to, small models write blanks until their tokens run out."""
_CHOICES = ("auto", "none", "required")

_ABOUT = """\
You may call these tools, one JSON object a line:
<tools>
{tools}
</tools>
To call one, write its name and its arguments so:
<tool_call>
{{"name": <name>, "arguments": <arguments>}}
</tool_call>"""


# -- what the model is told -----------------------------------------------------------------


def described(messages: Sequence[Message], tools: Sequence[ToolSpec]) -> tuple[Message, ...]:
    """A conversation for a model whose chat template knows neither tools nor their answers."""
    plain = [_plain(message) for message in messages]
    if not tools:
        return tuple(plain)
    about = _ABOUT.format(tools="\n".join(map(_line, tools)))
    if plain and plain[0].role == "system":
        return (Message("system", f"{plain[0].content}\n\n{about}"), *plain[1:])
    return (Message("system", about), *plain)


def _plain(message: Message) -> Message:
    if message.role == "tool":
        return Message("user", f"<tool_response>\n{message.content}\n</tool_response>")
    if message.tool_calls:
        calls = (
            f'{OPEN}\n{{"name": {json.dumps(call.name)}, "arguments": {call.arguments}}}\n{CLOSE}'
            for call in message.tool_calls
        )
        content = "\n".join(filter(None, (message.content, *calls)))
        return Message(message.role, content, message.name)
    return message


def _line(tool: ToolSpec) -> str:
    spec = {
        "name": tool.name,
        "description": tool.description,
        "parameters": dict(tool.parameters),
    }
    return json.dumps(spec, ensure_ascii=False)


# -- what the model may write ---------------------------------------------------------------


def call_grammar(
    tools: Sequence[ToolSpec], choice: str, *, parallel: bool = True, schema: str | None = None
) -> Grammar:
    """Answers that call tools: "auto" also allows plain text, "required" or a name does not.

    ``schema`` is a JSON schema (as text) that an answer without calls must keep to.
    """
    offered = [tool for tool in tools if choice in ("auto", "required", tool.name)]
    bodies = " | ".join(f"tool_{index}" for index in range(len(offered)))
    more = f'("\\n{OPEN}" body){{0,{MAX_CALLS - 1}}}' if parallel else ""
    lines = [f'calls: "{OPEN}" body {more}']
    if choice != "auto":
        lines.insert(0, "start: calls")
    elif schema is not None:
        lines[:0] = ["start: answer | calls", f"answer: %json {schema}"]
    else:  # text that opens no call, or text up to the first call
        lines = [
            "start: TEXT | lead body " + more,
            f'lead[lazy]: /(?s:.*)/ "{OPEN}"',
            f"TEXT: /(?s:.*)/ & ~/(?s:.*){OPEN}(?s:.*)/",
        ]
    lines.append(f'body: "\\n" ({bodies}) "\\n{CLOSE}"')
    for index, tool in enumerate(offered):
        head = json.dumps(f'{{"name": {json.dumps(tool.name)}, "arguments": ')
        parameters = json.dumps({"type": "object", **tool.parameters, "x-guidance": _COMPACT})
        lines.append(f'tool_{index}: {head} %json {parameters} "}}"')
    return Grammar("lark", "\n".join(lines) + "\n")


# -- what the model wrote -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Said:
    """Text beside the calls."""

    text: str


@dataclass(frozen=True, slots=True)
class Called:
    """Something of call ``index``: at its begin ``id`` and ``name``, later its arguments."""

    index: int
    arguments: str
    id: str = ""
    name: str = ""


Piece = Said | Called


@dataclass(slots=True)
class CallReader:
    """Reads an answer as it is written; text that may become a call is held back.

    What looks like a call but names no known tool stays text.
    """

    names: frozenset[str]
    calls: int = 0
    _held: str = ""
    _in_call: bool = False
    _scan: _Json = field(default_factory=lambda: _Json())

    def feed(self, text: str) -> Iterator[Piece]:
        """What is certain with this text."""
        self._held += text
        while (piece := self._next()) is not None:
            yield piece

    def finish(self) -> Iterator[Piece]:
        """What is left when nothing follows any more."""
        held, self._held = self._held, ""
        if held and not self._in_call and not (self.calls and not held.strip()):
            yield Said(held)

    def _next(self) -> Piece | None:
        if self._in_call:
            return self._arguments()
        place = self._held.find(OPEN)
        if place < 0:  # white space goes with what follows it: none is left before a call
            safe = self._held[: len(self._held) - _overlap(self._held, OPEN)]
            return self._say(len(safe.rstrip()))
        if before := len(self._held[:place].rstrip()):
            return self._say(before)
        body = self._held[place + len(OPEN) :]
        head = _HEAD.match(body)
        if head and head[1] in self.names:
            self._held = body[head.end() :]
            self._in_call, self._scan = True, _Json()
            self.calls += 1
            return Called(self.calls - 1, "", f"call_{new_id()}", head[1])
        if head or len(body) > _LONGEST_HEAD or not _may_begin(body):
            return self._say(place + len(OPEN))
        return None

    def _say(self, until: int) -> Said | None:
        text, self._held = self._held[:until], self._held[until:]
        return Said(text) if text else None

    def _arguments(self) -> Piece | None:
        taken = self._scan.take(self._held)
        text, self._held = self._held[:taken], self._held[taken:]
        if text:
            return Called(self.calls - 1, text)
        if self._scan.whole:
            end = re.match(r"\s*\}\s*" + re.escape(CLOSE), self._held)
            if end:
                self._held = self._held[end.end() :]
                self._in_call = False
                return self._next()
        return None


@dataclass(slots=True)
class _Json:
    """How far a JSON value reaches, fed piece by piece; the value is an object or an array."""

    depth: int = 0
    in_text: bool = False
    escaped: bool = False
    whole: bool = False

    def take(self, text: str) -> int:
        """How many characters belong to the value."""
        if self.whole:
            return 0
        for place, character in enumerate(text):
            if self.escaped:
                self.escaped = False
            elif self.in_text:
                self.escaped = character == "\\"
                self.in_text = character != '"'
            elif character == '"':
                self.in_text = True
            elif character in "{[":
                self.depth += 1
            elif character in "}]":
                self.depth -= 1
                if self.depth <= 0:
                    self.whole = True
                    return place + 1
        return len(text)


def read(text: str, names: Iterable[str]) -> tuple[str, tuple[ToolCall, ...]]:
    """A whole answer as its text and its calls."""
    reader = CallReader(frozenset(names))
    said: list[str] = []
    calls: list[list[str]] = []
    for piece in (*reader.feed(text), *reader.finish()):
        if isinstance(piece, Said):
            said.append(piece.text)
        elif piece.name:
            calls.append([piece.id, piece.name, ""])
        else:
            calls[piece.index][2] += piece.arguments
    return "".join(said), tuple(ToolCall(*call) for call in calls)


def spec_of(name: str, description: str | None, parameters: dict[str, Any] | None) -> ToolSpec:
    """A tool from the wire; one without parameters takes an empty object.

    Raises :class:`ApiError` for a name that means something else, and for parameters that are
    no object.
    """
    if name in _CHOICES:
        raise ApiError(400, f"A tool cannot be named {name!r}: tool_choice has it.", param="tools")
    if (parameters or {}).get("type", "object") != "object":
        raise ApiError(400, f"The parameters of {name!r} are not of type 'object'.", param="tools")
    empty = {"type": "object", "properties": {}, "additionalProperties": False}
    return ToolSpec(name, description or "", empty if parameters is None else parameters)


def _overlap(text: str, word: str) -> int:
    """Length of the longest end of ``text`` that begins ``word``."""
    for size in range(min(len(word) - 1, len(text)), 0, -1):
        if text.endswith(word[:size]):
            return size
    return 0


def _may_begin(body: str) -> bool:
    """Whether more text could make this the head of a call."""
    text = body.lstrip()
    fixed = '{"name": "'
    if len(text) <= len(fixed):
        return fixed.startswith(text)
    if not text.startswith(fixed):
        return False
    name, quote, rest = text[len(fixed) :].partition('"')
    return "\\" not in name and (not quote or ', "arguments": '.startswith(rest))
