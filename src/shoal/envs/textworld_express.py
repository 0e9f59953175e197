"""TextWorld-Express: text games generated from a seed, with their valid actions and gold paths.

All environments of a process share one Java machine. The state key is the game's own account of
where the player stands and what it carries, which comes with every step for free.
"""

from __future__ import annotations

import atexit
import json
import re
import shutil
from collections.abc import Hashable, Mapping
from typing import Any

from shoal.core.errors import ConfigError, MissingExtra
from shoal.envs.protocol import Transition

HELD_OUT = 1_000_000
"""Seeds from here on are games of the test fold."""
GAMES = ("coin", "cookingworld", "mapreader", "arithmetic", "sorting", "twc", "simonsays",
         "peckingorder")  # fmt: skip
_BACK = {"north": "south", "south": "north", "east": "west", "west": "east"}
_WORD = re.compile(r"\w+|[^\w\s]")
_gateway: Any = None


class TextWorldExpress:
    """One game; a seed below a million is a game to train on, one above it a game to test on."""

    reward_min, reward_max = 0.0, 1.0
    answers = False
    blocking = False  # a step takes about a millisecond, less than handing it to a thread
    final_answer = None

    def __init__(
        self,
        game: str = "coin",
        params: str = "numLocations=4,includeDoors=0,numDistractorItems=0",
        max_steps: int = 20,
    ) -> None:
        if game not in GAMES:
            raise ConfigError(f"TextWorld-Express has no game {game!r}: {', '.join(GAMES)}.")
        self.name = f"textworld-express {game}"
        self.max_steps = max_steps
        self._server = _java().textworldexpress.runtime.PythonInterface()
        if message := self._server.load(game, params):
            raise ConfigError(f"TextWorld-Express cannot load {game} with {params!r}: {message}.")
        self._folds = {
            "train": self._server.getSeedsTrain(),
            "test": self._server.getSeedsTest(),
        }
        self._now: Mapping[str, Any] = {}
        self._gold: list[str] = []
        self._back: list[str] = []
        self._done: list[str] = []
        self._start = 0
        self._best = 0.0

    @property
    def instructions(self) -> str:
        """The game's task."""
        return str(self._server.getTaskDescription())

    def words(self) -> tuple[str, ...]:
        """Words of a few games along their gold paths, played once; later words are unknown."""
        known: set[str] = {">"}
        for seed in range(30):
            known.update(_WORD.findall(self.reset(seed)))
            for action in [*self._gold, "inventory"]:
                known.update(_WORD.findall(self.step(action).observation))
                for valid in self.admissible_actions():
                    known.update(_WORD.findall(valid))
        return tuple(sorted(known))

    def reset(self, seed: int) -> str:
        """The game of this seed."""
        self._start, self._done, self._back, self._best = seed, [], [], 0.0
        fold = "test" if seed >= HELD_OUT else "train"
        seeds = self._folds[fold]
        number = int(seeds[(seed % HELD_OUT) % len(seeds)])
        self._now = json.loads(self._server.generateNewGameJSON(number, fold, True))
        self._gold = list(self._server.getGoldActionSequence())
        return self._read()

    def step(self, action: str) -> Transition:
        """One action; what is not valid now changes nothing."""
        valid = action in self._now["validActions"]
        before = float(self._now["score"])
        where = self._now["look"]
        self._now = json.loads(self._server.stepJSON(action))
        self._done.append(action)
        self._follow(action, moved=self._now["look"] != where)
        solved = bool(self._now["tasksuccess"]) or float(self._now["score"]) >= 1
        over = solved or bool(self._now["taskfailure"])
        gained = max(0.0, float(self._now["score"])) - max(0.0, before)
        cut = len(self._done) >= self.max_steps
        return Transition(self._read(), gained, over, cut, valid=valid, solved=solved)

    def state_key(self) -> Hashable:
        """What is there to see, and what is carried."""
        return str(self._now["look"]), str(self._now["inventory"])

    def admissible_actions(self) -> tuple[str, ...]:
        """The game's own list."""
        return tuple(sorted(self._now["validActions"]))

    def snapshot(self) -> Any:
        """The game and all that was done in it: it is played again to be restored."""
        return self._start, tuple(self._done)

    def restore(self, snapshot: Any) -> None:
        """Play the game again up to a snapshot."""
        seed, actions = snapshot
        self.reset(seed)
        for action in actions:
            self.step(action)

    def expert_action(self) -> str:
        """The next action of the gold path; after a step beside it, the way back first."""
        if self._back:
            return self._back[-1]
        return self._gold[0] if self._gold else self.admissible_actions()[0]

    def _follow(self, action: str, *, moved: bool) -> None:
        """Keep track of where the gold path goes on."""
        way = action.removeprefix("move ")
        if self._back and action == self._back[-1]:
            self._back.pop()
        elif not self._back and self._gold and action == self._gold[0]:
            self._gold.pop(0)
        elif moved and way in _BACK:
            self._back.append(f"move {_BACK[way]}")

    def _read(self) -> str:
        return " ".join(str(self._now["observation"]).split())

    def close(self) -> None:
        """The Java machine stays for the others; it ends with the process."""


def _java() -> Any:
    """The Java machine of this process, started when it is first needed."""
    global _gateway
    if _gateway is not None:
        return _gateway.jvm
    try:
        from py4j.java_gateway import JavaGateway
        from textworld_express.constants import BASEPATH, JAR_PATH
    except ModuleNotFoundError as error:
        raise MissingExtra("TextWorld-Express", "games") from error
    if shutil.which("java") is None:
        raise ConfigError("TextWorld-Express needs Java 8 or later: install it, then try again.")
    _gateway = JavaGateway.launch_gateway(classpath=JAR_PATH, cwd=BASEPATH, die_on_exit=True)
    atexit.register(_gateway.shutdown)
    return _gateway.jvm
