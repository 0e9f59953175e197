"""What a free text votes for, and counting votes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

_ANSWER = re.compile(r"\banswer\s*(?::|is\b:?)\s*(.+)", re.IGNORECASE)


def ballot(text: str) -> str:
    """The answer in a text: what follows the last ``Answer:`` or ``answer is``, else all.

    Case, outer punctuation and repeated spaces do not count.
    """
    found = _ANSWER.findall(text)
    return " ".join((found[-1] if found else text).split()).strip(" .,;:!?*\"'`()").casefold()


def tally(votes: Iterable[str]) -> dict[str, int]:
    """How often each vote was cast, most first, ties in alphabetical order."""
    return dict(sorted(Counter(votes).items(), key=lambda item: (-item[1], item[0])))
