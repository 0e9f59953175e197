"""What is wrong with a team file, in one sentence: where it stands and what was meant."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ValidationError

from shoal.core.errors import nearest

Place = Sequence[int | str]

_VARIANTS = ("str", "list[str]", "_Team")
"""What pydantic adds to the place of a value that may be of several types."""


def explained(
    error: ValidationError, text: str, source: str, tables: Mapping[str, type[BaseModel]]
) -> str:
    """One sentence about the first thing that is wrong.

    ``tables`` gives the model of each table by its name ("" for the file), to tell what a field
    that does not exist may have been.
    """
    first = error.errors()[0]
    unknown = first["type"] == "extra_forbidden"
    *outer, last = first["loc"] or ("file",)
    place = [part for part in outer if part not in _VARIANTS]
    if unknown or last not in _VARIANTS:
        place.append(last)
    line = line_of(text, place)
    where = f"{source}, line {line}" if line else source
    at = "".join(f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in place)
    at = " ".join(at.lstrip(".").split())
    if not unknown:
        return f"{where}: {at} is wrong: {first['msg']}."
    table = next((str(part) for part in reversed(place[:-1]) if part in tables), "")
    known = [info.alias or name for name, info in tables[table].model_fields.items()]
    field = str(place[-1])
    return (
        f"{where}: there is no field {field!r} (at {at}).{nearest(field, known)} "
        f"Known: {', '.join(known)}."
    )


def line_of(text: str, place: Place) -> int | None:
    """The line (from 1) of a field, or else of its table; None where it cannot be told.

    ``place`` is a key of the file, or a table's name, its number from 0 where it is one of
    several, and the key in it. Tables in tables are found as the key that holds them.
    """
    table = place[0] if len(place) > 1 else None
    number = place[1] if len(place) > 1 and isinstance(place[1], int) else 0
    rest = place[2 if len(place) > 1 and isinstance(place[1], int) else 1 :] if table else place
    key = re.escape(str(rest[0])) if rest else None
    head = None
    for index, (at, line) in enumerate(_lines(text), 1):
        if at != ((table, number) if table else None):
            continue
        if key and re.match(rf"\s*[\"']?{key}[\"']?\s*[=.]", line):
            return index
        head = head or (index if table else None)
    return head


def _lines(text: str) -> list[tuple[tuple[str, int] | None, str]]:
    """Each line with the table it stands in; lines within long texts are blank."""
    counts: dict[str, int] = {}
    at: tuple[str, int] | None = None
    found: list[tuple[tuple[str, int] | None, str]] = []
    quoted = False
    for line in text.splitlines():
        header = None if quoted else re.match(r"\s*\[\[?\s*([\w-]+)\s*\]", line)
        if header:
            name = header[1]
            counts[name] = counts.get(name, -1) + 1
            at = (name, counts[name])
        found.append((at, "" if quoted else line))
        quoted ^= (line.count('"""') + line.count("'''")) % 2 == 1
    return found
