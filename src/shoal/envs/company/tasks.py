"""Tasks of the company: what is asked, the calls that do it, and how one sees that it was done.

Success is never the text of a call: predicates read the account's state back through other
operations.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from shoal.core.errors import ConfigError, nearest
from shoal.envs.company.account import Account, Called, CloudDown, Refused

Kind = Literal["primitive", "composite", "impossible"]

_REFERENCE = re.compile(r"\{\{(\w+)\.([\w.\[\]]+)\}\}")


@dataclass(frozen=True, slots=True)
class Step:
    """One call of a solution.

    tool       its qualified name
    arguments  with references such as ``{{topic.TopicArn}}`` to what earlier steps returned
    need       what is to be done, in words that are not the tool's
    hints      other words for it, for searching again: a title, the service's name
    name       what later steps call its answer
    """

    tool: str
    arguments: Mapping[str, Any]
    need: str
    hints: tuple[str, ...] = ()
    name: str = ""


@dataclass(frozen=True, slots=True)
class Predicate:
    """``text`` is somewhere in what ``tool`` answers, or, with ``holds`` false, nowhere.

    An operation that is refused answers nothing.
    """

    tool: str
    arguments: Mapping[str, Any]
    text: str
    holds: bool = True


@dataclass(frozen=True, slots=True)
class Task:
    """One task. ``setup`` changes the company's account before it begins; ``why`` says of an
    impossible one what stands against it."""

    name: str
    kind: Kind
    text: str
    steps: tuple[Step, ...] = ()
    predicates: tuple[Predicate, ...] = ()
    setup: tuple[Called, ...] = ()
    title: str = ""
    why: str = ""
    tags: tuple[str, ...] = field(default=())


def met(predicate: Predicate, account: Account) -> bool:
    """Whether a predicate holds in the account now."""
    _, service, operation = predicate.tool.split(".")
    try:
        answer = account.call(service, operation, predicate.arguments)
    except (Refused, ValueError):
        return not predicate.holds
    return (predicate.text in _texts(answer)) == predicate.holds


def _texts(value: Any) -> set[str]:
    if isinstance(value, Mapping):
        return set().union(*map(_texts, value.values())) if value else set()
    if isinstance(value, list | tuple):
        return set().union(*map(_texts, value)) if value else set()
    if isinstance(value, str) and value[:1] in "{[":
        try:  # policies and messages are JSON in a text
            return {value} | _texts(json.loads(value))
        except ValueError:
            return {value}
    return {str(value)}


def score(task: Task, account: Account) -> float:
    """Share of the task's predicates that hold."""
    if not task.predicates:
        return 1.0
    return sum(met(predicate, account) for predicate in task.predicates) / len(task.predicates)


def filled(arguments: Any, answers: Mapping[str, Any]) -> Any:
    """Arguments with references replaced by what earlier steps returned.

    Raises :class:`ConfigError` for a reference to what is not there.
    """
    if isinstance(arguments, Mapping):
        return {key: filled(value, answers) for key, value in arguments.items()}
    if isinstance(arguments, list | tuple):
        return [filled(value, answers) for value in arguments]
    if not isinstance(arguments, str):
        return arguments

    def value(match: re.Match[str]) -> str:
        found: Any = answers.get(match[1])
        for part in re.findall(r"\w+", match[2]):
            try:
                found = found[int(part)] if part.isdigit() else found[part]
            except (KeyError, IndexError, TypeError):
                raise ConfigError(f"No earlier step returned {match[0]}.") from None
        return str(found)

    return _REFERENCE.sub(value, arguments)


def gold(task: Task, account: Account) -> None:
    """Make a task's calls as they are known to be right; raises what the account raises."""
    answers: dict[str, Any] = {}
    for step in task.steps:
        _, service, operation = step.tool.split(".")
        answers[step.name] = account.call(service, operation, filled(step.arguments, answers))


def verified(task: Task, account: Account, base: Sequence[Called]) -> str | None:
    """Why a task is none: it holds before it is done, or its own calls do not do it; else None."""
    try:
        account.reset((*base, *task.setup))
        if task.predicates and score(task, account) == 1.0:
            return "it is done before it begins"
        gold(task, account)
        if score(task, account) < 1.0:
            failing = next(each for each in task.predicates if not met(each, account))
            return f"after its calls {failing.tool} does not show {failing.text!r}"
    except (Refused, ValueError, CloudDown, ConfigError) as error:
        return str(error)
    return None


@lru_cache(maxsize=1)
def load_tasks() -> tuple[Task, ...]:
    """All tasks that come with the package."""
    folder = Path(__file__).parent
    primitive = json.loads((folder / "primitive.json").read_text(encoding="utf-8"))
    written = tomllib.loads((folder / "written.toml").read_text(encoding="utf-8"))
    return tuple(map(_task, [*primitive["tasks"], *written["task"]]))


def find_task(name: str) -> Task:
    """The task of a name; raises :class:`ConfigError`, naming the nearest."""
    known = {task.name: task for task in load_tasks()}
    if name not in known:
        raise ConfigError(f"The company has no task {name!r}.{nearest(name, known)}")
    return known[name]


def _task(raw: Mapping[str, Any]) -> Task:
    return Task(
        name=raw["name"],
        kind=raw["kind"],
        text=raw["text"],
        steps=tuple(_step(step) for step in raw.get("steps", ())),
        predicates=tuple(Predicate(**each) for each in raw.get("predicates", ())),
        setup=tuple(_called(each) for each in raw.get("setup", ())),
        title=raw.get("title", ""),
        why=raw.get("why", ""),
        tags=tuple(raw.get("tags", ())),
    )


def _step(raw: Mapping[str, Any]) -> Step:
    return Step(
        raw["tool"], raw["arguments"], raw["need"], tuple(raw.get("hints", ())), raw.get("name", "")
    )


def _called(raw: Mapping[str, Any]) -> Called:
    return Called(raw["service"], raw["operation"], raw["arguments"])
