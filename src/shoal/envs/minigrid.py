"""MiniGrid as text: what lies in front and to the sides, and what is seen nearby.

An agent sees ``view`` cells ahead and to the sides, through walls, and not where on the grid it is,
so many states read the same; ``holding`` says whether it is told what it carries. The state key is
exact: place, direction, what is carried, and every object and door. A return is 1 where the goal
was reached.
"""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Hashable, Iterator
from typing import Any

from shoal.core.errors import ConfigError, MissingExtra
from shoal.envs.protocol import Transition

ACTIONS = ("left", "right", "forward", "pickup", "drop", "toggle", "done")
_MOVES = ((1, 0), (0, 1), (-1, 0), (0, -1))
_DOORS = ("open", "closed", "locked")

Place = tuple[int, int, int]
"""Column, row, direction."""


class MiniGrid:
    """One level of MiniGrid; a seed is a map."""

    reward_min, reward_max = 0.0, 1.0
    answers = False
    blocking = False
    final_answer = None

    def __init__(
        self,
        level: str = "MiniGrid-DoorKey-5x5-v0",
        view: int = 3,
        holding: bool = False,
        colours: bool = False,
        max_steps: int = 40,
        actions: tuple[str, ...] | list[str] = ("left", "right", "forward", "pickup", "toggle"),
    ) -> None:
        self.name = level
        self.max_steps = max_steps
        self.actions = tuple(actions)
        if wrong := set(self.actions) - set(ACTIONS):
            raise ConfigError(f"MiniGrid has no action {min(wrong)!r}: {', '.join(ACTIONS)}.")
        if view < 1:
            raise ConfigError(f"A view of {view} cells sees nothing: give at least 1.")
        self._view, self._holding, self._colours = view, holding, colours
        self._world = _make(level)
        self._world.max_steps = max_steps + 1  # the limit is ours
        self._world.gen_obs = dict  # pictures cost most of a step, and nobody looks at them
        self._steps = 0

    @property
    def instructions(self) -> str:
        """The level's mission."""
        mission = getattr(self._world, "mission", "reach the goal")
        return f"Your task: {mission}. Answer with one of: {', '.join(self.actions)}."

    def words(self) -> tuple[str, ...]:
        """All it says and understands."""
        near = [f"{way}{n}" for way in ("ahead", "left", "right") for n in range(8)]
        things = ("wall", "empty", "key", "ball", "box", "goal", "lava", "floor", *_DOORS, "door")
        colours = ("red", "green", "blue", "purple", "yellow", "grey")
        signs = (">", ",", ":", "front", "left", "right", "sees", "nothing", "holding")
        return (*ACTIONS, *near, *things, *colours, *signs)

    def reset(self, seed: int) -> str:
        """The map of this seed."""
        self._steps = 0
        self._world.reset(seed=seed)
        return self._read()

    def step(self, action: str) -> Transition:
        """One move; a word that is no action moves nothing."""
        self._steps += 1
        cut = self._steps >= self.max_steps
        if action not in self.actions:
            return Transition(self._read(), 0.0, False, cut, valid=False)
        _, reward, over, _, _ = self._world.step(ACTIONS.index(action))
        solved = bool(over and reward > 0)
        return Transition(self._read(), float(solved), bool(over), cut, solved=solved)

    def state_key(self) -> Hashable:
        """Place, direction, what is carried, and all that can change."""
        world = self._world
        things = tuple(
            (at, self._call(thing), thing.color)
            for at, thing in enumerate(world.grid.grid)
            if thing is not None and thing.type not in ("wall", "goal", "lava")
        )
        carried = world.carrying and (world.carrying.type, world.carrying.color)
        return (*self._place(), carried, things)

    def admissible_actions(self) -> tuple[str, ...]:
        """All actions: one that does nothing is no mistake here."""
        return self.actions

    def snapshot(self) -> Any:
        """The whole world, as a copy."""
        world = self._world
        return copy.deepcopy(
            (world.grid, tuple(world.agent_pos), world.agent_dir, world.carrying, self._steps)
        )

    def restore(self, snapshot: Any) -> None:
        """Go back to a snapshot."""
        world = self._world
        world.grid, place, world.agent_dir, world.carrying, self._steps = copy.deepcopy(snapshot)
        world.agent_pos = place

    def close(self) -> None:
        """Nothing is held."""

    # -- what an agent reads ------------------------------------------------------------------

    def _place(self) -> Place:
        column, row = self._world.agent_pos
        return int(column), int(row), int(self._world.agent_dir)

    def _cell(self, ahead: int, right: int) -> Any:
        """What lies there, seen from the agent; None for an empty cell."""
        column, row, way = self._place()
        (dx, dy), (rx, ry) = _MOVES[way], _MOVES[(way + 1) % 4]
        x, y = column + ahead * dx + right * rx, row + ahead * dy + right * ry
        grid = self._world.grid
        return grid.get(x, y) if 0 <= x < grid.width and 0 <= y < grid.height else None

    def _call(self, thing: Any) -> str:
        if thing is None:
            return "empty"
        name: str = thing.type
        if name == "door":
            name = f"{'open' if thing.is_open else 'locked' if thing.is_locked else 'closed'} door"
        return f"{thing.color} {name}" if self._colours and thing.type != "wall" else name

    def _read(self) -> str:
        front, left, right = self._cell(1, 0), self._cell(0, -1), self._cell(0, 1)
        told = f"{self._call(front)} , {self._call(left)} , {self._call(right)} sees"
        seen = " ,".join(self._seen()) or " nothing"
        carried = self._world.carrying
        held = f" holding {self._call(carried) if carried else 'nothing'}" if self._holding else ""
        return told + seen + held

    def _seen(self) -> Iterator[str]:
        column, row, way = self._place()
        (dx, dy), (rx, ry) = _MOVES[way], _MOVES[(way + 1) % 4]
        grid = self._world.grid
        for at, thing in enumerate(grid.grid):
            if thing is None or thing.type == "wall":
                continue
            x, y = at % grid.width - column, at // grid.width - row
            ahead, right = x * dx + y * dy, x * rx + y * ry
            if 0 <= ahead <= self._view and abs(right) <= self._view and (ahead, right) != (0, 0):
                side = f"left{-right}" if right < 0 else f"right{right}"
                yield f" {self._call(thing)} ahead{ahead} {side}"

    # -- a way to the goal --------------------------------------------------------------------

    def expert_action(self) -> str:
        """The next action of a way to the goal; a random one in levels without a goal's cell.

        The way leads through doors: over the key of one that is locked.
        """
        return (
            self._way(("goal",), enter=True)
            or self._way(("key",), enter=False)
            or random.Random(repr(self.state_key())).choice(self.actions)
        )

    def _way(self, wanted: tuple[str, ...], *, enter: bool) -> str | None:
        """First action towards the nearest cell of a kind, or towards facing it."""
        start = self._place()
        queue: deque[tuple[Place, str | None]] = deque([(start, None)])
        seen = {start}
        while queue:
            (x, y, way), first = queue.popleft()
            dx, dy = _MOVES[way]
            front = self._world.grid.get(x + dx, y + dy)
            if front is not None and front.type in wanted:
                return first or ("forward" if enter else "pickup")
            steps = [((x, y, (way - 1) % 4), "left"), ((x, y, (way + 1) % 4), "right")]
            if front is None or front.type in ("floor", "goal") or self._opens(front):
                shut = front is not None and front.type == "door" and not front.is_open
                steps.append(((x + dx, y + dy, way), "toggle" if shut else "forward"))
            for place, action in steps:
                if place not in seen:
                    seen.add(place)
                    queue.append((place, first or action))
        return None

    def _opens(self, thing: Any) -> bool:
        """Whether it is a door that is open or can be opened now."""
        if thing.type != "door":
            return False
        carried = self._world.carrying
        fits = carried is not None and carried.type == "key" and carried.color == thing.color
        return bool(thing.is_open or not thing.is_locked or fits)


def _make(level: str) -> Any:
    try:
        import gymnasium
        import minigrid  # noqa: F401  (registers its levels)
    except ModuleNotFoundError as error:
        raise MissingExtra("MiniGrid", "envs") from error
    try:
        return gymnasium.make(level).unwrapped
    except gymnasium.error.Error as error:
        raise ConfigError(f"There is no MiniGrid level {level!r}: {error}.") from error
