"""Where the tools of an index stand: slots, both legs of the search, and what ranks them.

Shapes: S slots, N of them, D numbers of a vector.
"""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.core.errors import ConfigError
from shoal.core.records import ToolSpec
from shoal.models.embedding import Embedder, Kept
from shoal.tools.retrieval.dense import Dense
from shoal.tools.retrieval.documents import ToolDocument, counts_of, document_of, operation_of
from shoal.tools.retrieval.ledger import Ledger
from shoal.tools.retrieval.lexical import Lexical
from shoal.tools.retrieval.requests import (
    Spell,
    Speller,
    verb_of_operation,
    verbs_of_request,
)
from shoal.tools.retrieval.settings import Settings
from shoal.tools.retrieval.words import STOP, Analyser

Floats = NDArray[np.float32]
Slots = NDArray[np.intp]

_QUERIES = 256
"""Query vectors that are remembered: agents of a group ask alike."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A tool in its slot."""

    name: str
    version: str
    origin: str
    label: str


class Shelves:
    """Everything of an index that the stages look at. Not for several threads by itself."""

    def __init__(self, settings: Settings, embedder: Embedder | None, ledger: Ledger) -> None:
        self.settings = settings
        self._embedder = embedder
        self._query_embedder = embedder.inner if isinstance(embedder, Kept) else embedder
        self._ledger = ledger
        self._analyse = Analyser()
        self._lexical = Lexical(settings.saturation)
        self._dense = Dense(embedder.dimensions) if embedder else None
        self._entries: list[Entry | None] = []
        self._places: dict[str, int] = {}
        self._free: list[int] = []
        self._verb_numbers: dict[str, int] = {}
        self._verbs_S = np.zeros(0, np.int32)
        self._success_S = np.zeros(0, np.float32)
        self._operations: dict[str, set[int]] = {}
        self._vectors: OrderedDict[str, Floats] = OrderedDict()
        self._speller = Speller(self._known)

    def __len__(self) -> int:
        return len(self._places)

    def entry(self, name: str) -> Entry:
        """The tool of a name that is here."""
        return self.at(self._places[name])

    def at(self, slot: int) -> Entry:
        """The tool in a slot that is taken."""
        entry = self._entries[slot]
        assert entry is not None, "only slots that are taken are found"
        return entry

    def labelled(self, label: str) -> dict[str, str]:
        """Versions of the tools of one source, by name."""
        taken = (entry for entry in self._entries if entry is not None)
        return {entry.name: entry.version for entry in taken if entry.label == label}

    def put(
        self, specs: Iterable[ToolSpec], label: str, questions: Mapping[str, Sequence[str]]
    ) -> list[str]:
        """Put tools that are not here yet into slots; returns warnings about their documents."""
        specs = list(specs)
        documents = [document_of(spec, questions.get(spec.name, ())) for spec in specs]
        vectors_ND = self._embedded(documents)
        slots = [self._slot() for _ in specs]
        self._grow()
        weights = self.settings.document_weights
        self._lexical.add_all(slots, [counts_of(d, weights, self._analyse) for d in documents])
        if self._dense is not None and vectors_ND is not None:
            self._dense.add_all(slots, vectors_ND)
        for slot, spec in zip(slots, specs, strict=True):
            self._place(slot, Entry(spec.name, spec.version, spec.origin, label))
        return [document.warning for document in documents if document.warning]

    def take(self, name: str) -> None:
        """Take a tool out of its slot."""
        slot = self._places.pop(name)
        self._lexical.remove(slot)
        if self._dense is not None:
            self._dense.remove(slot)
        self._entries[slot] = None
        for known in {name.lower(), operation_of(name).lower()}:
            self._operations[known].discard(slot)
        self._free.append(slot)

    def retune(self, settings: Settings) -> None:
        """Rank by other settings."""
        self.settings = settings
        self._lexical.saturate(settings.saturation)

    def learned(self, name: str, success: float) -> None:
        """Note how the calls of a tool ended so far, from -1 to 1."""
        self._success_S[self._places[name]] = success

    def _slot(self) -> int:
        if self._free:
            return self._free.pop()
        self._entries.append(None)
        return len(self._entries) - 1

    def _grow(self) -> None:
        more = len(self._entries) - len(self._success_S)
        if more > 0:
            more = max(more, len(self._success_S) // 4)
            self._verbs_S = np.pad(self._verbs_S, (0, more))
            self._success_S = np.pad(self._success_S, (0, more))

    def _embedded(self, documents: Sequence[ToolDocument]) -> Floats | None:
        if self._embedder is None:
            return None
        vectors_ND = self._embedder.embed([document.sentence() for document in documents])
        if vectors_ND.shape != (len(documents), self._embedder.dimensions):
            raise ConfigError(
                f"The embedder {self._embedder.name} gave an array {vectors_ND.shape} for "
                f"{len(documents)} texts of {self._embedder.dimensions} numbers."
            )
        return vectors_ND

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything that is kept, as arrays, for :meth:`restore`; only without gaps."""
        assert not self._free, "an index is kept as it was built"
        facts = [astuple(self.at(slot)) for slot in range(len(self._entries))]
        out: dict[str, NDArray[Any]] = {
            f"lexical_{key}": array for key, array in self._lexical.arrays().items()
        }
        out["facts"] = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        if self._dense is not None:
            out["vectors"] = self._dense.vectors(range(len(self._entries)))
        return out

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Fill empty shelves with what :meth:`arrays` gave."""
        assert not self._entries, "only empty shelves are filled"
        entries = [Entry(*fields) for fields in json.loads(arrays["facts"].tobytes())]
        self._entries.extend(entries)
        self._grow()
        for slot, entry in enumerate(entries):
            self._place(slot, entry)
        parts = {key.removeprefix("lexical_"): array for key, array in arrays.items()}
        self._lexical = Lexical.of_arrays(parts, self.settings.saturation)
        if self._dense is not None:
            self._dense.add_all(range(len(entries)), arrays["vectors"])

    def _place(self, slot: int, entry: Entry) -> None:
        self._entries[slot] = entry
        self._places[entry.name] = slot
        verb = verb_of_operation(operation_of(entry.name))
        self._verbs_S[slot] = self._verb_numbers.setdefault(verb, len(self._verb_numbers))
        self._success_S[slot] = self._ledger.of(entry.name, entry.version).success
        for name in {entry.name.lower(), operation_of(entry.name).lower()}:
            self._operations.setdefault(name, set()).add(slot)

    # what the stages ask for

    @property
    def spell(self) -> Spell:
        """Spelling by the words that tools have."""
        self._speller.learn(self._lexical.vocabulary)
        return self._speller

    def _known(self, word: str) -> bool:
        return word in STOP or any(term in self._lexical for term in self._analyse(word))

    def lexical_scores(self, text: str, extra: Sequence[tuple[str, float]]) -> Floats | None:
        """BM25 [S] of a text, words added or made less; None where the text has no term at all."""
        terms: dict[str, float] = dict(Counter(self._analyse(text)))
        if not terms:
            return None
        for word, weight in extra:
            for term in self._analyse(word):
                terms[term] = max(0.0, terms.get(term, 0.0) + weight)
        return self._lexical.scores(terms)[: len(self._entries)]

    def query_vector(self, text: str) -> Floats | None:
        """The vector [D] of a text, remembered for a while; None without an embedder."""
        if self._query_embedder is None or not self.settings.dense:
            return None
        if text in self._vectors:
            self._vectors.move_to_end(text)
            return self._vectors[text]
        vector_D: Floats = self._query_embedder.embed([text])[0]
        self._vectors[text] = vector_D
        if len(self._vectors) > _QUERIES:
            self._vectors.popitem(last=False)
        return vector_D

    def nearest(self, vector: Floats, count: int) -> Slots:
        """Slots of about the nearest tools."""
        assert self._dense is not None, "asked only where there is a query vector"
        return self._dense.nearest(vector, count)

    def cosines(self, vector: Floats, slots: Slots) -> Floats:
        """Cosines [N] of a vector and those of slots."""
        assert self._dense is not None, "asked only where there is a query vector"
        return self._dense.cosines(vector, slots)

    def verb_match(self, text: str, slots: Slots) -> Floats:
        """How well the verbs of tools' names [N] fit a text: 1 its verb, 0.5 a like one, or 0."""
        fits = np.zeros(len(self._verb_numbers) + 1, np.float32)
        for verb, weight in verbs_of_request(text):
            if verb in self._verb_numbers:
                fits[self._verb_numbers[verb]] = weight
        return fits[self._verbs_S[slots]]

    def success(self, slots: Slots) -> Floats:
        """How calls of the tools in slots [N] ended so far, from -1 to 1."""
        return self._success_S[slots]

    def named(self, text: str) -> Sequence[int]:
        """Slots of tools whose qualified name or CamelCase operation stands in a text."""
        found: set[int] = set()
        for word in text.split()[:100]:
            word = word.strip(".,;:!?\"'`()")
            distinct = "." in word or (word[:1].isalpha() and word[1:] != word[1:].lower())
            if distinct and word.lower() in self._operations:
                found |= self._operations[word.lower()]
        return sorted(found)

    def rank_key(self, slot: int) -> str:
        """The name of the tool in a slot: what decides between equal scores."""
        return self.at(slot).name

    @property
    def lexical_bytes(self) -> int:
        """Bytes of the lexical leg."""
        return self._lexical.nbytes

    @property
    def dense_bytes(self) -> int:
        """Bytes of the dense leg."""
        return self._dense.nbytes if self._dense else 0

    @property
    def embedder_name(self) -> str:
        """Name of the embedding model, or an empty string."""
        return self._embedder.name if self._embedder else ""
