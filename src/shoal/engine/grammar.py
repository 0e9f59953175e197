"""Constrained decoding: which tokens may come next under a JSON schema, regex, grammar or choice.

The automata are llguidance's; this file only speaks its language.
"""

from __future__ import annotations

import json

import torch
from llguidance import LLMatcher, LLTokenizer, grammar_from
from tokenizers import Tokenizer

from shoal.core.errors import ConfigError, EngineError
from shoal.core.protocols import Grammar


def vocabulary(backend: Tokenizer, *, size: int, eos: int) -> LLTokenizer:
    """The tokenizer as grammars see it (about 0.3 s to build: once a model)."""
    return LLTokenizer(backend.to_str(), n_vocab=size, eos_token=eos)


class Constraint:
    """The state of one grammar along one answer."""

    def __init__(self, vocabulary: LLTokenizer, grammar: Grammar) -> None:
        """Raises :class:`ConfigError` where the grammar is empty or cannot be compiled."""
        if grammar.kind == "choice" and not grammar.value:
            raise ConfigError("A choice needs at least one option.")
        text = grammar.value if isinstance(grammar.value, str) else json.dumps(grammar.value)
        try:
            self._matcher = LLMatcher(vocabulary, grammar_from(grammar.kind, text))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"The {grammar.kind} grammar is not valid: {error}.") from error
        self._check(ConfigError, f"The {grammar.kind} grammar is not valid")

    def allowed(self) -> torch.Tensor:
        """Mask [V] of the tokens that may come next."""
        mask = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)
        self._check(EngineError, "The grammar got stuck")
        return mask != 0

    def accept(self, token: int) -> None:
        """Move on by a token that ``allowed`` allowed."""
        self._matcher.consume_token(token)
        self._check(EngineError, "The grammar refused its own token")

    @property
    def finished(self) -> bool:
        """Whether nothing but the end can follow."""
        return bool(self._matcher.is_stopped())

    def _check(self, kind: type[ConfigError | EngineError], what: str) -> None:
        if self._matcher.is_error():
            reason = str(self._matcher.get_error()).strip().splitlines()[0]
            raise kind(f"{what}: {reason}.")
