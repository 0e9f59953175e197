"""What a channel carries, in which form, and which of it: payloads and guards.

Collaboration survey (arXiv 2501.06322): early stage (data, context), middle (caches, weights)
and late (outputs, distributions). A payload says what a hearer's prompt shows of a thing said.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from shoal.agents.rules import Names, Registry
from shoal.core.records import Step

Kind = Literal["text", "data", "kv", "logits", "weights"]


@dataclass(frozen=True, slots=True)
class Payload:
    """A form in which words travel; ``show`` is None where no text travels at all.

    Payloads of one kind and the same ``fields`` show the same.
    """

    kind: Kind
    show: Callable[[str], str] | None = field(compare=False)
    fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Heard:
    """One thing that a channel brought, and in which form."""

    step: Step
    payload: Payload

    @property
    def key(self) -> str:
        """The key of the step."""
        return self.step.key

    @property
    def speaker(self) -> str:
        """The name of who said it."""
        return self.step.member.rpartition("/")[2]

    @property
    def text(self) -> str:
        """How it looks to who hears it."""
        assert self.payload.show is not None, "what shows nothing is not in an inbox"
        return f"{self.speaker} said: {self.payload.show(self.step.output.strip())}"


payloads: Registry[Payload] = Registry("carry", "shoal.payloads")


def _as_it_is(text: str) -> str:
    return text


PLAIN = Payload("text", _as_it_is)


@payloads.register("text")
def text() -> Payload:
    """The words themselves."""
    return PLAIN


@payloads.register("data")
def data(fields: Names = ()) -> Payload:
    """The last JSON object in the words, or only these fields of it; ``{}`` where there is none."""

    def show(said: str) -> str:
        found = json_in(said)
        kept = {k: v for k, v in found.items() if not fields or k in fields}
        return json.dumps(kept, ensure_ascii=False)

    return Payload("data", show, fields)


@payloads.register("kv")
def kv() -> Payload:
    """The words, whose key-value cache their hearers may reuse where it stands.

    Prompts mark these pieces (:class:`shoal.agents.prompt.Piece`). An engine finds exact
    prefixes by itself; hearers that are ``dense`` ask for no more than that.
    """
    return Payload("kv", _as_it_is)


@payloads.register("logits")
def logits() -> Payload:
    """Distributions over the next token, in lockstep (turn rule ``lockstep``); no words."""
    return Payload("logits", None)


@payloads.register("weights")
def weights() -> Payload:
    """The JSON object that holds a member's weights, for members that are functions."""
    return Payload("weights", lambda said: json.dumps(json_in(said), ensure_ascii=False))


def json_in(text: str) -> dict[str, Any]:
    """The last JSON object in a text; empty where there is none."""
    decoder, found, at = json.JSONDecoder(), dict[str, Any](), text.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            found = value
        at = text.find("{", end)
    return found


Guard = Callable[[Step], bool]

guards: Registry[Guard] = Registry("when", "shoal.guards")


@guards.register("always")
def always() -> Guard:
    """All that is said."""
    return lambda step: True


@guards.register("says")
def says(word: str) -> Guard:
    """What contains ``word`` (upper or lower case)."""
    return lambda step: word.casefold() in step.output.casefold()


@guards.register("silent_on")
def silent_on(word: str) -> Guard:
    """What does not contain ``word`` (upper or lower case)."""
    return lambda step: word.casefold() not in step.output.casefold()


@guards.register("topic")
def topic(names: Names) -> Guard:
    """What begins with one of these topics and a colon, such as ``bug: it crashes``."""
    wanted = {name.casefold() for name in names}
    return lambda step: step.output.partition(":")[0].strip().casefold() in wanted
