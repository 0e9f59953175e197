"""From text to terms: names split into words, common words dropped, plurals folded."""

from __future__ import annotations

import re
from collections.abc import Iterable

from shoal.tools.text import words_of

STOP = frozenset(
    """
    a about above after again against all am an and any are as at be because been before being
    below between both but by can could did do does doing down during each few for from further
    had has have having he her here hers him his how i if in into is it its just let like may me
    might more most must my need new no nor not now of off on once only or other our out over own
    per please same shall she should so some such than that the their them then there these they
    this those through to too under until up us use used uses using very via want was we were what
    when where which while who whom why will with within would you your
    """.split()  # noqa: SIM905
)
"""Words that say nothing about a tool."""

_WORD = re.compile(r"[^\W_]+(?:_[^\W_]+)*")
LONGEST = 40
"""Characters of a term; longer ones are keys and hashes, which no request repeats."""


def stem(word: str) -> str:
    """A lower-case word without the ending of a plural: policies, boxes and keys lose theirs."""
    if len(word) < 4 or word[-1] != "s" or word[-2:] in ("ss", "us", "is"):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "xes", "ches", "shes")):
        return word[:-2]
    return word[:-1]


def terms_of(word: str) -> tuple[str, ...]:
    """The terms of one word: its parts, and the whole where it has several."""
    parts = [stem(part.lower()) for part in words_of(word)]
    if len(parts) > 1:
        parts.append(stem(word.replace("_", "").lower()))
    return tuple(part for part in parts if part not in STOP and len(part) <= LONGEST)


class Analyser:
    """Terms of texts; remembers each distinct word, since catalogues repeat theirs."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, ...]] = {}

    def __call__(self, text: str) -> list[str]:
        """The terms of a text, in order, repetitions included."""
        known = self._known
        out: list[str] = []
        for word in _WORD.findall(text):
            terms = known.get(word)
            if terms is None:
                if len(known) > 500_000:  # texts without end must not fill the memory
                    known.clear()
                terms = known[word] = terms_of(word)
            out += terms
        return out

    def all(self, texts: Iterable[str]) -> list[list[str]]:
        """The terms of several texts."""
        return [self(text) for text in texts]
