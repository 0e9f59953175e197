"""Dialects: how a model writes calls. What a call is worth does not depend on them.

tags      ToolRL's: a block to think in, one block of calls (an object a line, ``parameters``), one
          of response
hermes    what Hermes and Qwen models write: a block for every call (``arguments``), text beside it
pythonic  Llama's and BFCL's prompts: ``[f(a=1), g(b="x")]``; parsed, never evaluated
openai    the ``tool_calls`` of OpenAI's interface as a JSON array, whose arguments are JSON texts
words     a short grammar for policies of words: ``call f a 1 b x call g``, or ``none``
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from shoal.core.errors import ConfigError, nearest
from shoal.envs.calls.answers import LONGEST, Answer, Call, Unreadable, call_of, strict_json


@dataclass(frozen=True, slots=True)
class Dialect:
    """How answers are written and read.

    about   what a model is told about how to answer
    thinks  whether a well-formed answer begins with thinking
    write   an answer as text
    read    an answer from text; never raises, what is wrong is in the answer
    """

    name: str
    about: str
    write: Callable[[Answer], str]
    read: Callable[[str], Answer]
    thinks: bool = False

    def well_formed(self, answer: Answer, blocks: tuple[str, ...]) -> bool:
        """Whether an answer is made of these blocks, thinking before them, and of nothing else."""
        return answer.blocks == ("think",) * self.thinks + blocks


def dialect(name: str) -> Dialect:
    """A dialect by name; raises :class:`ConfigError`, naming the nearest, for one there is not."""
    if name not in DIALECTS:
        raise ConfigError(
            f"There is no dialect {name!r}: take one of {', '.join(DIALECTS)}."
            f"{nearest(name, DIALECTS)}"
        )
    return DIALECTS[name]


def _gathered(blocks: tuple[str, ...], read: Callable[[], list[Call]], **texts: str) -> Answer:
    """An answer with its calls, or with what is wrong about them."""
    try:
        return Answer(tuple(read()), blocks, **texts)
    except Unreadable as error:
        return Answer((), blocks, error=str(error), **texts)


# -- tags -----------------------------------------------------------------------------------

_TAGS = {"think": "think", "tool_call": "calls", "response": "response"}
_TAG = re.compile(r"<(think|tool_call|response)>\n?(.*?)\n?</\1>", re.DOTALL)


def _write_tags(answer: Answer) -> str:
    lines = [f"<think> {answer.thought} </think>"]
    if answer.calls:
        calls = [_json({"name": one.name, "parameters": one.arguments}) for one in answer.calls]
        lines.append("\n".join(["<tool_call>", *calls, "</tool_call>"]))
    if "response" in answer.blocks:
        lines.append(f"<response> {answer.response} </response>")
    return "\n".join(lines)


def _read_tags(text: str) -> Answer:
    found = list(_TAG.finditer(text))
    inside = {_TAGS[one[1]]: one[2] for one in reversed(found)}
    whole = "\n".join(one[0] for one in found) == text.strip()
    blocks = tuple(_TAGS[one[1]] for one in found) if whole else ()

    def calls() -> list[Call]:
        if sum(one[1] == "tool_call" for one in found) > 1:
            raise Unreadable("There is more than one block of calls.")
        lines = inside.get("calls", "").splitlines()
        return [call_of(strict_json(line), "parameters") for line in lines if line.strip()]

    return _gathered(
        blocks,
        calls,
        thought=inside.get("think", "").strip(),
        response=inside.get("response", "").strip(),
    )


# -- hermes ---------------------------------------------------------------------------------

_HERMES = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


def _write_hermes(answer: Answer) -> str:
    calls = [
        f"<tool_call>\n{_json({'name': one.name, 'arguments': one.arguments})}\n</tool_call>"
        for one in answer.calls
    ]
    return "\n".join([*([answer.response] if answer.response else []), *calls])


def _read_hermes(text: str) -> Answer:
    said = _HERMES.sub("", text).strip()
    found = _HERMES.findall(text)
    order = ("response",) * bool(said) + ("calls",) * bool(found)
    broken = "<tool_call>" in said or "</tool_call>" in said

    def calls() -> list[Call]:
        if broken:
            raise Unreadable("A call is begun and not ended, or ended and not begun.")
        return [call_of(strict_json(one.strip()), "arguments") for one in found]

    return _gathered(() if broken else order, calls, response=said)


# -- pythonic -------------------------------------------------------------------------------


def _write_pythonic(answer: Answer) -> str:
    calls = (
        f"{one.name}({', '.join(f'{key}={value!r}' for key, value in one.arguments.items())})"
        for one in answer.calls
    )
    return f"[{', '.join(calls)}]" if answer.calls else answer.response


def _read_pythonic(text: str) -> Answer:
    inner = text.strip()
    if not (inner.startswith("[") and inner.endswith("]")):
        return Answer((), ("response",) if inner else (), response=inner)
    return _gathered(("calls",), lambda: _python_calls(inner))


def _python_calls(text: str) -> list[Call]:
    if len(text) > LONGEST:
        raise Unreadable(f"{len(text)} characters of calls are too many.")
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise Unreadable(f"No list of calls: {error}.") from error
    if not isinstance(tree, ast.List):
        raise Unreadable("The calls are no list.")
    return [_python_call(node) for node in tree.elts]


def _python_call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call) or node.args:
        raise Unreadable(f"{ast.unparse(node)[:60]} is no call with named arguments.")
    arguments: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg in arguments:
            raise Unreadable(f"The name {keyword.arg!r} is given twice, or is no name.")
        try:
            value = ast.literal_eval(keyword.value)
            arguments[keyword.arg] = strict_json(json.dumps(value))
        except (ValueError, TypeError, RecursionError) as error:
            raise Unreadable(f"{keyword.arg} is no value: {error}.") from error
    name = ast.unparse(node.func)
    if not re.fullmatch(r"\w+(\.\w+)*", name):
        raise Unreadable(f"{name[:60]} is no name of a tool.")
    return Call(name, arguments)


# -- openai ---------------------------------------------------------------------------------


def _write_openai(answer: Answer) -> str:
    if not answer.calls:
        return answer.response
    return _json(
        [
            {
                "type": "function",
                "function": {"name": one.name, "arguments": _json(one.arguments)},
            }
            for one in answer.calls
        ]
    )


def _read_openai(text: str) -> Answer:
    inner = text.strip()
    if not inner.startswith("["):
        return Answer((), ("response",) if inner else (), response=inner)

    def calls() -> list[Call]:
        found = []
        for one in strict_json(inner):
            function = one.get("function") if isinstance(one, dict) else None
            if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
                raise Unreadable("A call has no function with arguments as a text.")
            arguments = strict_json(function["arguments"])
            found.append(call_of({**function, "arguments": arguments}, "arguments"))
        return found

    return _gathered(("calls",), calls)


# -- words ----------------------------------------------------------------------------------

NONE = "none"
_VALUES: Mapping[str, Any] = {"true": True, "false": False}


def _write_words(answer: Answer) -> str:
    if not answer.calls:
        return NONE
    return " ".join(
        " ".join(["call", one.name, *(f"{key} {_word(v)}" for key, v in one.arguments.items())])
        for one in answer.calls
    )


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _read_words(text: str) -> Answer:
    words = text.split()
    if words == [NONE]:
        return Answer((), ("response",), response=NONE)
    if not words or words[0] != "call":
        return Answer()
    parts = " ".join(words[1:]).split("call")

    def calls() -> list[Call]:
        return [_word_call(part.split()) for part in parts]

    answer = _gathered(("calls",), calls)
    return Answer((), (), error=answer.error) if answer.error else answer


def _word_call(words: list[str]) -> Call:
    if len(words) % 2 == 0:
        raise Unreadable("A call has a name, and a value for every argument.")
    names = words[1::2]
    if len(set(names)) < len(names):
        raise Unreadable("An argument is given twice.")
    values = [int(word) if word.isdecimal() else _VALUES.get(word, word) for word in words[2::2]]
    return Call(words[0], dict(zip(names, values, strict=True)))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


DIALECTS: Mapping[str, Dialect] = {
    one.name: one
    for one in (
        Dialect(
            "tags",
            "Think inside <think> and </think>. Then write your calls inside <tool_call> and "
            '</tool_call>, one object {"name": ..., "parameters": {...}} a line, or, if no tool '
            "fits, an answer inside <response> and </response>.",
            _write_tags,
            _read_tags,
            thinks=True,
        ),
        Dialect(
            "hermes",
            'For each call write {"name": ..., "arguments": {...}} inside <tool_call> and '
            "</tool_call>. If no tool fits, say so in words.",
            _write_hermes,
            _read_hermes,
        ),
        Dialect(
            "pythonic",
            "Answer with a list of calls such as [f(a=1), g(b='x')] and nothing else. If no tool "
            "fits, say so in words.",
            _write_pythonic,
            _read_pythonic,
        ),
        Dialect(
            "openai",
            'Answer with a JSON array of {"type": "function", "function": {"name": ..., '
            '"arguments": "{...}"}}. If no tool fits, say so in words.',
            _write_openai,
            _read_openai,
        ),
        Dialect(
            "words",
            "Answer: call NAME ARGUMENT VALUE ..., or none.",
            _write_words,
            _read_words,
        ),
    )
}
"""All dialects by name."""
