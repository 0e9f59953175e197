"""Channels: who hears whom, and how much of it. What no channel carries, a member never sees.

A mesh and a bus carry a member's own words back to it too: remembering is a channel like any
other, and it makes the transcript the same text for all, so that it is computed once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol, TypeVar

from pydantic import Field

from shoal.agents.payloads import Heard, Payload, guards, payloads
from shoal.agents.rules import Call, Member, Registry, Rule
from shoal.core import rng
from shoal.core.errors import ConfigError, nearest
from shoal.core.records import Step

EVERYONE = "*"


@dataclass(frozen=True, slots=True)
class Channel:
    """Carries what ``src`` said to ``dst``; both name one member, several, or ``*`` for all.

    view   how much of it, counted among what the guard lets through
    carry  in which form: its text, fields of data in it, its key-value cache, distributions
           over the next token, weights
    when   which of it: a guard that looks at each thing said
    """

    src: str | tuple[str, ...]
    dst: str | tuple[str, ...]
    view: str | Call = "last"
    carry: str | Call = "text"
    when: str | Call = "always"


T = TypeVar("T")


class View(Protocol):
    """Which of the things somebody said are carried; they come and go oldest first."""

    def __call__(self, said: Sequence[T], /) -> Sequence[T]: ...


views: Registry[View] = Registry("view")


@views.register("last")
def last(n: Annotated[int, Field(ge=1)] = 1) -> View:
    """The last ``n`` things that were said."""
    return lambda said: said[-n:]


@views.register("all")
def everything() -> View:
    """All that was said, from the beginning."""
    return lambda said: said


Topology = Callable[[tuple[str, ...]], tuple[Channel, ...]]
"""Makes the channels between members given by name in the order they were declared."""

topologies: Registry[Topology] = Registry("channels")


@topologies.register("none")
def none() -> Topology:
    """Nobody hears anybody."""
    return lambda names: ()


@topologies.register("mesh")
def mesh(view: Rule = "last", carry: Rule = "text") -> Topology:
    """Everyone hears everyone's last word, their own included."""
    return lambda names: (Channel(EVERYONE, EVERYONE, view, carry),)


@topologies.register("sparse")
def sparse(
    k: Annotated[int, Field(ge=1)] = 2, seed: int = 0, view: Rule = "last", carry: Rule = "text"
) -> Topology:
    """Each hears itself and ``k`` others that are drawn once, by ``seed``."""

    def make(names: tuple[str, ...]) -> tuple[Channel, ...]:
        channels = []
        for name in names:
            others = sorted(
                (other for other in names if other != name),
                key=lambda other, name=name: rng.uniform(seed, "sparse", name, other),  # type: ignore[misc]
            )
            heard = (name, *others[:k])
            channels.append(Channel(tuple(n for n in names if n in heard), name, view, carry))
        return tuple(channels)

    return make


@topologies.register("bus")
def bus(view: Rule = "all", carry: Rule = "text") -> Topology:
    """Everyone reads one board that keeps all that was said."""
    return lambda names: (Channel(EVERYONE, EVERYONE, view, carry),)


@topologies.register("star")
def star(hub: Member, view: Rule = "last", carry: Rule = "text") -> Topology:
    """The hub hears everyone, everyone hears the hub."""

    def make(names: tuple[str, ...]) -> tuple[Channel, ...]:
        others = tuple(name for name in names if name != hub)
        return Channel(others, hub, view, carry), Channel(hub, others, view, carry)

    return make


@topologies.register("chain")
def chain(view: Rule = "last", carry: Rule = "text") -> Topology:
    """Each hears the one before."""
    return lambda names: tuple(Channel(a, b, view, carry) for a, b in itertools.pairwise(names))


@topologies.register("ring")
def ring(view: Rule = "last", carry: Rule = "text") -> Topology:
    """Each hears the one before, the first hears the last."""
    return lambda names: tuple(
        Channel(a, b, view, carry) for a, b in itertools.pairwise((names[-1], *names))
    )


@topologies.register("tree")
def tree(
    branches: Annotated[int, Field(ge=1)] = 2, view: Rule = "last", carry: Rule = "text"
) -> Topology:
    """The first is the root; each hears its parent and its ``branches`` children."""

    def make(names: tuple[str, ...]) -> tuple[Channel, ...]:
        pairs = [(names[(i - 1) // branches], names[i]) for i in range(1, len(names))]
        return tuple(
            channel
            for a, b in pairs
            for channel in (Channel(a, b, view, carry), Channel(b, a, view, carry))
        )

    return make


Channels = str | Call | tuple[Channel, ...]


def lay(channels: Channels, names: tuple[str, ...]) -> tuple[Channel, ...]:
    """The single channels between members; raises :class:`ConfigError` for unknown ones."""
    if not isinstance(channels, tuple):
        channels = topologies.make(channels)(names)
    for channel in channels:
        for name in (*_selected(channel.src), *_selected(channel.dst)):
            if name != EVERYONE:
                known_member(name, names, "A channel")
        views.make(channel.view)
        payloads.make(channel.carry)
        guards.make(channel.when)
    return channels


def known_member(name: str, names: Iterable[str], who: str) -> None:
    """Raise :class:`ConfigError`, with the nearest name, unless ``name`` is a member's."""
    names = tuple(names)
    if name not in names:
        raise ConfigError(
            f"{who} names {name!r}, who is not a member.{nearest(name, names)} "
            f"Members: {', '.join(names)}."
        )


def _selected(select: str | tuple[str, ...]) -> tuple[str, ...]:
    return (select,) if isinstance(select, str) else select


@dataclass(frozen=True, slots=True)
class Inlet:
    """One channel into some member: whom it hears, how much, in which form, and which of it."""

    sources: tuple[str, ...]
    view: View
    payload: Payload
    guard: Callable[[Step], bool] | None


class Wiring:
    """Channels resolved to the members of a run (copies included)."""

    def __init__(self, channels: Sequence[Channel], copies: Mapping[str, tuple[str, ...]]) -> None:
        def expand(select: str | tuple[str, ...]) -> tuple[str, ...]:
            chosen = tuple(copies) if EVERYONE in _selected(select) else _selected(select)
            return tuple(name for member in chosen for name in copies[member])

        self._inlets = [
            Inlet(
                expand(channel.src),
                views.make(channel.view),
                payloads.make(channel.carry),
                None if channel.when == "always" else guards.make(channel.when),
            )
            for channel in channels
        ]
        hears: dict[str, list[int]] = {name: [] for names in copies.values() for name in names}
        for index, channel in enumerate(channels):
            for name in expand(channel.dst):
                hears[name].append(index)
        self.hears = {name: tuple(indexes) for name, indexes in hears.items()}
        """Which channels reach a member: members with equal ones have equal inboxes."""

    def inlets(self, name: str) -> tuple[tuple[str, View], ...]:
        """Whom a member hears, and how much of each."""
        found = (self._inlets[index] for index in self.hears[name])
        return tuple((src, inlet.view) for inlet in found for src in inlet.sources)

    def sources(self, name: str) -> frozenset[str]:
        """Whom a member hears."""
        return frozenset(src for src, _ in self.inlets(name))

    def carries(self, kind: str) -> bool:
        """Whether any channel carries this kind of payload."""
        return any(inlet.payload.kind == kind for inlet in self._inlets)

    def inbox(
        self, channels: tuple[int, ...], said: Mapping[str, Sequence[Step]]
    ) -> tuple[Heard, ...]:
        """What these channels carry, oldest first, then by name; nothing twice.

        What several channels carry comes in the form of the first that carries it.
        """
        carried: dict[str, Heard] = {}
        for index in channels:
            inlet = self._inlets[index]
            if inlet.payload.show is None:
                continue
            for src in inlet.sources:
                steps: Sequence[Step] = said[src]
                if inlet.guard is not None:
                    steps = [step for step in steps if inlet.guard(step)]
                for step in inlet.view(steps) if steps else ():
                    if step.key not in carried:
                        carried[step.key] = Heard(step, inlet.payload)
        heard = carried.values()
        return tuple(sorted(heard, key=lambda one: (one.step.superstep, one.step.member)))
