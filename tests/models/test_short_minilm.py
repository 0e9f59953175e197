"""MiniLM over the beginnings of texts: near the whole model, in any order of lengths."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.core.errors import ConfigError
from shoal.models.embedder import PACKAGE, MiniLM
from shoal.models.embedding import ShortMiniLM
from shoal.models.fetching import fetch


@pytest.mark.model
def test_beginnings_have_nearly_the_vectors_of_float32() -> None:
    model = ShortMiniLM(16, batch=2)
    long = "Creates a new bucket in a region of the cloud for objects. " + "More words. " * 200
    texts = ["Lists users.", long, "Deletes the queue and all of its messages at once.", ""]
    vectors = model.embed(texts)
    whole = MiniLM(fetch(PACKAGE))
    for text, vector in zip(texts, vectors, strict=True):
        ids = whole.encode(text)
        if len(ids) > 16:
            ids = [*ids[:15], ids[-1]]
        assert whole.vectors([ids])[0] @ vector > 0.999
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    with pytest.raises(ConfigError, match="4 to 256"):
        ShortMiniLM(3)
