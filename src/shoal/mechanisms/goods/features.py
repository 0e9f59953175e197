"""What a policy sees before an agent speaks: numbers that follow from texts, from nothing else.

Part of the state of "Everyone Contributes!" (arXiv 2508.02076): who is to speak, what the task
looks like, what was said before. The published code fills more than half of that state with fresh
noise; here the same texts give the same state. The paper's sentence embedding is left out: a few
dozen tasks teach nothing about 384 more numbers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shoal.mechanisms.goods.prompts import Heard
from shoal.mechanisms.goods.tasks import answer_in, meaning

State = NDArray[np.float32]

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_WORD = re.compile(r"\w+")
SLOTS = 3
"""Of those before an agent, how many are described, the nearest first."""
_TASK, _HEARD = 12, 7


def size(agents: int) -> int:
    """How many numbers a state has."""
    return agents + _TASK + SLOTS * _HEARD


def state_of(question: str, place: int, agents: int, earlier: Sequence[Heard]) -> State:
    """The state of the agent at ``place`` (from 1), [size(agents)], each number about in [0, 1]."""
    who = np.zeros(agents)
    who[place - 1] = 1
    slots = np.zeros((SLOTS, _HEARD))
    for row, heard in zip(slots, reversed(earlier), strict=False):
        row[:] = _of_text(question, heard, earlier)
    return np.concatenate((who, _of_task(question), slots.ravel())).astype(np.float32)


def _of_task(question: str) -> list[float]:
    numbers = [float(found) for found in _NUMBER.findall(question)]
    return [
        min(len(question) / 512, 1),
        min(len(question.split()) / 100, 1),
        min(len(numbers) / 10, 1),
        min(sum(numbers) / 100, 1),
        min(max(numbers, default=0) / 100, 1),
        min(sum(char.isdigit() for char in question) / 20, 1),
        *(min(question.count(sign) / 5, 1) for sign in "+-*/("),
        float("?" in question),
    ]


def _of_text(question: str, heard: Heard, earlier: Sequence[Heard]) -> list[float]:
    if heard.text is None:
        return [1, 0, 0, 0, 0, 0, 0]
    words = _WORD.findall(heard.text.lower())
    asked = set(_WORD.findall(question.lower()))
    answer = answer_in(heard.text)
    others = [answer_in(one.text) for one in earlier if one is not heard and one.text]
    agreeing = answer is not None and any(
        other is not None and meaning(other) == meaning(answer) for other in others
    )
    return [
        1,
        min(len(heard.text) / 400, 1),
        min(len(words) / 100, 1),
        len(asked & set(words)) / max(len(asked), 1),
        sum(word.isdigit() for word in words) / max(len(words), 1),
        float(answer is not None),
        float(agreeing),
    ]
