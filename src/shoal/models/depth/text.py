"""Text that a model is fitted to and measured on, as rows of tokens.

Rows are consecutive stretches of equal length. Every tenth row is held out: nothing is fitted to
it, and the perplexities that are reported are of these rows alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from shoal.core.documents import read_documents
from shoal.core.errors import InputError
from shoal.models.tokenizer import Tokenizer

EVERY = 10
"""Of so many rows the last is held out."""


@dataclass(frozen=True, slots=True, eq=False)
class Corpus:
    """Rows [n, S] to fit to, and rows to measure on.

    source  where the text is from, as a reader would say it
    """

    source: str
    fitted_NS: torch.Tensor
    held_out_NS: torch.Tensor

    def calibration(self, rows: int) -> torch.Tensor:
        """So many rows to fit to, evenly spread over all of them: [n, S]."""
        count = min(rows, len(self.fitted_NS))
        places = [index * len(self.fitted_NS) // count for index in range(count)]
        return self.fitted_NS[places]


def rows_of(tokenizer: Tokenizer, texts: Iterable[str], length: int) -> torch.Tensor:
    """All whole rows of ``length`` tokens in these texts, none across two of them: [n, length]."""
    rows = []
    for text in texts:
        ids = torch.tensor(tokenizer.encode(text, special=False), dtype=torch.long)
        rows.append(ids[: len(ids) // length * length].view(-1, length))
    return torch.cat(rows) if rows else torch.empty(0, length, dtype=torch.long)


def split(ids_NS: torch.Tensor, source: str) -> Corpus:
    """Hold out every tenth row, or the last where there are fewer than ten.

    Raises :class:`InputError` where there are fewer than two rows.
    """
    count, length = ids_NS.shape
    if count < 2:
        raise InputError(
            f"{source} gives {count} rows of {length} tokens, and fitting needs two at least, one "
            "of them held out: give more text or shorter rows."
        )
    held = [i for i in range(count) if i % EVERY == EVERY - 1] or [count - 1]
    fitted = [i for i in range(count) if i not in set(held)]
    return Corpus(source, ids_NS[fitted], ids_NS[held])


def corpus(tokenizer: Tokenizer, paths: Sequence[Path], *, length: int = 512) -> Corpus:
    """Rows of the user's files and folders, or of Python's own reference where there are none."""
    if paths:
        texts = [document.text for document in read_documents(paths).documents]
        return split(rows_of(tokenizer, texts, length), ", ".join(map(str, paths)))
    joined = "\n\n".join(python_reference())
    return split(rows_of(tokenizer, [joined], length), "Python's language reference")


def python_reference() -> list[str]:
    """The language reference that every CPython carries for ``help()``: 0.46 MB of English."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]
