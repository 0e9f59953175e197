"""The prompt layout that makes sharing happen: what more members have in common comes first.

    system   preamble, material                    the same bytes for all who read the same
    user     task                                  the same for all
             what every speaking member hears      the same for all, oldest first
             what only this member hears
             who it is and what it is told to do   its own

So the members' prompts form a tree, and an engine that keeps prefixes computes each branch once.
"""

from __future__ import annotations

from collections.abc import Sequence

from shoal.agents.material import Material
from shoal.agents.state import State
from shoal.agents.team import Agent, Team
from shoal.agents.turns import Turn
from shoal.core.records import Message, Step

DEFAULT_PREAMBLE = "You work in a team. Do what you are told, briefly and in plain words."

HAND_BACK = "The budget is used up. Give your best final answer now, in one or two sentences."


class PromptWriter:
    """Writes the prompts of one team's run; texts that members share are made once."""

    def __init__(self, state: State, task: str, material: Material, preamble: str) -> None:
        self._state = state
        self._task = f"Task: {task}" if task else ""
        self._preamble = preamble
        self._material = material
        self._systems: dict[str | int, Message] = {}
        self._tails: dict[str, str] = {}

    def system(self, name: str) -> Message:
        """The system message: the same object for all who read the same."""
        member = self._state.member[name]
        reads: str | int = member.reads if isinstance(member, Agent) else "all"
        text = ""
        if reads == "part":
            part = self._state.part_of(name)
            assert part is not None, "who reads a part has one"
            reads = part
            text = self._material.pieces[part]
        elif reads == "all":
            text = self._material.text
        if reads not in self._systems:
            body = f"{self._preamble}\n\n{text}" if text else self._preamble
            self._systems[reads] = Message("system", body)
        return self._systems[reads]

    def common(self, heard: Sequence[Step]) -> str:
        """The beginning of the user message: the task and what every active member hears."""
        return "\n\n".join([self._task, *map(said, heard)] if self._task else map(said, heard))

    def messages(self, turn: Turn, common: str, private: Sequence[Step]) -> tuple[Message, ...]:
        """One member's prompt for one turn."""
        tail = self._tail(turn.member)
        if turn.choices:
            words = ", ".join(turn.choices)
            tail = f"{tail}\n{turn.question} Answer with one of these words only: {words}."
        parts = [common, *map(said, private), tail] if common else [*map(said, private), tail]
        return self.system(turn.member), Message("user", "\n\n".join(parts))

    def _tail(self, name: str) -> str:
        if name not in self._tails:
            member = self._state.member[name]
            role = "" if isinstance(member, Team) else member.role
            lines = [f"You are {name}. {role}".strip()]
            if member.objective:
                lines.append(f"Your goal: {member.objective}")
            self._tails[name] = "\n".join(lines)
        return self._tails[name]


def handing_back(prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    """The same prompt, told that this is the last turn the budget allows."""
    *before, user = prompt
    return *before, Message("user", f"{user.content}\n{HAND_BACK}")


def said(step: Step) -> str:
    """How a member's words look to those who hear them."""
    return f"{step.member.rpartition('/')[2]} said: {step.output.strip()}"


def split_common(
    inboxes: Sequence[tuple[Step, ...]],
) -> tuple[tuple[Step, ...], list[tuple[Step, ...]]]:
    """What all inboxes hold, in order, and what is left of each."""
    first = inboxes[0]
    if all(inbox is first for inbox in inboxes):
        return first, [()] * len(inboxes)
    shared = set.intersection(*({step.key for step in inbox} for inbox in inboxes))
    return (
        tuple(step for step in first if step.key in shared),
        [tuple(step for step in inbox if step.key not in shared) for inbox in inboxes],
    )
