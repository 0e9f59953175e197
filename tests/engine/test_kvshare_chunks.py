"""Chunks: whole, bounded, and the same wherever the text stands."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.engine.kvshare.chunks import LONGEST, MEAN, SHORTEST, Chunk, Marks, chunks, digest
from shoal.models.loading import load

SPECIAL, BLANK, NEWLINE = 7, 8, 9
MARKS = Marks(frozenset({SPECIAL}), frozenset({BLANK}), frozenset({NEWLINE}), frozenset({NEWLINE}))
TEXT = st.lists(st.integers(0, 60), max_size=900)


def text(length: int, seed: int = 0) -> list[int]:
    """Tokens none of which is a mark."""
    draw = random.Random(seed)
    return [draw.randrange(100, 30_000) for _ in range(length)]


def ends(cut: list[Chunk]) -> list[int]:
    return [chunk.end for chunk in cut]


@given(TEXT)
@settings(max_examples=200)
def test_chunks_join_to_the_text_and_keep_their_bounds(tokens: list[int]) -> None:
    cut = chunks(tokens, MARKS)
    assert [token for chunk in cut for token in tokens[chunk.start : chunk.end]] == tokens
    for chunk in cut:
        held = tokens[chunk.start : chunk.end]
        assert chunk.digest == digest(held)
        assert len(chunk) <= LONGEST
        assert SPECIAL not in held or held == [SPECIAL]
        blank = held[-1] == BLANK or held[-2:] == [NEWLINE, NEWLINE] or held == [NEWLINE]
        assert BLANK not in held[:-1]
        ends_short = blank or chunk.end == len(tokens) or SPECIAL in (held[0], tokens[chunk.end])
        assert len(chunk) >= SHORTEST or ends_short


@given(TEXT, st.lists(st.integers(0, 60), min_size=1, max_size=40), st.data())
@settings(max_examples=200)
def test_an_insertion_changes_only_the_chunks_around_it(
    tokens: list[int], inserted: list[int], data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(tokens)))
    before, after = chunks(tokens, MARKS), chunks([*tokens[:at], *inserted, *tokens[at:]], MARKS)
    # what ends before the edit (and has seen its end) is cut as it was
    untouched = [chunk for chunk in before if chunk.end < at]
    assert after[: len(untouched)] == untouched
    # from the first boundary that both have in common, everything is
    moved = {end + len(inserted) for end in (0, *ends(before)) if end >= at}
    common = moved & set(ends(after))
    assert common, "the end of the text is one"
    first = min(common)
    rest = [chunk.digest for chunk in after if chunk.start >= first]
    assert rest == [chunk.digest for chunk in before if chunk.start + len(inserted) >= first]


def test_edits_change_about_two_chunks_of_a_long_text() -> None:
    changed = []
    for seed in range(40):
        tokens = text(3000, seed)
        known = {chunk.digest for chunk in chunks(tokens)}
        edited = [*tokens[:1400], *text(12, seed + 1000), *tokens[1400:]]
        changed.append(sum(chunk.digest not in known for chunk in chunks(edited)))
    assert sum(changed) / len(changed) < 3


def test_the_mean_length_is_near_what_it_should_be() -> None:
    cut = chunks(text(200_000))
    assert 0.9 * MEAN < 200_000 / len(cut) < 1.1 * MEAN


def test_the_same_text_is_cut_alike_behind_anything_that_ends_a_chunk() -> None:
    document = text(500)
    own = [chunk.digest for chunk in chunks(document, MARKS)]
    for start in (
        [*text(5, 1), SPECIAL],
        [*text(40, 2), BLANK],
        [*text(5, 2), BLANK],  # a short note before a document costs nothing of the document
        [*text(40, 3), NEWLINE, NEWLINE],
    ):
        behind = [chunk.digest for chunk in chunks([*start, *document], MARKS)]
        assert behind[-len(own) :] == own


def test_a_constant_text_is_cut_at_the_longest() -> None:
    lengths = {len(chunk) for chunk in chunks([5] * 1000)}
    assert lengths in ({SHORTEST, 1000 % SHORTEST}, {LONGEST, 1000 % LONGEST})


def test_nothing_has_no_chunks() -> None:
    assert chunks([]) == []


def test_marks_are_read_off_the_vocabulary(tiny_model: Path) -> None:
    tokenizer = load(str(tiny_model), dtype="fp32").tokenizer
    marks = Marks.of(tokenizer)
    assert marks.special == set(tokenizer.special_ids.values())
    (newline,) = tokenizer.encode("\n")
    assert marks.opens == marks.closes == {newline}
    assert not marks.blank  # a byte-level vocabulary has no token for two of them
    ids = tokenizer.encode("one two three four five.\n\nsix")
    assert [len(chunk) for chunk in chunks(ids, marks)] == [len(ids) - 3, 3]


@pytest.mark.parametrize("other", [[1, 2, 4], [1, 2], [2, 1, 3], [258, 0, 3]])
def test_other_tokens_have_another_digest(other: list[int]) -> None:
    assert digest([1, 2, 3]) != digest(other)
    assert len(digest(other)) == 16
