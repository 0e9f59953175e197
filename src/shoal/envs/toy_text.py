"""Taxi and FrozenLake of gymnasium as text; small enough that their best paths are known.

A return is 1 where the task was solved and 0 otherwise: what a step costs is left to discounting.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Any

from shoal.core.errors import MissingExtra
from shoal.envs.protocol import Transition


class TableWorld:
    """A world whose transitions are a table: state -> action -> [(probability, state, …)].

    What the two worlds have in common; a world of its own says how its states read.
    """

    reward_min, reward_max = 0.0, 1.0
    answers = False
    blocking = False
    final_answer = None
    name: str
    actions: tuple[str, ...]

    def __init__(self, world: Any, max_steps: int) -> None:
        self.max_steps = max_steps
        self._world = world
        self._steps = 0
        self._over = False

    def reset(self, seed: int) -> str:
        """The start of this seed."""
        self._steps, self._over = 0, False
        self._world.reset(seed=seed)
        return self._read()

    def step(self, action: str) -> Transition:
        """One move; a word that is no action moves nothing."""
        self._steps += 1
        cut = self._steps >= self.max_steps
        if action not in self.actions:
            return Transition(self._read(), 0.0, False, cut, valid=False)
        _, reward, over, *_ = self._world.step(self.actions.index(action))
        solved = bool(over and reward > 0)
        return Transition(self._read(), float(solved), bool(over), cut, solved=solved)

    def state_key(self) -> Hashable:
        """The number of the state."""
        return int(self._world.s)

    def admissible_actions(self) -> tuple[str, ...]:
        """All actions: none is ever forbidden."""
        return self.actions

    def snapshot(self) -> Any:
        """The state and the count of steps."""
        return int(self._world.s), self._steps, self._world.np_random.bit_generator.state

    def restore(self, snapshot: Any) -> None:
        """Go back to a snapshot."""
        self._world.s, self._steps, self._world.np_random.bit_generator.state = snapshot

    def expert_action(self) -> str:
        """The first action of a shortest way to a reward, where moves are certain."""
        first = int(self._world.s)
        came: dict[int, tuple[int, int]] = {}
        queue = deque([first])
        while queue:
            state = queue.popleft()
            for action, outcomes in self._world.P[state].items():
                _, after, reward, over = max(outcomes, key=lambda outcome: outcome[0])
                if over and reward > 0:
                    return self.actions[_first_action(came, first, state, action)]
                if after not in came and after != first and not over:
                    came[after] = (state, action)
                    queue.append(after)
        return self.actions[0]

    def close(self) -> None:
        """Nothing is held."""

    def _read(self) -> str:
        raise NotImplementedError


def _first_action(came: dict[int, tuple[int, int]], first: int, state: int, action: int) -> int:
    while state != first:
        state, action = came[state]
    return action


def _gymnasium() -> Any:
    try:
        import gymnasium
    except ModuleNotFoundError as error:
        raise MissingExtra("The worlds of gymnasium", "envs") from error
    return gymnasium


class Taxi(TableWorld):
    """Fetch a passenger and take them where they want to go; a seed is a start."""

    name = "taxi"
    instructions = (
        "You drive a taxi on a grid of five rows and columns. Go to the passenger, pick them up, "
        "go to their destination and drop them off."
    )
    actions = ("south", "north", "east", "west", "pickup", "dropoff")
    _places = ("red", "green", "yellow", "blue", "taxi")

    def __init__(self, max_steps: int = 50) -> None:
        super().__init__(_gymnasium().make("Taxi-v4").unwrapped, max_steps)

    def words(self) -> tuple[str, ...]:
        """All it says and understands."""
        rows = tuple(f"row{n} column{n}" for n in range(5))
        return (*self.actions, *self._places, *rows, "passenger", "to", "taxi", ">", ".")

    def _read(self) -> str:
        row, column, passenger, goal = self._world.decode(self._world.s)
        where = self._places[passenger]
        return f"row{row} column{column} passenger {where} to {self._places[goal]}"


class FrozenLake(TableWorld):
    """Cross a frozen lake without falling in; a seed is the draw of slips on one map."""

    name = "frozen-lake"
    instructions = "Cross the frozen lake from the top left to the bottom right; avoid the holes."
    actions = ("left", "down", "right", "up")

    def __init__(self, size: int = 8, slippery: bool = False, max_steps: int = 60) -> None:
        made = _gymnasium().make("FrozenLake-v1", map_name=f"{size}x{size}", is_slippery=slippery)
        super().__init__(made.unwrapped, max_steps)
        self._columns = size

    def words(self) -> tuple[str, ...]:
        """All it says and understands."""
        return (*self.actions, *(f"row{n} column{n}" for n in range(self._columns)), ">", ".")

    def _read(self) -> str:
        row, column = divmod(int(self._world.s), self._columns)
        return f"row{row} column{column}"
