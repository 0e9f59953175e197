"""Documentation of tools as plain text: markup out, names into words, others' words as data."""

from __future__ import annotations

import html
import json
import re

LONGEST = 20_000
"""Characters of one documentation that are kept: beyond that nobody reads, and searches slow."""

ENOUGH = 0.6
"""Share of characters that must be plain ASCII for a documentation to be searched by its words."""

_TAG = re.compile(r"<[^<>]{0,2000}>")
_SPACE = re.compile(r"\s+")
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_WORD = re.compile(r"[A-Z]+(?![^\W\d_A-Z])[0-9]*|[A-Z]?[^\W\d_A-Z]+[0-9]*|[0-9]+")
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z(])")


def plain(documentation: object) -> str:
    """One line of text without markup, at most ``LONGEST`` characters; "" for what is no text."""
    if not isinstance(documentation, str):
        return ""
    text = documentation[: 4 * LONGEST]  # before any expression sees it: one may hold megabytes
    if "<" in text:
        text = _TAG.sub(" ", text)
    if "&" in text:
        text = html.unescape(text)
    text = _SPACE.sub(" ", _UNPRINTABLE.sub(" ", text)).strip()
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def searchable(documentation: str) -> bool:
    """Whether a text is worth indexing by its words; false for binary and non-Latin text."""
    if not documentation:
        return True
    plain_letters = sum(1 for letter in documentation[:2000] if " " <= letter <= "~")
    return plain_letters >= ENOUGH * len(documentation[:2000])


def words_of(name: str) -> list[str]:
    """The words of a name: ``CreateDBCluster``, ``create_db_cluster`` and ``create-db-cluster``
    are create, DB and Cluster."""
    return _WORD.findall(name)


def humanised(name: str) -> str:
    """A name for people, in title case: ``get_record`` is ``Get Record``."""
    return " ".join(word if word.isupper() else word.capitalize() for word in words_of(name))


def brief(documentation: str, characters: int = 300) -> str:
    """The first sentences of a documentation, as many as fit, and at least a part of the first."""
    if len(documentation) <= characters:
        return documentation
    kept = ""
    for sentence in _SENTENCE.split(documentation):
        if len(kept) + len(sentence) > characters:
            break
        kept = f"{kept} {sentence}".strip()
    return kept or documentation[: characters - 1].rstrip() + "…"


def quoted(text: str) -> str:
    """Others' words as a JSON string: nothing in them can end the quotation or begin a line."""
    return json.dumps(text, ensure_ascii=False)
