"""What an agent is shown at each step: a prompt rebuilt from the task and the last few steps.

The transcript does not grow, so a prompt stays as long at step fifty as at step two (the
step-independent rollout of GiGPO, arXiv 2505.10978).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.core.records import Message
from shoal.envs.protocol import Environment

_ACTION = re.compile(r"<action>(.*?)</action>", re.DOTALL)
_TAGS = (
    "Think first if you need to, and then give exactly one action inside <action> and </action>."
)


@dataclass(frozen=True, slots=True)
class Turn:
    """A step that is past: what was seen, and what was done."""

    observation: str
    action: str


@dataclass(frozen=True, slots=True)
class Context:
    """How prompts are made and answers read.

    history       how many past actions are shown
    observations  whether what was seen before them is shown too
    instructions  whether the environment's instructions come first, as a system message
    admissible    whether the actions that make sense are listed
    tags          whether an action stands inside <action> tags, after free text
    """

    history: int = 2
    observations: bool = False
    instructions: bool = False
    admissible: bool = False
    tags: bool = False

    def prompt(
        self, env: Environment, past: Sequence[Turn], observation: str
    ) -> tuple[Message, ...]:
        """The messages of the next step."""
        lines = [self._line(turn) for turn in past[-self.history :]] if self.history else []
        if self.admissible and (actions := env.admissible_actions()):
            lines.append(f"actions : {' , '.join(actions)}")
        user = Message("user", "\n".join([*lines, observation]))
        if not (self.instructions or self.tags):
            return (user,)
        told = [env.instructions] if self.instructions else []
        return (Message("system", "\n".join(told + [_TAGS] * self.tags)), user)

    def action(self, text: str) -> str | None:
        """The action in an answer; None where there is not exactly one."""
        if not self.tags:
            return text.strip()
        found = _ACTION.findall(text)
        return found[0].strip() if len(found) == 1 else None

    def _line(self, turn: Turn) -> str:
        return f"{turn.observation} > {turn.action}" if self.observations else f"> {turn.action}"
