"""What tests of teams look at: who spoke when, heard whom, and said what."""

from __future__ import annotations

from shoal.agents import Agent, Protocol, TeamResult
from shoal.core.records import Episode, Message, Step
from shoal.engine.scripted import ScriptedEngine


def members(*names: str) -> tuple[Agent, ...]:
    """Members who are told nothing."""
    return tuple(Agent(name) for name in names)


def protocol(turn: str = "all", reduce: str = "last", until: str = "rounds(1)") -> Protocol:
    """A protocol whose failures are retried once."""
    return Protocol(turn, reduce, until)


def numbered() -> ScriptedEngine:
    """Everybody says their name and how many turns it has had: ``alice1``, ``bob1``, ``alice2``."""
    counts: dict[str, int] = {}

    def answer(messages: tuple[Message, ...], seed: int) -> str:
        name = messages[-1].content.rpartition("You are ")[2].split(".")[0]
        counts[name] = counts.get(name, 0) + 1
        return f"{name}{counts[name]}"

    return ScriptedEngine(answer)


def trace(run: TeamResult | Episode) -> list[tuple[int, str, str, str]]:
    """(superstep, member, what it heard, what it said) for each turn."""
    episode = run.episode if isinstance(run, TeamResult) else run
    said = {step.key: step.output for step in episode.steps}
    return [
        (step.superstep, step.member, " ".join(said[key] for key in step.seen), step.output)
        for step in episode.steps
    ]


def content(step: Step) -> str:
    """The user message of a turn."""
    return step.prompt[-1].content
