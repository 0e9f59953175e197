"""Real operations, and requests for them that people wrote for another purpose.

botocore ships examples of its operations: a title and a description by hand, for 1,258 operations
of 44 services. They are no part of what is indexed, so they are queries with known answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.core.records import ToolSpec
from shoal.tools.importers.botocore import from_botocore, newest
from shoal.tools.sources import botocore_data

STYLES = ("title and description", "service and title", "title")
"""How a request is put: as the example's whole text, or as people ask, with and without the
service's name."""

FULL = STYLES[0]
"""The style of requests that verdicts are about."""


@dataclass(frozen=True, slots=True)
class Example:
    """A request for one tool."""

    tool: str
    service: str
    title: str
    description: str

    def text(self, style: str) -> str:
        """The request in one of the styles."""
        if style == "title":
            return self.title
        if style == "service and title":
            return f"{self.service}: {self.title}"
        return f"{self.title} {self.description}"

    @property
    def half(self) -> int:
        """Which half of the services it is of: weights are fitted on one, tried on the other."""
        folder = self.tool.split(".")[1]
        return hashlib.sha256(folder.encode()).digest()[-1] % 2


def repeats(example: Example, spec: ToolSpec) -> bool:
    """Whether the tool's own texts hold the title or description, or the request its name."""
    texts = f"{spec.description} {json.dumps(spec.parameters)}".lower()
    said = (text.lower().rstrip(". ") for text in (example.title, example.description) if text)
    named = spec.name.rsplit(".", 1)[-1].lower() in example.text(FULL).lower()
    return named or any(text in texts for text in said)


def operations(services: Sequence[str] | None = None) -> list[ToolSpec]:
    """The operations of all services, or of some."""
    return list(from_botocore(botocore_data(), origin="botocore", services=services))


def examples(specs: Sequence[ToolSpec]) -> list[Example]:
    """Examples of these operations; a title that is one word names the operation and is dropped."""
    known = {spec.name: spec for spec in specs}
    data = botocore_data()
    found: list[Example] = []
    for service in sorted({name.split(".")[1] for name in known}):
        document = newest(data / service, "examples-1.json") or {}
        for operation, several in document.get("examples", {}).items():
            name = f"aws.{service}.{operation}"
            for one in several:
                title, about = one.get("title") or "", one.get("description") or ""
                title = title if " " in title else ""
                if name in known and (title or about):
                    found.append(Example(name, known[name].service, title, about))
    return found
