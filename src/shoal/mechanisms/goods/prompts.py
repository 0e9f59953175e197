"""How an agent is asked in a sequence: what it is told of the game, and what it sees of others.

Chat models get the roles of "Everyone Contributes!" (arXiv 2508.02076) in our own words. Small
models that follow examples better than instructions get worked tasks instead, in one text whose
beginning is the same for all agents and tasks, so that an engine computes it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from shoal.core.protocols import Prompt, Segment
from shoal.core.records import Message
from shoal.mechanisms.goods.tasks import Task, answer_in


@dataclass(frozen=True, slots=True)
class Heard:
    """What an agent sees of another before it: its text, or None where it said nothing."""

    agent: str
    text: str | None


class Asking(Protocol):
    """Makes the prompt of one agent; ``stop`` ends its answer."""

    @property
    def stop(self) -> tuple[str, ...]: ...

    def __call__(
        self, question: str, agent: str, place: int, of: int, earlier: Sequence[Heard]
    ) -> Prompt:
        """The prompt of the agent at ``place`` (from 1) ``of`` all, after what it sees."""
        ...


@dataclass(frozen=True, slots=True)
class ByInstruction:
    """A system message about the game and a user message with the question."""

    stop: tuple[str, ...] = ()

    def __call__(
        self, question: str, agent: str, place: int, of: int, earlier: Sequence[Heard]
    ) -> Prompt:
        """Two chat messages."""
        final = "Your answer is the group's answer." if place == of else "Others go on from yours."
        system = (
            f"You are {agent}, number {place} of {of} agents who work at one question in turn. It "
            "is a public goods game: all of you share what the last answer is worth, and all lose "
            f"where together you put in too little. You see {_seen(earlier)}. {final} Think in "
            "steps, and end with one line: Answer: followed by your answer alone."
        )
        parts = [f"Question: {question}"]
        for heard in earlier:
            parts.append(f"{heard.agent} said:\n{heard.text or '(nothing)'}")
            if heard.text:
                parts.append(f"{heard.agent}'s answer: {answer_in(heard.text) or 'none'}")
        return Message("system", system), Message("user", "\n\n".join(parts))


@dataclass(frozen=True, slots=True)
class ByExample:
    """Worked tasks, then the question, then what others said of it, in one text.

    Each example is shown as if it was the first attempt, so a text that has none before it looks
    the same. ``stop`` is the beginning of a next example.
    """

    examples: tuple[Task, ...]
    stop: tuple[str, ...] = ("\nQuestion:",)

    def __call__(
        self, question: str, agent: str, place: int, of: int, earlier: Sequence[Heard]
    ) -> Prompt:
        """One segment of examples, which all prompts share, and one of the question."""
        shown = "".join(
            f"Question: {one.question}\nSteps:{_spaced(one.solution)}\nAnswer: {one.answer}\n\n"
            for one in self.examples
        )
        attempts = "".join(
            f"Question: {question}\nSteps:{_spaced(heard.text.strip())}\n\n"
            for heard in earlier
            if heard.text and heard.text.strip()
        )
        return Segment(shown), Segment(f"{attempts}Question: {question}\nSteps:")


def _seen(earlier: Sequence[Heard]) -> str:
    if not earlier:
        return "nobody's work"
    return "the work of " + ", ".join(heard.agent for heard in earlier)


def _spaced(text: str) -> str:
    return f" {text}" if text else ""
