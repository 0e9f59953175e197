import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.chunks import chunk, fit
from shoal.core.documents import Document
from shoal.core.errors import InputError


def words(text: str) -> int:
    """A tokenizer of words; what is left of a word at a cut counts as one."""
    return len(text.split())


def rough(text: str) -> int:
    """Four characters a token, rounded up, with a prefix that joining can make dearer."""
    return (len(text) + 3) // 4 + text.count("ab")


@given(
    st.text(alphabet="ab .!\n#\t-é漢", max_size=400),
    st.integers(3, 40),
    st.sampled_from([words, rough]),
)
def test_chunks_joined_are_the_text_and_each_fits(text, limit, count) -> None:
    chunks = chunk(text, count, limit)
    assert "".join(c.text for c in chunks) == text
    assert all(count(c.text) == c.tokens <= limit for c in chunks)
    assert all(text[c.start : c.start + len(c.text)] == c.text for c in chunks)


def test_cuts_fall_between_paragraphs_and_before_headings() -> None:
    text = "# A\n\none two three.\n\nfour five six.\n\n# B\n\nseven eight nine.\n\nten eleven."
    assert [c.text for c in chunk(text, words, 12)] == [
        "# A\n\none two three.\n\nfour five six.\n\n",
        "# B\n\nseven eight nine.\n\nten eleven.",
    ]


def test_a_long_paragraph_is_cut_between_sentences_then_words_then_characters() -> None:
    sentences = "One two three. Four five six. Seven eight nine. Ten."
    assert all(c.text.rstrip().endswith(".") for c in chunk(sentences, words, 4))
    plain = " ".join(f"w{i}" for i in range(50))
    assert all(c.text.endswith(" ") for c in chunk(plain, words, 7)[:-1])
    assert [c.text for c in chunk("x" * 10, len, 4)] == ["xxx", "xxx", "xxxx"]


def test_tokens_are_counted_about_once_a_paragraph() -> None:
    draw = random.Random(0)
    paragraphs = [" ".join("word" for _ in range(draw.randint(20, 120))) for _ in range(300)]
    calls = 0

    def count(text: str) -> int:
        nonlocal calls
        calls += 1
        return words(text)

    chunks = chunk("\n\n".join(paragraphs), count, 1000)
    assert calls <= len(paragraphs) + len(chunks) + 5
    assert sum(c.tokens for c in chunks) / len(chunks) > 850
    calls = 0
    chunks = chunk("word " * 50_000, count, 1000)
    assert calls <= 2 * len(chunks)


def test_a_chunk_that_cannot_hold_a_character_is_refused() -> None:
    with pytest.raises(InputError, match="cannot hold '漢', which takes 3"):
        chunk("漢", lambda text: 3 * len(text), 2)


def document(name: str, text: str) -> Document:
    return Document(name, name, text, "text", len(text.split()))


def test_fit_takes_documents_in_order_and_says_what_was_cut() -> None:
    documents = [
        document("a", "one two three"),
        document("b", "four five\n\nsix seven"),
        document("c", "eight"),
    ]
    whole = fit(documents, 8, words)
    assert whole.documents == tuple(documents) and not whole.cut and whole.tokens == 8
    part = fit(documents, 6, words)
    assert [d.text for d in part.documents] == ["one two three", "four five\n\n"]
    assert part.documents[1].words == 2
    assert (part.tokens, part.total) == (5, 8)
    assert str(part) == (
        "The documents have 8 tokens, but only 6 fit: b was cut to 2 of 4, c (1) was left out."
    )


def test_fit_names_the_first_documents_that_are_missing() -> None:
    cut = fit([document(str(n), "a b") for n in range(6)], 4, words)
    assert len(cut.cut) == 4
    assert str(cut).endswith("4 (2) was left out, and 1 more were left out.")


def test_fit_may_leave_nothing() -> None:
    nothing = fit([document("a", "one two")], 0, words)
    assert nothing.documents == () and nothing.cut[0].kept == 0
