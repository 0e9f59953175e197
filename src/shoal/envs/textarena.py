"""Games of TextArena for one player, as they come: Sokoban, towers, lakes, words, riddles.

TextArena rewards an episode at its end, from -1 or 0 to 1. What a player has seen is the state key,
unless the game keeps its board in its state.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable
from functools import partial
from typing import Any

from shoal.core.errors import ConfigError, MissingExtra
from shoal.envs.protocol import Transition


class TextArena:
    """One game of TextArena; a seed is a game of it."""

    reward_min, reward_max = -1.0, 1.0
    answers = False
    blocking = False
    final_answer = None

    def __init__(self, game: str = "TowerOfHanoi-v0", max_steps: int = 30) -> None:
        self.name = f"textarena {game}"
        self.max_steps = max_steps
        try:
            import textarena
        except ModuleNotFoundError as error:
            raise MissingExtra("TextArena", "games") from error
        self._make = partial(textarena.make, game)
        try:
            self._game = self._make()
        except ValueError as error:
            raise ConfigError(f"TextArena has no game {game!r}: {error}.") from error
        self._steps = 0
        self._seen = ""
        self._told = ""

    @property
    def instructions(self) -> str:
        """What the game says at its beginning."""
        return self._told

    def reset(self, seed: int) -> str:
        """The game of this seed; raises :class:`ConfigError` for a game of several players."""
        self._steps = 0
        self._game = self._make()  # one that is reset remembers what was said before
        try:
            self._game.reset(num_players=1, seed=seed)
        except (AssertionError, ValueError) as error:
            raise ConfigError(
                f"{self.name} is not played alone ({error}): take a game for one player."
            ) from error
        _, self._seen = self._game.get_observation()
        self._told = self._seen
        return self._seen

    def step(self, action: str) -> Transition:
        """One move, in the brackets that the game wants; they are added where they are missing."""
        self._steps += 1
        over, _ = self._game.step(action)
        cut = self._steps >= self.max_steps
        if over:
            rewards, infos = self._game.close()
            reward = float((rewards or {}).get(0, 0.0))
            invalid = bool(infos.get(0, {}).get("invalid_move", False))
            return Transition("", reward, True, valid=not invalid, solved=reward >= 1)
        _, self._seen = self._game.get_observation()
        return Transition(self._seen, 0.0, False, cut)

    def state_key(self) -> Hashable:
        """The board where the game keeps one, otherwise what was seen last."""
        board = getattr(getattr(self._game, "state", None), "game_state", None)
        return repr(board) if board else self._seen

    def admissible_actions(self) -> tuple[str, ...]:
        """Not listed by TextArena."""
        return ()

    def snapshot(self) -> Any:
        """A copy of the whole game."""
        return copy.deepcopy(self._game), self._steps, self._seen, self._told

    def restore(self, snapshot: Any) -> None:
        """Go back to a snapshot."""
        game, self._steps, self._seen, self._told = snapshot
        self._game = copy.deepcopy(game)

    def close(self) -> None:
        """Nothing is held."""
