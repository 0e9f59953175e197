"""Whether the texts of a call may be moved, and the prompt that moving them makes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from shoal.engine.generation import Piece
from shoal.engine.kvcomm.anchors import (
    Anchor,
    Comparison,
    after_offset,
    entropy,
    text_offset,
)
from shoal.engine.kvcomm.policy import Bases, CommPolicy, Decision, Known, Way
from shoal.engine.kvcomm.templates import Template
from shoal.engine.segments import KVSegment

Compare = Callable[[KVSegment, Sequence[Anchor]], Comparison]


def decide(known: Known, bases: Bases, policy: CommPolicy, compare: Compare) -> Decision:
    """Whether all texts of a call may be moved (equation 5, and the gate)."""
    if not bases:
        return Decision(None, "nothing in the prompt changes")
    found = Decision(0, "anchors agree", anchors=policy.size)
    for base, pool in zip(bases, known.pools, strict=True):
        if base is None:
            found = replace(found, seen=(*found.seen, None))
            continue
        anchors = pool.usable(base)
        if len(anchors) < 2:
            return Decision(None, "fewer than two anchors are long enough")
        seen = compare(base, anchors)
        weights = seen.weights
        found = Decision(
            0,
            found.why,
            max(found.entropy, entropy(weights)),
            max(found.distance, seen.relative),
            min(found.anchors, len(anchors)),
            (*found.seen, seen),
        )
        if entropy(weights) > policy.gamma * math.log2(len(anchors)):
            return replace(found, way=None, why="the anchors do not agree on this text")
        _count_uses(weights, anchors, policy.top_p)
    return _gated(known, found, policy) if policy.gated else found


def _gated(known: Known, found: Decision, policy: CommPolicy) -> Decision:
    """The cheapest way that looks found near enough for a text so far from its anchors."""
    why = found.why
    for way, gate in enumerate(known.gates[: len(policy.ways)]):
        if not gate.open:
            why = "looks found the approximation too far off"
        elif not gate.reaches(found.distance):
            why = "the text is too far from every anchor"
        else:
            return replace(found, way=way, why=why)
    return replace(found, way=None, why=why, held=True)


def _count_uses(weights_A: torch.Tensor, anchors: Sequence[Anchor], top_p: float) -> None:
    order = weights_A.argsort(descending=True)
    before = weights_A[order].cumsum(0) - weights_A[order]
    for index in order[before < top_p].tolist():
        anchors[index].uses += 1


def put_together(
    template: Template,
    known: Known,
    bases: Bases,
    seen: Sequence[Comparison | None],
    way: Way,
    *,
    offsets: bool = True,
) -> tuple[Piece, ...]:
    """The prompt with moved texts; its last token is computed."""
    parts = template.parts
    pieces = [Piece(parts[0].tokens)]
    for index, (base, pool) in enumerate(zip(bases, known.pools, strict=True)):
        text, after = parts[2 * index + 1], parts[2 * index + 2]
        close = seen[index]
        if base is None or close is None:
            pieces += [Piece(text.tokens), Piece(after.tokens)]
            continue
        anchors = pool.usable(base)
        moved = base.add(*text_offset(close, anchors)) if offsets else base
        pieces.append(Piece(base.tokens, moved))
        if way.after == "computed":
            pieces.append(Piece(after.tokens))
            continue
        fixed = known.fixed[index]
        follows = fixed.add(*after_offset(close, anchors)) if offsets else fixed
        pieces.append(Piece(after.tokens, follows))
    return tuple(_last_computed([piece for piece in pieces if piece.tokens]))


def _last_computed(pieces: list[Piece]) -> list[Piece]:
    last = pieces[-1]
    if last.segment is None:
        return pieces
    kept = Piece(last.tokens[:-1], last.segment.slice(0, len(last.tokens) - 1))
    return [*pieces[:-1], *([kept] if kept.tokens else []), Piece(last.tokens[-1:])]
