"""From a request to what is searched for: rewrite, decompose and expand, without a model.

The three stages of Toolshed before the search, as rules. Nothing here knows the catalogue, but
for the spelling of words: a word that no tool has is read as the nearest one that some have.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from shoal.tools.retrieval.words import STOP
from shoal.tools.text import words_of

LONGEST = 4_000
"""Characters of a request that are read."""

MOST_STEPS = 6
VERBS = frozenset(
    """
    abort accept activate add allocate alter analyze apply approve archive assign associate assume
    attach authorize begin book build buy calculate call cancel change check clear clone close
    compare complete compose compute configure confirm connect convert copy count create
    deactivate decline decode decrease decrypt define delete deny deploy deregister describe
    detach detect determine disable disassociate discover display download draft drop edit email
    empty enable encode encrypt enumerate erase establish estimate evaluate execute export extend
    extract fetch filter find follow forward generate get give grant grow halt identify import
    increase initiate inspect install invite invoke issue join kick kill launch leave list load
    lock look lower make mark merge migrate modify monitor move mute notify open order pause
    perform pick pin ping poll post prepare print promote provision publish pull purchase purge
    push put query raise read reboot receive recover refresh register reject release remind remove
    rename renew replace replicate reply report request reserve reset resize resolve restart
    restore resume retrieve retry return revoke rotate run save scale scan schedule search see
    select send set setup share show shrink shut sign simulate snapshot sort start stop store
    submit subscribe summarize suspend swap switch sync synthesize tag tell terminate test track
    transcribe transfer translate trigger turn unassign uninstall unlink unlock unpin unsubscribe
    untag update upgrade upload validate verify view wipe withdraw write
    """.split()  # noqa: SIM905
)
"""Verbs that begin a request for something to be done."""

SPOKEN: Mapping[str, tuple[str, ...]] = {
    "alter": ("update", "modify"),
    "begin": ("start",),
    "build": ("create",),
    "change": ("update", "modify"),
    "configure": ("put", "update", "set"),
    "display": ("describe", "get", "list"),
    "edit": ("update", "modify"),
    "enumerate": ("list", "describe"),
    "erase": ("delete",),
    "fetch": ("get",),
    "find": ("list", "describe", "search"),
    "halt": ("stop",),
    "kill": ("terminate", "delete"),
    "launch": ("run", "start", "create"),
    "make": ("create",),
    "remove": ("delete",),
    "retrieve": ("get", "describe"),
    "return": ("get", "list", "describe"),
    "show": ("describe", "get", "list"),
    "view": ("describe", "get", "list"),
}
"""Verbs of people and the verbs that interfaces have for them."""

KINDRED: Mapping[str, tuple[str, ...]] = {
    "add": ("create", "put"),
    "describe": ("get", "list"),
    "get": ("describe", "list"),
    "list": ("describe", "get"),
    "modify": ("update",),
    "set": ("put", "update"),
    "update": ("modify",),
}
"""Verbs of interfaces and others that one interface or another has for the same."""

Spell = Callable[[str], str | None]

_SPACE = re.compile(r"[^\S\n]+")
_POLITE = re.compile(
    r"^(?:(?:hi|hello|hey|ok|okay|so|well|thanks|thank you)\b[\s,!.]*|"
    r"(?:can|could|would|will) (?:you|we|i)\b[\s,]*|please\b[\s,]*|kindly\b[\s,]*|"
    r"i(?:'d| would) like(?: you)? to\b|i (?:want|need|have)(?: you)? to\b|help me(?: to)?\b|"
    r"let's\b|let us\b|we (?:want|need|have) to\b|to\b)\s*",
    re.IGNORECASE,
)
_PRONOUN = re.compile(r"\b(?:it|its|them|that one|this one|those|these|the same)\b", re.IGNORECASE)
_LETTERS = re.compile(r"[A-Za-z]{5,20}")
_ENDS = re.compile(
    r"(?:^|\s+)\d+[.)]\s+|(?:^|\n)\s*[-*•]\s+|(?<=[a-z0-9)\"'])[.!?;]+(?=\s|$)|\n+", re.IGNORECASE
)
_ORDER = r"then|afterwards|finally|after that"
_LINKS = re.compile(
    rf"\s*(?:,|;)?\s+(?:and|also|plus|as well as|{_ORDER})"
    rf"(?:,?\s+(?:also|to|please|{_ORDER}))*,?\s+|\s*,\s+",
    re.IGNORECASE,
)
_ORDERED = re.compile(rf"\b(?:{_ORDER})\b", re.IGNORECASE)
_LEAD = re.compile(
    rf"^(?:(?:and|also|now|next|{_ORDER})\b[\s,]*)+|^(?:example|step|task)(?: \d+)?:\s+",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Step:
    """One thing a request asks for; ``phrasings`` are other ways to say it.

    ``extra`` are further words of the query with their weights, 1 being a word of the text.
    """

    text: str
    phrasings: tuple[str, ...] = ()
    extra: tuple[tuple[str, float], ...] = ()


def rewrite(request: str, history: Sequence[str] = (), spell: Spell | None = None) -> str:
    """A request without politeness, its words spelt as some tool spells them.

    A pronoun with nothing to stand for brings in the words of the request before.
    """
    text = _SPACE.sub(" ", request[:LONGEST]).strip()
    shorter = _POLITE.sub("", text)
    while shorter != text:
        text, shorter = shorter, _POLITE.sub("", shorter)
    if spell:
        text = _LETTERS.sub(lambda match: spell(match.group()) or match.group(), text)
    if history and _PRONOUN.search(text):
        known = text.lower()
        before = [word for word in re.findall(r"[\w-]+", history[-1][:LONGEST]) if _says(word)]
        text = " ".join([text, *(word for word in before if word.lower() not in known)])
    return text


def decompose(request: str) -> tuple[str, ...]:
    """The things a request asks for, one after the other; at most ``MOST_STEPS``.

    A sentence, a line of a list or a clause is a step of its own where it begins with a verb that
    asks, or where a word of order leads to it ("then", "after that"); anything else belongs to
    the step before it.
    """
    steps: list[str] = []
    for sentence in _ENDS.split(request):
        if sentence and sentence.strip():
            for piece, ordered in _clauses(sentence.strip()):
                if steps and not ordered and not _asks(piece):
                    steps[-1] = f"{steps[-1]}. {piece}"
                else:
                    steps.append(piece)
    if len(steps) > MOST_STEPS:
        steps[MOST_STEPS - 1 :] = [". ".join(steps[MOST_STEPS - 1 :])]
    return tuple(steps) or (request,)


def _clauses(sentence: str) -> Iterator[tuple[str, bool]]:
    """Clauses of a sentence that ask for something, and whether a word of order led to each."""
    lead = _LEAD.match(sentence)
    start = lead.end() if lead else 0
    ordered = lead is not None and _ORDERED.search(lead.group()) is not None
    for link in _LINKS.finditer(sentence, start):
        order = _ORDERED.search(link.group()) is not None
        if order or _asks(sentence[link.end() :]):
            if piece := sentence[start : link.start()].strip(" ,;"):
                yield piece, ordered
            start, ordered = link.end(), order
    if piece := sentence[start:].strip(" ,;"):
        yield piece, ordered


def expand(step: str, weight: float) -> Step:
    """A step whose verb people use and interfaces do not, with the verbs that interfaces have.

    They count ``weight``, and the step's own verb as much less: "make a bucket" asks for what
    creates, not for a text in which something makes sure of something.
    """
    for word, form in _verbs(step):
        if form in SPOKEN and weight:
            others = tuple((verb, weight) for verb in SPOKEN[form])
            return Step(step, (), (*others, (word, -weight)))
        return Step(step)
    return Step(step)


def verb_of_operation(operation: str) -> str:
    """The verb in an operation's name: of ``BatchGetItem`` get, of ``files.list`` list."""
    words = [word.lower() for word in words_of(operation.rsplit(".", 1)[-1])]
    return next((word for word in words if word in VERBS), words[0] if words else "")


def verbs_of_request(step: str) -> tuple[tuple[str, float], ...]:
    """The verbs that the name of a tool for a step may have, and how well each of them fits.

    The step's own is its first verb, if one is among its first words.
    """
    for _, form in _verbs(step):
        others = [(verb, 1.0) for verb in SPOKEN.get(form, ())]
        others += [(verb, 0.5) for verb in KINDRED.get(form, ())]
        return ((form, 1.0), *others)
    return ()


def _verbs(step: str) -> Iterator[tuple[str, str]]:
    """Verbs among the first words of a step: as they are written, and without an ending."""
    for word in re.findall(r"[a-z]+", step.lower())[:4]:
        for form in _bare(word):
            if form in VERBS:
                yield word, form
                break


class Speller:
    """Spelling by the words that tools have.

    A word nobody knows is read as the one known word at distance 1, if there is just one.
    Distance counts a letter put in, left out or changed, or two that changed places.
    """

    def __init__(self, known: Callable[[str], bool]) -> None:
        self._known = known
        self._buckets: dict[tuple[str, int], list[str]] = {}
        self._read = 0

    def learn(self, vocabulary: Collection[str]) -> None:
        """Read what was added to a vocabulary that only grows."""
        if len(vocabulary) == self._read:
            return
        for word in islice(vocabulary, self._read, None):
            if len(word) >= 5 and word.isascii() and word.isalpha():
                self._buckets.setdefault((word[0], len(word)), []).append(word)
        self._read = len(vocabulary)

    def __call__(self, word: str) -> str | None:
        """The known word that is meant, or None."""
        lower = word.lower()
        if not word[1:].islower() or self._known(lower):  # CamelCase is a name, not a slip
            return None
        near = [
            other
            for length in (len(lower), len(lower) - 1, len(lower) + 1)
            for other in self._buckets.get((lower[0], length), ())
            if _one_apart(lower, other) and self._known(other)
        ]
        return near[0] if len(near) == 1 else None


def _one_apart(one: str, other: str) -> bool:
    if len(one) > len(other):
        one, other = other, one
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
    if len(one) < len(other):
        return one[at:] == other[at + 1 :]
    swapped = one[at + 1 : at + 2] + one[at : at + 1]
    return one[at + 1 :] == other[at + 1 :] or swapped + one[at + 2 :] == other[at:]


def _says(word: str) -> bool:
    return word.lower() not in STOP and word.lower() not in VERBS


def _asks(text: str) -> bool:
    """Whether a clause begins with a verb that asks for something, alone or in a tool's name."""
    text = _POLITE.sub("", _POLITE.sub("", _LEAD.sub("", text.lstrip())))
    match = re.match(r"[A-Za-z]+", text)
    if match is None:
        return False
    first = match.group()
    verb = words_of(first)[0] if first[1:] != first[1:].lower() else first
    return verb.lower() in VERBS


def _bare(word: str) -> tuple[str, ...]:
    """Forms a verb may have without its ending."""
    forms = [word]
    if word.endswith("s"):
        forms.append(word[:-1])
    for ending in ("ing", "ed"):
        if word.endswith(ending):
            forms += [word[: -len(ending)], word[: -len(ending)] + "e"]
    return tuple(forms)
