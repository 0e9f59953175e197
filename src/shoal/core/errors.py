"""What a user can do wrong, each as one sentence: what, which value, what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ShoalError(Exception):
    """Base of every error a user can cause or must hear about; its text is one sentence.

    ``exit_code`` is what the command line returns.
    """

    exit_code = 1


class InputError(ShoalError):
    """A file, folder or argument that cannot be used."""

    exit_code = 2


class ConfigError(ShoalError):
    """A team, protocol or option that does not make sense."""

    exit_code = 2


class ModelError(ShoalError):
    """A model that cannot be found, verified or loaded."""


class EngineError(ShoalError):
    """An engine that cannot answer a request."""


class ContextOverflow(EngineError):
    """A prompt that does not fit the model's context (it fails alone, not its group)."""


class RemoteError(EngineError):
    """An endpoint that is down, too slow, or answers what nobody can read."""


class BudgetExhausted(ShoalError):
    """A reservation that the budget, or one above it, cannot cover."""


class LogError(ShoalError):
    """An event log that cannot be written or read (a full disk, a foreign file)."""


class MissingExtra(ShoalError):
    """An optional part that is not installed; the sentence names the extra."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional part: pip install 'shoal[{extra}]'.")


def nearest(word: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the closest known word, or an empty string."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {match[0]!r}?" if match else ""
