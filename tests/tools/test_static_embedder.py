"""Vectors of texts: those of the reference, unit length, kept by content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from shoal.core.errors import ConfigError, InputError, MissingExtra
from shoal.models.embedding import Kept, open_embedder
from shoal.models.static_embedder import WordLlama, available


@pytest.fixture(scope="module")
def model() -> WordLlama:
    return WordLlama.open()


def test_the_vectors_are_those_of_the_package(model: WordLlama) -> None:
    import wordllama

    assert available()
    texts = ["Create a new bucket", "Terminate the instances of a cluster, please."]
    reference = wordllama.WordLlama.load(
        cache_dir=Path(wordllama.__file__).parent, disable_download=True, dim=256
    ).embed(texts, norm=True)
    assert np.allclose(model.embed(texts), reference, atol=1e-5)


def test_near_meanings_lie_near_and_lengths_are_one(model: WordLlama) -> None:
    cat, feline, bank, nothing = model.embed(
        ["A cat sits on the mat.", "A feline rests on a rug.", "Interest rates rose.", ""]
    )
    assert cat @ feline > 0.2 > 0.1 > cat @ bank
    assert np.isclose(np.linalg.norm(cat), 1, atol=1e-5) and not nothing.any()
    with pytest.raises(InputError, match="half a character"):
        model.embed(["\ud800"])


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r"shoal\[tools\]"):
        open_embedder("wordllama")
    with pytest.raises(ConfigError, match="Did you mean 'wordllama'"):
        open_embedder("wordlama")


class Letters:
    """Counts of 64 letters; notes what it was asked for."""

    name, dimensions, revision = "letters", 64, "letters/1"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.asked += texts
        out = np.zeros((len(texts), 64), np.float32)
        for row, text in enumerate(texts):
            for sign in text:
                out[row, ord(sign) % 64] += 1
        return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9)


def test_no_text_is_embedded_twice(tmp_path: Path) -> None:
    letters = Letters()
    kept = Kept(letters, tmp_path)
    first = kept.embed(["one", "two"])
    second = Kept(letters, tmp_path).embed(["two", "three", "one"])
    assert letters.asked == ["one", "two", "three"]
    assert np.array_equal(first, second[[2, 0]])
    assert np.allclose(second, letters.embed(["two", "three", "one"]), atol=1e-3)


def test_a_damaged_file_of_vectors_is_set_aside(tmp_path: Path) -> None:
    letters = Letters()
    kept = Kept(letters, tmp_path)
    kept.embed(["one"])
    kept.close()
    (path,) = tmp_path.glob("*.sqlite")
    path.write_bytes(b"rubbish" * 1000)
    for rest in tmp_path.glob("*.sqlite-*"):
        rest.unlink()
    assert Kept(letters, tmp_path).embed(["one"]).shape == (1, 64)
    assert letters.asked == ["one", "one"] and list(tmp_path.glob("*.damaged"))
