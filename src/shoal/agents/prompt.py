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
from dataclasses import dataclass

from shoal.agents.material import Material
from shoal.agents.payloads import Heard
from shoal.agents.state import State
from shoal.agents.team import Agent, Team
from shoal.agents.turns import Turn
from shoal.core.records import Message

DEFAULT_PREAMBLE = "You work in a team. Do what you are told, briefly and in plain words."

HAND_BACK = "The budget is used up. Give your best final answer now, in one or two sentences."


@dataclass(frozen=True, slots=True)
class Piece:
    """A named piece of a prompt; ``reusable`` where a channel carries its cache (``carry="kv"``).

    This is where reuse outside of exact prefixes is to be switched on: an engine that can rotate
    and blend caches gets these pieces as segments instead of the joined text.
    """

    name: str
    text: str
    reusable: bool = False


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

    def common(self, heard: Sequence[Heard]) -> str:
        """The beginning of the user message: the task and what every active member hears."""
        texts = [one.text for one in heard]
        return "\n\n".join([self._task, *texts] if self._task else texts)

    def messages(self, turn: Turn, common: str, private: Sequence[Heard]) -> tuple[Message, ...]:
        """One member's prompt for one turn."""
        tail = self._asked(turn)
        texts = [one.text for one in private]
        parts = [common, *texts, tail] if common else [*texts, tail]
        return self.system(turn.member), Message("user", "\n\n".join(parts))

    def pieces(self, turn: Turn, heard: Sequence[Heard]) -> tuple[Piece, ...]:
        """The user message of a turn piece by piece, for what it hears in the order written."""
        member = self._state.member[turn.member]
        dense = isinstance(member, Agent) and member.dense
        task = (Piece("task", self._task),) if self._task else ()
        words = (
            Piece(one.step.key, one.text, one.payload.kind == "kv" and not dense) for one in heard
        )
        return *task, *words, Piece("tail", self._asked(turn))

    def _asked(self, turn: Turn) -> str:
        tail = self._tail(turn.member)
        if turn.choices:
            words = ", ".join(turn.choices)
            tail = f"{tail}\n{turn.question} Answer with one of these words only: {words}."
        return tail

    def _tail(self, name: str) -> str:
        role = self._state.roles.get(name)
        key = name if role is None else f"{name}/{role}"
        if key not in self._tails:
            member = self._state.member[name]
            if role is None:
                role = "" if isinstance(member, Team) else member.role
            lines = [f"You are {name}. {role}".strip()]
            if member.objective:
                lines.append(f"Your goal: {member.objective}")
            if self._state.stake:
                lines.append(self._state.stake)
            self._tails[key] = "\n".join(lines)
        return self._tails[key]


def handing_back(prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    """The same prompt, told that this is the last turn the budget allows."""
    *before, user = prompt
    return *before, Message("user", f"{user.content}\n{HAND_BACK}")


def split_common(
    inboxes: Sequence[tuple[Heard, ...]],
) -> tuple[tuple[Heard, ...], list[tuple[Heard, ...]]]:
    """What all inboxes hold, in order, and what is left of each."""
    first = inboxes[0]
    if all(inbox is first for inbox in inboxes):
        return first, [()] * len(inboxes)
    forms = [{one.key: one.payload for one in inbox} for inbox in inboxes]
    shared = {
        key
        for key, payload in forms[0].items()
        if all(key in form and form[key] == payload for form in forms[1:])
    }
    return (
        tuple(one for one in first if one.key in shared),
        [tuple(one for one in inbox if one.key not in shared) for inbox in inboxes],
    )
