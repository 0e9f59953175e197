"""Sentence vectors by WordLlama: one fixed vector a token, averaged; 256 numbers a text.

The table was distilled from the input embeddings of large language models (WordLlama, MIT). It
travels in the package of the extra ``tools``, whose own loader looks for the tokenizer in a
folder that the package does not have; the two files are read here directly, without importing it.

Shapes: B texts, V tokens of the vocabulary, D numbers of a vector.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from shoal.core.errors import InputError, MissingExtra

PACKAGE = "wordllama"
WEIGHTS = Path("weights", "l2_supercat_256.safetensors")
TOKENIZER = Path("tokenizers", "l2_supercat_tokenizer_config.json")
MAX_TOKENS = 512
"""Tokens of one text that count: a mean over more says less."""


class WordLlama:
    """The table in memory (33 MB). Safe for several threads at once."""

    name = "wordllama-256"
    dimensions = 256
    revision = "wordllama-256/l2-supercat/1"

    def __init__(self, folder: Path) -> None:
        """Read the package's folder (about 50 ms)."""
        from safetensors.numpy import load_file

        (table_VD,) = load_file(folder / WEIGHTS).values()
        self._table_VD: NDArray[np.float32] = table_VD.astype(np.float32)
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)

    @classmethod
    def open(cls) -> WordLlama:
        """The table of the installed package; raises :class:`MissingExtra` where it is not."""
        folder = _folder()
        if folder is None:
            raise MissingExtra("The static embedding model", "tools")
        return cls(folder)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors [B, D] of texts; the vector of a text without tokens is zero.

        Raises :class:`InputError` for text that is not valid Unicode.
        """
        try:
            encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except (UnicodeEncodeError, TypeError) as error:
            raise InputError("A text holds half a character (a lone surrogate).") from error
        out_BD = np.zeros((len(texts), self.dimensions), np.float32)
        for row, each in enumerate(encoded):
            if ids := each.ids:
                out_BD[row] = self._table_VD[ids].mean(0)
        lengths_B = np.linalg.norm(out_BD, axis=1, keepdims=True)
        unit_BD: NDArray[np.float32] = out_BD / np.maximum(lengths_B, 1e-12)
        return unit_BD


def available() -> bool:
    """Whether the table is on this machine."""
    return _folder() is not None


def _folder() -> Path | None:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0])
    return folder if (folder / WEIGHTS).is_file() and (folder / TOKENIZER).is_file() else None
