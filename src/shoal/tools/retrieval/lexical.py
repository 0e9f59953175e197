"""BM25 over weighted fields, exact after every change of the collection.

Okapi BM25 (Robertson and Zaragoza, 2009) in Lucene's form of the inverse document frequency,
ln(1 + (N - n + 0.5) / (n + 0.5)). Term counts of a document's fields are added with the fields'
weights before they saturate, as in BM25F. Counts and lengths are stored, never scores: adding or
removing a document changes all scores at once, as if the index had been built anew.

Shapes: S slots (a document's place, used again after it is removed), P documents of one term.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Slots = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Saturation:
    """BM25's constants: ``k1`` how fast repetitions stop to count, ``b`` how far length does."""

    k1: float = 1.2
    b: float = 0.75


class Lexical:
    """Postings by term. Not for several threads while it changes."""

    def __init__(self, saturation: Saturation = Saturation()) -> None:
        self.saturation = saturation
        self._ids: dict[str, int] = {}
        self._slots: list[Slots] = []
        self._counts: list[Floats] = []
        self._sizes: list[int] = []
        self._terms: dict[int, NDArray[np.int32]] = {}
        self._length_S = np.zeros(0, np.float32)
        self._norm_S: Floats | None = None

    def __len__(self) -> int:
        return len(self._terms)

    def __contains__(self, term: str) -> bool:
        return self.frequency(term) > 0

    def frequency(self, term: str) -> int:
        """How many documents have a term."""
        number = self._ids.get(term)
        return 0 if number is None else self._sizes[number]

    @property
    def vocabulary(self) -> Collection[str]:
        """All terms ever seen, in order of appearance."""
        return self._ids.keys()

    def add(self, slot: int, counts: Mapping[str, float]) -> None:
        """Put a document into a free slot; ``counts`` are weighted counts by term."""
        self.add_all([slot], [counts])

    def add_all(self, slots: Sequence[int], documents: Sequence[Mapping[str, float]]) -> None:
        """Put several documents into free slots: the postings of each term grow once."""
        if not slots:
            return
        self._reserve(max(slots) + 1)
        numbers: list[int] = []
        weights: list[float] = []
        for slot, counts in zip(slots, documents, strict=True):
            assert slot not in self._terms, "a slot holds one document"
            ids = [self._number(term) for term in counts]
            self._terms[slot] = np.array(ids, np.int32)
            self._length_S[slot] = sum(counts.values())
            numbers += ids
            weights += counts.values()
        self._norm_S = None
        if not numbers:
            return
        term_of = np.array(numbers, np.int32)
        sizes = [len(counts) for counts in documents]
        slot_of = np.repeat(np.array(slots, np.int32), sizes)
        weight_of = np.array(weights, np.float32)
        order = np.argsort(term_of, kind="stable")
        changed, starts = np.unique(term_of[order], return_index=True)
        slot_of, weight_of = slot_of[order], weight_of[order]
        ends = [*starts[1:].tolist(), len(order)]
        for term, start, end in zip(changed.tolist(), starts.tolist(), ends, strict=True):
            self._append(term, slot_of[start:end], weight_of[start:end])

    def remove(self, slot: int) -> None:
        """Take a document out; its slot is free afterwards."""
        for term in self._terms.pop(slot).tolist():
            size = self._sizes[term]
            slots, counts = self._slots[term], self._counts[term]
            at = int(np.flatnonzero(slots[:size] == slot)[0])
            slots[at], counts[at] = slots[size - 1], counts[size - 1]
            self._sizes[term] = size - 1
        self._length_S[slot] = 0
        self._norm_S = None

    def saturate(self, saturation: Saturation) -> None:
        """Use other constants from now on."""
        self.saturation = saturation
        self._norm_S = None

    def scores(self, terms: Mapping[str, float]) -> Floats:
        """BM25 of every slot [S] for weighted terms of a query; 0 where none of them occurs."""
        out_S = np.zeros(len(self._length_S), np.float32)
        norm_S = self._norms()
        total = len(self._terms)
        for term, weight in terms.items():
            number = self._ids.get(term)
            if number is None or not (size := self._sizes[number]):
                continue
            slots_P, counts_P = self._slots[number][:size], self._counts[number][:size]
            idf = np.float32(weight * np.log(1 + (total - size + 0.5) / (size + 0.5)))
            out_S[slots_P] += idf * counts_P / (counts_P + norm_S[slots_P])
        return out_S

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything that is kept, as arrays, for :meth:`of_arrays`."""
        terms = json.dumps(list(self._ids)).encode()
        pairs = list(zip(self._slots, self._counts, self._sizes, strict=True))
        return {
            "terms": np.frombuffer(terms, np.uint8),
            "sizes": np.array(self._sizes, np.int32),
            "slots": np.concatenate([np.zeros(0, np.int32), *(s[:n] for s, _, n in pairs)]),
            "counts": np.concatenate([np.zeros(0, np.float32), *(c[:n] for _, c, n in pairs)]),
            "lengths": self._length_S,
        }

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]], saturation: Saturation) -> Lexical:
        """An index out of what :meth:`arrays` gave."""
        made = cls(saturation)
        terms: list[str] = json.loads(arrays["terms"].tobytes())
        made._ids = {term: number for number, term in enumerate(terms)}
        made._sizes = arrays["sizes"].tolist()
        ends = np.cumsum(arrays["sizes"])[:-1]
        slots: Slots = arrays["slots"]
        made._slots = np.split(slots, ends)
        made._counts = np.split(arrays["counts"], ends)
        made._length_S = arrays["lengths"]
        number_of = np.repeat(np.arange(len(terms), dtype=np.int32), arrays["sizes"])
        order = np.argsort(slots, kind="stable")
        documents, starts = np.unique(slots[order], return_index=True)
        parts = np.split(number_of[order], starts[1:])
        made._terms = dict(zip(documents.tolist(), parts, strict=True))
        return made

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, and of the dictionary of terms (estimated)."""
        arrays = [*self._slots, *self._counts, *self._terms.values(), self._length_S]
        return sum(array.nbytes + 112 for array in arrays) + 120 * len(self._ids)

    def _norms(self) -> Floats:
        if self._norm_S is None:
            average = float(self._length_S.sum()) / max(len(self._terms), 1)
            k1, b = self.saturation.k1, self.saturation.b
            self._norm_S = k1 * (1 - b + b * self._length_S / np.float32(max(average, 1e-9)))
        return self._norm_S

    def _number(self, term: str) -> int:
        number = self._ids.get(term)
        if number is None:
            number = self._ids[term] = len(self._sizes)
            self._slots.append(np.zeros(0, np.int32))
            self._counts.append(np.zeros(0, np.float32))
            self._sizes.append(0)
        return number

    def _append(self, term: int, slots: Slots, counts: Floats) -> None:
        size, more = self._sizes[term], len(slots)
        if size == 0 and len(self._slots[term]) == 0 and more > 1:
            self._slots[term], self._counts[term] = slots.copy(), counts.copy()
        else:
            if size + more > len(self._slots[term]):
                capacity = size + more + (size + more) // 4 + 1
                self._slots[term] = np.resize(self._slots[term][:size], capacity)
                self._counts[term] = np.resize(self._counts[term][:size], capacity)
            self._slots[term][size : size + more] = slots
            self._counts[term][size : size + more] = counts
        self._sizes[term] = size + more

    def _reserve(self, slots: int) -> None:
        if slots > len(self._length_S):
            grown = np.zeros(max(slots, len(self._length_S) * 5 // 4), np.float32)
            grown[: len(self._length_S)] = self._length_S
            self._length_S = grown
            self._norm_S = None
