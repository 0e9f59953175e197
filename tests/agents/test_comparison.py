"""The comparison with other frameworks counts right: lines, names, tokens; our program runs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from shoal.core.records import Message

HERE = Path(__file__).parents[2] / "benchmarks" / "comparison"
PROGRAM = '''"""A program."""

import asyncio  # not counted
from dataclasses import dataclass

from framework import Agent, Team
from task import ROLE


def work() -> None:
    """Work."""
    # a comment
    team = Team(
        Agent(ROLE, model="m"),
        turn="all(but=editor)",
    )
    asyncio.run(team.run())
    print(", ".join(ROLE))
'''


@pytest.fixture
def comparison(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ModuleType, ModuleType]]:
    """The modules ``compare`` and ``endpoint``, which stand beside their programs."""
    monkeypatch.syspath_prepend(str(HERE))
    names = ("compare", "endpoint", "task", "with_shoal")
    yield importlib.import_module("compare"), importlib.import_module("endpoint")
    for name in names:
        sys.modules.pop(name, None)


def test_lines_are_those_with_code(
    comparison: tuple[ModuleType, ModuleType], tmp_path: Path
) -> None:
    (path := tmp_path / "program.py").write_text(PROGRAM)
    assert comparison[0].lines_of(path) == 11


def test_concepts_are_the_frameworks_names(
    comparison: tuple[ModuleType, ModuleType], tmp_path: Path
) -> None:
    (path := tmp_path / "program.py").write_text(PROGRAM)
    found = comparison[0].concepts_of(path)
    assert found == {"Agent", "Team", "model", "turn", "all", "but", "run"}


def test_a_prefix_seen_before_costs_nothing(comparison: tuple[ModuleType, ModuleType]) -> None:
    texts = ["abcd", "abxy", "abcd", "z"]
    prompts = [(Message("user", text),) for text in texts]
    found = comparison[1].cost(prompts, lambda prompt: list(map(ord, prompt[0].content)))
    assert (found.requests, found.prompt_tokens, found.computed_tokens) == (4, 13, 4 + 2 + 0 + 1)


def test_our_program_asks_four_times_and_shares_the_document(
    comparison: tuple[ModuleType, ModuleType],
) -> None:
    _, endpoint = comparison
    asked: dict[str, list[tuple[Message, ...]]] = {}
    with endpoint.serving(asked) as url:
        answer = importlib.import_module("with_shoal").work(f"{url}/0/v1", endpoint.MODEL)
    assert answer == endpoint.NOTES["editor"]
    prompts = asked["0"]
    assert len(prompts) == 4
    assert len({prompt[0].content for prompt in prompts}) == 1, "one system message for all"
    notes = [text for name, text in endpoint.NOTES.items() if name != "editor"]
    (last,) = (prompt for prompt in prompts if all(note in prompt[-1].content for note in notes))
    assert last is prompts[-1]
