"""How an index searches: which stages, with which weights. Every ablation is a setting."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.core.errors import ConfigError, nearest
from shoal.tools.retrieval.documents import PartWeights
from shoal.tools.retrieval.lexical import Saturation

STAGES = ("enrich", "rewrite", "decompose", "expand", "search", "fuse", "rerank", "fit")
"""Toolshed's stages in their order. What is left out of a list is not done."""

NAIVE = PartWeights(service=0, arguments=0, questions=0, split_names=False)
"""The document without enrichment: the name as it is written, and the documentation."""


PARTS = PartWeights(name=3.0, service=3.0, arguments=0.3)
SATURATION = Saturation(b=0.5)


@dataclass(frozen=True, slots=True)
class Settings:
    """Weights of the stages; the defaults were fitted on one half of the claim's services.

    But for that of synonyms: the requests of the claim use the verbs that interfaces use, so the
    fit gives them nothing; people who ask do not.

    stages      what is done; "search" is needed
    parts       weights of a document's parts ("enrich")
    saturation  BM25's constants ("search")
    dense       weight of the cosine beside BM25 over its largest score ("fuse"); 0 without vectors
    candidates  tools that each leg brings to the fusion
    synonym     weight of interfaces' verbs for one of people, which loses as much ("expand")
    verb        weight of a name that has the request's verb ("rerank")
    success     weight of how a tool's calls ended so far ("rerank")
    """

    stages: tuple[str, ...] = STAGES
    parts: PartWeights = PARTS
    saturation: Saturation = SATURATION
    dense: float = 0.3
    candidates: int = 100
    synonym: float = 0.7
    verb: float = 0.15
    success: float = 0.15

    def __post_init__(self) -> None:
        for stage in self.stages:
            if stage not in STAGES:
                raise ConfigError(f"There is no stage {stage!r}.{nearest(stage, STAGES)}")
        if "search" not in self.stages:
            raise ConfigError("An index without the stage 'search' finds nothing: name it.")
        if self.candidates < 1:
            raise ConfigError(f"candidates is {self.candidates}, but must be at least 1.")

    @property
    def document_weights(self) -> PartWeights:
        """Weights of a document's parts, with enrichment or without."""
        return self.parts if "enrich" in self.stages else NAIVE
