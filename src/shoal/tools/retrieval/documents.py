"""What of a tool is searched: the stage "enrich" of Toolshed, without a model.

A tool's document has the parts of Toolshed (arXiv 2410.14594): its name in words, the service it
belongs to, its documentation, the names and documentation of its arguments, and questions it
answers, where somebody made some. Each part counts with a weight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shoal.core.records import ToolSpec
from shoal.tools.retrieval.words import Analyser, stem
from shoal.tools.text import brief, humanised, searchable

ARGUMENTS = 80
"""Arguments of one tool that are searched."""


@dataclass(frozen=True, slots=True)
class PartWeights:
    """How much one word counts in each part of a document; 0 leaves the part out.

    ``split_names`` false keeps names whole, as they are written: what a naive index does.
    """

    name: float = 1.0
    service: float = 1.0
    description: float = 1.0
    arguments: float = 1.0
    questions: float = 1.0
    split_names: bool = True


@dataclass(frozen=True, slots=True)
class ToolDocument:
    """The parts of a tool's document as text; ``warning`` says what of it cannot be searched."""

    name: str
    service: str
    description: str
    arguments: str
    questions: str = ""
    warning: str = ""

    def sentence(self) -> str:
        """What an embedding model reads: the important parts first, as models read beginnings."""
        parts = (
            f"{humanised(self.name)}. {self.service}.",
            brief(self.description),
            self.arguments,
        )
        return " ".join(part for part in parts if part.strip(" ."))


def operation_of(name: str) -> str:
    """The operation in a qualified name: what follows the origin and its first part.

    ``aws.s3.CreateBucket`` is CreateBucket; ``google.drive.v3.files.list`` is files.list.
    """
    parts = name.split(".")
    rest = parts[2:] or parts[1:] or parts
    if len(rest) > 1 and rest[0][:1] == "v" and rest[0][1:2].isdigit():
        rest = rest[1:]
    return ".".join(rest)


def document_of(spec: ToolSpec, questions: Sequence[str] = ()) -> ToolDocument:
    """The document of a tool.

    A documentation in no Latin letters, or in none at all, is left out with a warning: the tool
    is then found by its name and arguments.
    """
    warning = ""
    description = spec.description
    if not searchable(description):
        warning = f"The documentation of {spec.name!r} is not in words that can be searched."
        description = ""
    properties = spec.parameters.get("properties")
    arguments: list[str] = []
    if isinstance(properties, Mapping):
        for name, schema in list(properties.items())[:ARGUMENTS]:
            about = schema.get("description", "") if isinstance(schema, Mapping) else ""
            arguments.append(f"{humanised(str(name))}: {about}" if about else humanised(str(name)))
    parts = spec.name.split(".")
    service = (
        " ".join(dict.fromkeys((spec.service, *parts[1:2]))) if len(parts) > 2 else spec.service
    )
    return ToolDocument(
        operation_of(spec.name),
        service.strip(),
        description,
        " ".join(arguments),
        " ".join(questions),
        warning,
    )


def counts_of(document: ToolDocument, weights: PartWeights, analyse: Analyser) -> dict[str, float]:
    """Weighted counts of the terms of a document."""
    total: dict[str, float] = {}
    if weights.name:
        if weights.split_names:
            _add(total, analyse(document.name), weights.name)
        else:
            _add(total, [stem(document.name.lower())], weights.name)
    for text, weight in (
        (document.service, weights.service),
        (document.description, weights.description),
        (document.arguments, weights.arguments),
        (document.questions, weights.questions),
    ):
        if weight and text:
            _add(total, analyse(text), weight)
    return total


def _add(total: dict[str, float], terms: list[str], weight: float) -> None:
    for term, times in Counter(terms).items():
        total[term] = total.get(term, 0.0) + weight * times
