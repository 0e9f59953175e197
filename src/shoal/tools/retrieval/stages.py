"""Toolshed's stages as functions from one state of a lookup to the next.

Toolshed: Scale Tool-Equipped Agents with Advanced RAG-Tool Fusion and Tool Knowledge Bases
(arXiv 2410.14594). "enrich" is done when a tool is indexed (:mod:`documents`); the others are
here, in order. Departures: every stage works without a model; the legs are fused by their scores,
since equal ranks of a weak and a strong leg lose what the strong one knows; the number of tools is
one total for the whole request, not one a step.

Shapes: S slots, N candidates of one step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shoal.tools.retrieval import requests
from shoal.tools.retrieval.requests import Spell, Step
from shoal.tools.retrieval.settings import Settings

Floats = NDArray[np.float32]
Slots = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Found:
    """Candidates of one step: their slots [N] and what each leg says of them [N].

    ``score`` is what they are ranked by so far.
    """

    slots: Slots
    lexical: Floats
    dense: Floats
    score: Floats


@dataclass(frozen=True, slots=True)
class Lookup:
    """A request on its way through the stages."""

    request: str
    k: int
    history: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    found: tuple[Found, ...] = ()
    chosen: tuple[tuple[int, float, int], ...] = ()
    """(slot, score, step) in the order of the answer."""


class Shelf(Protocol):
    """What the stages need of an index."""

    @property
    def settings(self) -> Settings: ...

    @property
    def spell(self) -> Spell: ...

    def lexical_scores(self, text: str, extra: Sequence[tuple[str, float]]) -> Floats | None:
        """BM25 [S] of a text, words added or made less; None where the text has no term at all."""
        ...

    def query_vector(self, text: str) -> Floats | None:
        """The vector of a text; None without an embedder, and where it would not count."""
        ...

    def nearest(self, vector: Floats, count: int) -> Slots: ...

    def cosines(self, vector: Floats, slots: Slots) -> Floats: ...

    def verb_match(self, text: str, slots: Slots) -> Floats:
        """How well the verb of each tool's name fits what a text asks for, from 0 to 1."""
        ...

    def success(self, slots: Slots) -> Floats:
        """From -1 (its calls fail) over 0 (unknown) to 1, for each slot."""
        ...

    def named(self, text: str) -> Sequence[int]:
        """Slots of tools that a text calls by their names."""
        ...

    def rank_key(self, slot: int) -> str:
        """What decides between equal scores."""
        ...


def rewrite(lookup: Lookup, shelf: Shelf) -> Lookup:
    """Politeness out, spelling mended, pronouns filled from the request before."""
    text = requests.rewrite(lookup.request, lookup.history, shelf.spell)
    return replace(lookup, request=text)


def decompose(lookup: Lookup, shelf: Shelf) -> Lookup:
    """One step for each thing that is asked for."""
    return replace(lookup, steps=tuple(map(Step, requests.decompose(lookup.request))))


def expand(lookup: Lookup, shelf: Shelf) -> Lookup:
    """Verbs of interfaces for a verb of people."""
    weight = shelf.settings.synonym
    return replace(
        lookup,
        steps=tuple(
            step if step.extra else replace(step, extra=requests.expand(step.text, weight).extra)
            for step in lookup.steps
        ),
    )


def search(lookup: Lookup, shelf: Shelf) -> Lookup:
    """Both legs for every step and phrasing: what either finds is a candidate of the step."""
    return replace(lookup, found=tuple(_found(step, lookup.k, shelf) for step in lookup.steps))


def _found(step: Step, k: int, shelf: Shelf) -> Found:
    legs = [leg for text in (step.text, *step.phrasings) if (leg := _leg(text, step, k, shelf))]
    if not legs:
        none = np.zeros(0, np.float32)
        return Found(np.zeros(0, np.intp), none, none, none)
    if len(legs) == 1:
        return legs[0]
    slots = np.unique(np.concatenate([leg.slots for leg in legs]))
    lexical = np.zeros(len(slots), np.float32)
    dense = np.zeros(len(slots), np.float32)
    for leg in legs:  # a tool counts as what its best phrasing makes of it
        at = np.searchsorted(slots, leg.slots)
        lexical[at] = np.maximum(lexical[at], leg.lexical)
        dense[at] = np.maximum(dense[at], leg.dense)
    return Found(slots, lexical, dense, lexical)


def _leg(text: str, step: Step, k: int, shelf: Shelf) -> Found | None:
    lexical_S = shelf.lexical_scores(text, step.extra)
    if lexical_S is None:
        return None
    count = max(shelf.settings.candidates, k)
    slots = _largest(lexical_S, count)
    vector = shelf.query_vector(text)
    if vector is None:
        return Found(slots, lexical_S[slots], np.zeros(len(slots), np.float32), lexical_S[slots])
    slots = np.union1d(slots, shelf.nearest(vector, max(count // 2, k)))
    lexical = lexical_S[slots]
    return Found(slots, lexical, shelf.cosines(vector, slots), lexical)


def _largest(scores_S: Floats, count: int) -> Slots:
    """Slots of the largest positive scores, all that equal the last one included."""
    if count >= len(scores_S):
        return np.flatnonzero(scores_S > 0)
    edge = np.partition(scores_S, -count)[-count]
    return np.flatnonzero((scores_S >= edge) & (scores_S > 0))


def fuse(lookup: Lookup, shelf: Shelf) -> Lookup:
    """BM25 over the largest of the step, plus the weighted cosine."""
    weight = np.float32(shelf.settings.dense)

    def fused(found: Found) -> Found:
        top = max(float(found.lexical.max(initial=0)), 1e-9)
        return replace(found, score=found.lexical / np.float32(top) + weight * found.dense)

    return replace(lookup, found=tuple(map(fused, lookup.found)))


def rerank(lookup: Lookup, shelf: Shelf) -> Lookup:
    """Tools called by their names come first; then count verb and past calls.

    A tool whose name has the request's verb is likelier than one whose text only mentions it.
    """

    def reranked(step: Step, found: Found) -> Found:
        if not len(found.slots):
            return found
        spread = max(float(found.score.max()), 1e-9)
        score = found.score / np.float32(spread)
        verbs = shelf.verb_match(step.text, found.slots)
        score = score + np.float32(shelf.settings.verb) * verbs
        score = score + np.float32(shelf.settings.success) * shelf.success(found.slots)
        if named := shelf.named(step.text):
            score = score + 10 * np.isin(found.slots, np.array(named)).astype(np.float32)
        return replace(found, score=score.astype(np.float32))

    pairs = zip(lookup.steps, lookup.found, strict=True)
    return replace(lookup, found=tuple(reranked(step, found) for step, found in pairs))


def fit(lookup: Lookup, shelf: Shelf) -> Lookup:
    """At most ``k`` tools for the whole request: an equal part for each step, the rest by score.

    No tool is chosen twice; what a step does not use goes to the others.
    """
    ranked = [_ordered(found, lookup.k * 2 + 20, shelf) for found in lookup.found]
    chosen: dict[int, tuple[float, int]] = {}
    part = max(1, lookup.k // max(len(ranked), 1))
    for place in range(part):
        for step, order in enumerate(ranked):
            for slot, score in order[place:]:
                if len(chosen) < lookup.k and slot not in chosen:
                    chosen[slot] = (score, step)
                    break
    rest = [
        (place, -score, shelf.rank_key(slot), slot, step)
        for step, order in enumerate(ranked)
        for place, (slot, score) in enumerate(order)
        if slot not in chosen
    ]
    for _, negative, _, slot, step in sorted(rest):
        if len(chosen) >= lookup.k:
            break
        chosen.setdefault(slot, (-negative, step))
    return replace(lookup, chosen=tuple((slot, *facts) for slot, facts in chosen.items()))


def best(lookup: Lookup, shelf: Shelf) -> Lookup:
    """What is chosen without "fit": the ``k`` best of each step, one step after the other."""
    chosen: dict[int, tuple[float, int]] = {}
    for step, found in enumerate(lookup.found):
        for slot, score in _ordered(found, lookup.k, shelf):
            chosen.setdefault(slot, (score, step))
    return replace(lookup, chosen=tuple((slot, *facts) for slot, facts in chosen.items()))


def _ordered(found: Found, count: int, shelf: Shelf) -> list[tuple[int, float]]:
    near = _edge(found.score, count)
    pairs = [(int(found.slots[at]), float(found.score[at])) for at in near]
    return sorted(pairs, key=lambda pair: (-pair[1], shelf.rank_key(pair[0])))[:count]


def _edge(score: Floats, count: int) -> Slots:
    """Places of the ``count`` largest, and of all that equal the last of them."""
    if count >= len(score):
        return np.arange(len(score))
    return np.flatnonzero(score >= np.partition(score, -count)[-count])


PIPELINE: dict[str, Callable[[Lookup, Shelf], Lookup]] = {
    "rewrite": rewrite,
    "decompose": decompose,
    "expand": expand,
    "search": search,
    "fuse": fuse,
    "rerank": rerank,
    "fit": fit,
}
"""The stages of a lookup by name, in their order."""
