"""Making primitive tasks out of the worked examples that AWS publishes with its service models.

An example becomes a task where its call succeeds on the company's account (after other examples of
its service, if need be) and another operation reads back what it did: something that the example
names is in its answer after the call and was not before, or the other way round.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shoal.core.records import ToolSpec
from shoal.envs.company.account import Account, Called, CloudDown, Refused
from shoal.envs.company.seed import seed_calls
from shoal.envs.company.served import served_operations
from shoal.envs.company.tasks import Predicate, Step, Task
from shoal.tools.importers.botocore import newest
from shoal.tools.sources import botocore_data
from shoal.tools.text import words_of

LONGEST = 600
"""Characters of an example's arguments; longer ones are no task for a sentence."""


READERS = 10
"""Operations that are tried to read back a call, those of the likest names first."""


def examples_of(service: str) -> list[tuple[str, str, str, dict[str, Any]]]:
    """Operation, title, description and input of a service's examples."""
    document = newest(botocore_data() / service, "examples-1.json") or {}
    return [
        (operation, each.get("title", ""), each.get("description", ""), each.get("input", {}))
        for operation, found in document.get("examples", {}).items()
        for each in found
    ]


def tasks_of(
    account: Account, service: str, specs: Mapping[str, ToolSpec], *, prepared: bool = True
) -> Iterator[Task]:
    """Tasks of one service, verified: false before the call, true after it.

    prepared  whether to look for other examples to call first where one alone is refused
    """
    served = set(served_operations().get(service, ()))
    seen: set[str] = set()
    examples = [each for each in examples_of(service) if each[0] in served]
    for operation, title, description, given in examples:
        name = f"aws.{service}.{operation}"
        text = " ".join((description or title).split())
        if name not in specs or name in seen or not text or len(json.dumps(given)) > LONGEST:
            continue
        if specs[name].side_effect == "read" or not given:
            continue
        made = Called(service, operation, given)
        setup = _setup(account, made, examples if prepared else ())
        if setup is None:
            continue
        predicate = _read_back(account, made, setup, specs)
        if predicate is None:
            continue
        seen.add(name)
        yield Task(
            name=f"{service}-{operation}",
            kind="primitive",
            text=text,
            title=title,
            steps=(Step(name, given, text, _hints(specs[name].service, title, text)),),
            predicates=(predicate,),
            setup=setup,
        )


def _hints(service: str, title: str, text: str) -> tuple[str, ...]:
    """The same in other words: as a title, and whole, with the service's name."""
    return (f"{service} {title}", f"{service} {text}")


def _setup(
    account: Account, wanted: Called, examples: Sequence[tuple[str, str, str, dict[str, Any]]]
) -> tuple[Called, ...] | None:
    """Calls after which an example succeeds: none, or one or two that create something."""
    if _succeeds(account, (), wanted):
        return ()
    makers = [
        Called(wanted.service, operation, given)
        for operation, _, _, given in examples
        if operation.startswith(("Create", "Put", "Register", "Add", "Start"))
        and operation != wanted.operation
    ]
    shared = _texts(wanted.arguments)
    for maker in [m for m in makers if shared & _texts(m.arguments)][:6]:
        if _succeeds(account, (maker,), wanted):
            return (maker,)
    return None


def _base(service: str) -> tuple[Called, ...]:
    """What the company has of one service, and its roles: the rest does not matter to it."""
    return tuple(each for each in seed_calls() if each.service in (service, "iam"))


def _succeeds(account: Account, setup: tuple[Called, ...], wanted: Called) -> bool:
    account.reset(_base(wanted.service))
    try:
        for each in (*setup, wanted):
            account.call(each.service, each.operation, each.arguments)
    except (Refused, ValueError, CloudDown):
        return False
    return True


def _read_back(
    account: Account, made: Called, setup: tuple[Called, ...], specs: Mapping[str, ToolSpec]
) -> Predicate | None:
    """An operation whose answer shows that the call was made, by a value that it names."""
    service = made.service
    known = {key: value for key, value in made.arguments.items() if isinstance(value, str)}
    readers = []
    for operation in served_operations()[service]:
        spec = specs.get(f"aws.{service}.{operation}")
        if spec is None or spec.side_effect != "read":
            continue
        required = spec.parameters.get("required", [])
        if all(key in known for key in required):
            properties = spec.parameters.get("properties", {})
            readers.append((operation, {key: known[key] for key in required}))
            if not required and known.keys() & properties.keys() and len(required) == 0:
                some = {key: known[key] for key in known if key in properties}
                readers.append((operation, some))
    words = set(words_of(made.operation))
    readers.sort(key=lambda reader: -len(words & set(words_of(reader[0]))))
    del readers[READERS:]
    account.reset((*_base(service), *setup))
    before = {at: _answer(account, service, *reader) for at, reader in enumerate(readers)}
    account.reset((*_base(service), *setup))
    account.call(service, made.operation, made.arguments)
    named = sorted(_texts(made.arguments), key=lambda text: (-len(text), text))
    for at, (operation, arguments) in enumerate(readers):
        after = _answer(account, service, operation, arguments)
        for text in named:
            was, is_now = text in _texts(before[at]), text in _texts(after)
            if is_now and not was and text not in _texts(arguments):
                return Predicate(f"aws.{service}.{operation}", arguments, text, True)
            if was and not is_now and before[at] is not None:
                return Predicate(f"aws.{service}.{operation}", arguments, text, False)
    return None


def _answer(account: Account, service: str, operation: str, arguments: dict[str, Any]) -> Any:
    try:
        return account.call(service, operation, arguments)
    except (Refused, ValueError, CloudDown):
        return None


def _texts(value: Any) -> frozenset[str]:
    """Every text and number in a value, at least two characters long."""
    if isinstance(value, Mapping):
        return frozenset().union(*map(_texts, value.values())) if value else frozenset()
    if isinstance(value, list | tuple):
        return frozenset().union(*map(_texts, value)) if value else frozenset()
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return frozenset((str(value),)) if len(str(value)) > 1 else frozenset()
    return frozenset()
