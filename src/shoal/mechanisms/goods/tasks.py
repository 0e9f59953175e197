"""Tasks with a known answer, and when a text has answered one.

An answer is what follows the last "Answer:" in a text, to the end of its line, and nothing else: a
text without it has none, however many numbers it holds. Numbers are equal by value, signs and
fractions included; everything else by its words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from dataclasses import dataclass
from fractions import Fraction

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shoal.core.errors import InputError

_ANSWER = re.compile(r"answer\s*:[ \t]*(\S[^\n]*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Task:
    """A question, its right answer, and how to find it, where that is known."""

    question: str
    answer: str
    solution: str = ""


class _Line(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, coerce_numbers_to_str=True)

    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    solution: str = ""


def parse_tasks(text: str, name: str) -> tuple[Task, ...]:
    """Tasks of a JSONL file: ``question``, ``answer`` and, if there is one, ``solution`` a line.

    Raises :class:`InputError`, naming file and line.
    """
    tasks = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            read = _Line.model_validate(json.loads(line))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "object"
            raise InputError(f"{name}, line {number}: a wrong {place}: {first['msg']}.") from error
        except ValueError as error:
            raise InputError(f"{name}, line {number} is no JSON: {error}.") from error
        tasks.append(Task(read.question, read.answer, read.solution))
    if not tasks:
        raise InputError(f"{name} has no tasks: give one JSON object a line.")
    return tuple(tasks)


def answer_in(text: str) -> str | None:
    """What a text answers; None where it has no line that says so."""
    found = _ANSWER.findall(text)
    return found[-1].strip().rstrip(".") if found else None


def is_right(text: str, task: Task) -> bool:
    """Whether a text answers a task rightly."""
    answer = answer_in(text)
    return answer is not None and meaning(answer) == meaning(task.answer)


def meaning(answer: str) -> Hashable:
    """A number by its value, or the words in lower case."""
    words = " ".join(answer.split()).rstrip(".").lower()
    try:
        return Fraction(words.replace(",", "").replace(" ", ""))
    except (ValueError, ZeroDivisionError):
        return words
