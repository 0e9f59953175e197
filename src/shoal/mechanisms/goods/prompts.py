"""How an agent is asked in a sequence: what it is told of the game, and what it sees of others.

Chat models get the roles of "Everyone Contributes!" (arXiv 2508.02076) in our own words. Small
models that follow examples better than instructions get worked tasks instead, in one text whose
beginning is the same for all agents and tasks, so that an engine computes it once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from shoal.core.errors import ConfigError
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


@dataclass(frozen=True, slots=True)
class ByAnswers:
    """Worked tasks, then the question, then nothing of others but their answers.

    A small model that sees another's steps copies them, mistakes included. ``said`` are answers
    that others gave to each example, some of them wrong, so that it is shown to work all the same;
    as many are shown as there are agents to be heard. Raises :class:`ConfigError` where some
    example has no ``said``.
    """

    examples: tuple[Task, ...]
    said: tuple[tuple[str, ...], ...]
    stop: tuple[str, ...] = ("\nQuestion:",)

    def __post_init__(self) -> None:
        if len(self.examples) != len(self.said):
            raise ConfigError(
                f"There are {len(self.examples)} examples, but {len(self.said)} with what others "
                "said."
            )

    def __call__(
        self, question: str, agent: str, place: int, of: int, earlier: Sequence[Heard]
    ) -> Prompt:
        """One segment of examples, which all who hear as many share, and one of the question.

        An agent that said nothing, or nothing that answers, is heard as "?". Raises
        :class:`ConfigError` where more are heard than the examples have answers of.
        """
        shown = "".join(
            f"Question: {one.question}\n{_said(said, len(earlier))}Steps:{_spaced(one.solution)}\n"
            f"Answer: {one.answer}\n\n"
            for one, said in zip(self.examples, self.said, strict=True)
        )
        heard = [answer_in(one.text or "") or "?" for one in earlier]
        return Segment(shown), Segment(f"Question: {question}\n{_said(heard, len(heard))}Steps:")


@dataclass(frozen=True, slots=True)
class Each:
    """Every agent is asked in its own way, by its name. Raises :class:`ConfigError` for ways that
    end answers differently."""

    askings: Mapping[str, Asking]

    def __post_init__(self) -> None:
        if len({one.stop for one in self.askings.values()}) != 1:
            raise ConfigError("Agents of one group must end their answers alike.")

    @property
    def stop(self) -> tuple[str, ...]:
        return next(iter(self.askings.values())).stop

    def __call__(
        self, question: str, agent: str, place: int, of: int, earlier: Sequence[Heard]
    ) -> Prompt:
        """What the agent's own way makes of it."""
        return self.askings[agent](question, agent, place, of, earlier)


def _said(answers: Sequence[str], heard: int) -> str:
    if heard > len(answers):
        raise ConfigError(f"{heard} agents are heard, but examples show answers of {len(answers)}.")
    return f"Said: {', '.join(answers[:heard])}\n" if heard else ""


def _seen(earlier: Sequence[Heard]) -> str:
    if not earlier:
        return "nobody's work"
    return "the work of " + ", ".join(heard.agent for heard in earlier)


def _spaced(text: str) -> str:
    return f" {text}" if text else ""
