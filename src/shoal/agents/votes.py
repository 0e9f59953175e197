"""What a free text votes for, and counting votes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

_ANSWER = re.compile(r"\banswer\s*(?::|is\b:?)\s*(.+)", re.IGNORECASE)


def ballot(text: str) -> str:
    """The answer in a text: what follows the last ``Answer:`` or ``answer is``, else all.

    Case, outer punctuation and repeated spaces do not count.
    """
    found = _ANSWER.findall(text)
    return " ".join((found[-1] if found else text).split()).strip(" .,;:!?*\"'`()").casefold()


def chosen(text: str, choices: Sequence[str]) -> str | None:
    """The choice a text names: all of it, or the only one among its words; else None."""
    word = text.strip(" \n\t.,;:!?*\"'`()").casefold()
    exact = [choice for choice in choices if choice.casefold() == word]
    if exact:
        return exact[0]
    words = set(re.findall(r"[^\W\d][\w-]*(?:\.[\w-]+)*", text.casefold()))
    named = [choice for choice in choices if choice.casefold() in words]
    return named[0] if len(named) == 1 else None


def tally(votes: Iterable[str]) -> dict[str, int]:
    """How often each vote was cast, most first, ties in alphabetical order."""
    return dict(sorted(Counter(votes).items(), key=lambda item: (-item[1], item[0])))
