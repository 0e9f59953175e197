"""Small worlds with the faults that training has to bear."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

from shoal.envs.protocol import Transition


class Walk:
    """Walk right to place ``goal``; a seed is a start. What goes wrong is said when it is made."""

    instructions = "Walk to the goal."
    reward_min, reward_max = 0.0, 1.0
    answers = False
    blocking = False
    final_answer = None

    def __init__(
        self,
        goal: int = 3,
        *,
        crash_at: int | None = None,
        crash_on: int | None = None,
        nan_on: int | None = None,
        starts: Iterator[int] | None = None,
        too_much: bool = False,
        max_steps: int = 6,
    ) -> None:
        self.name = "the walk"
        self.goal, self.max_steps = goal, max_steps
        self._crash_at, self._crash_on, self._nan_on = crash_at, crash_on, nan_on
        self._starts, self._too_much = starts, too_much
        self._place, self._seed, self._steps = 0, 0, 0
        self.closed = False

    def reset(self, seed: int) -> str:
        self._seed, self._steps = seed, 0
        self._place = next(self._starts) if self._starts else seed % 2
        return self._read()

    def step(self, action: str) -> Transition:
        self._steps += 1
        if self._crash_at == self._steps and self._crash_on in (None, self._seed):
            raise RuntimeError("the floor gave way")
        self._place += {"right": 1, "left": -1}.get(action, 0)
        solved = self._place >= self.goal
        reward = 5.0 if self._too_much else float(solved)
        if self._nan_on == self._seed:
            reward = float("nan")
        cut = self._steps >= self.max_steps
        known = action in self.admissible_actions()
        return Transition(
            self._read(), reward, solved, cut, valid=known, solved=solved, parts={"goal": reward}
        )

    def state_key(self) -> Hashable:
        return self._place

    def admissible_actions(self) -> tuple[str, ...]:
        return ("left", "right")

    def expert_action(self) -> str:
        return "right"

    def words(self) -> tuple[str, ...]:
        return ("left", "right", "place", ">", *map(str, range(-9, 10)), "-")

    def snapshot(self) -> Any:
        return self._place, self._seed, self._steps

    def restore(self, snapshot: Any) -> None:
        self._place, self._seed, self._steps = snapshot

    def close(self) -> None:
        self.closed = True

    def _read(self) -> str:
        return f"place {self._place}"
