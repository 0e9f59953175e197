"""From tasks and a model to a group that plays, and the tasks that it learns and is held to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shoal.core.errors import ConfigError, InputError
from shoal.core.protocols import Engine
from shoal.core.stats import Interval, wilson_interval
from shoal.mechanisms.generations import Generations
from shoal.mechanisms.goods.contribution_game import Game
from shoal.mechanisms.goods.evaluators import Graded, by_answer
from shoal.mechanisms.goods.prompts import Asking, ByExample, ByInstruction
from shoal.mechanisms.goods.public_goods import Observe, PublicGoods
from shoal.mechanisms.goods.sequence import Group, Play
from shoal.mechanisms.goods.tasks import Task, parse_tasks


@dataclass(frozen=True, slots=True)
class Settings:
    """How a group plays.

    shots     that many tasks with solutions are shown to all agents as examples, and not played;
              0 asks by chat messages instead
    held_out  share of the tasks, the last ones, that nothing is learnt from
    graded    contributions count how likely the right answer becomes, beside whether it is right
    """

    agents: tuple[str, ...] = ("first", "second", "third")
    observe: Observe = "last"
    game: Game = field(default_factory=Game)
    shots: int = 0
    longest: int = 400
    held_out: float = 0.3
    graded: bool = True


@dataclass(frozen=True, slots=True)
class Job:
    """A group, the tasks it may learn from, and those it is held to."""

    group: Group
    learning: tuple[Task, ...]
    held_out: tuple[Task, ...]


def read_tasks(path: Path) -> tuple[Task, ...]:
    """Tasks of a JSONL file; raises :class:`InputError`."""
    try:
        return parse_tasks(path.read_text(encoding="utf-8-sig"), path.name)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read the tasks {path}: {error}.") from error


def prepare(
    tasks: Sequence[Task], engine: Engine, settings: Settings, cache: Path | None = None
) -> Job:
    """A group of one model; generations are kept in ``cache`` if there is one.

    Raises :class:`ConfigError` where tasks or examples are too few.
    """
    shown = [task for task in tasks if task.solution][: settings.shots]
    if len(shown) < settings.shots:
        raise ConfigError(
            f"{settings.shots} examples are to be shown, but only {len(shown)} tasks have a "
            "solution."
        )
    rest = [task for task in tasks if task not in shown]
    if not 0 <= settings.held_out < 1:
        raise ConfigError(f"The share held out is {settings.held_out}, not in [0, 1).")
    cut = len(rest) - round(settings.held_out * len(rest))
    if cut < 1:
        raise ConfigError("No task is left to learn from: give more tasks, or hold fewer out.")
    asking: Asking = ByExample(tuple(shown)) if shown else ByInstruction()
    known = Generations(engine, longest=settings.longest, path=cache)
    group = Group(
        PublicGoods(settings.game, settings.observe),
        settings.agents,
        dict.fromkeys(settings.agents, known),
        asking,
        Graded(engine) if settings.graded else by_answer,
        settings.longest,
    )
    return Job(group, tuple(rest[:cut]), tuple(rest[cut:]))


def accuracy(plays: Sequence[Play]) -> Interval:
    """The share of tasks whose last answer is right, with Wilson's interval."""
    return wilson_interval(sum(one.right for one in plays), len(plays))
