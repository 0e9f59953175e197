"""What a request has to be before it is queued: token ids, pieces and grammars that fit."""

from __future__ import annotations

from collections.abc import Sequence

from llguidance import LLTokenizer

from shoal.core.errors import ContextOverflow, EngineError
from shoal.core.protocols import Grammar, Prompt, Segment
from shoal.core.records import Message, ToolSpec
from shoal.engine.generation import Piece
from shoal.engine.grammar import Constraint, vocabulary
from shoal.models.loading import Model


class Intake:
    """Translates and checks for one model, whose cache has so many slots."""

    def __init__(self, model: Model, *, slots: int, sharing: bool) -> None:
        self.model = model
        self._slots = slots
        self._sharing = sharing
        self._vocabulary: LLTokenizer | None = None

    def encode(
        self, prompt: Prompt, *, tools: tuple[ToolSpec, ...] = (), salt: str = ""
    ) -> list[int]:
        """Token ids of a prompt; raises :class:`EngineError` for tools that a template ignores."""
        tokenizer, chat = self.model.tokenizer, self.model.chat
        if prompt and isinstance(prompt[0], Message):
            messages = [part for part in prompt if isinstance(part, Message)]
            if tools and not chat.knows_tools:
                raise EngineError(
                    f"The chat template of {self.model.name} ignores tools: describe them in a "
                    "message, or take a model that was trained to call tools."
                )
            return chat.encode(messages, tokenizer, tools=tools, salt=salt)
        tokens: list[int] = []
        for part in prompt:
            assert isinstance(part, Segment), "a prompt is all messages or all segments"
            if not tokens and part.tokens is None and tokenizer.bos_id is not None:
                tokens.append(tokenizer.bos_id)
            known = part.tokens
            tokens += tokenizer.encode(part.text, salt=salt) if known is None else known
        return tokens

    def check_tokens(self, tokens: Sequence[int]) -> None:
        """Raise :class:`EngineError` for ids that the model does not know."""
        if any(not 0 <= token < self.model.config.vocab for token in tokens):
            raise EngineError(f"A token id lies outside the vocabulary of {self.model.name}.")

    def check_pieces(self, pieces: Sequence[Piece]) -> None:
        """Raise :class:`EngineError` for pieces that cannot be put together here."""
        moved = [piece.segment for piece in pieces if piece.segment is not None]
        if moved and not self._sharing:
            raise EngineError("An engine that shares nothing cannot move keys and values.")
        if any(segment.fingerprint != self.model.fingerprint for segment in moved):
            raise EngineError(
                f"A piece was computed by another model than {self.model.name}: compute it again."
            )
        if pieces[-1].segment is not None or not pieces[-1].tokens:
            raise EngineError("The last piece of a prompt must be computed: give it a token.")

    def room(self, prompt: int) -> int:
        """Tokens that can follow a prompt of this length; raises where none can."""
        context, slots = self.model.config.context, self._slots
        if prompt >= context:
            raise ContextOverflow(
                f"The prompt has {prompt} tokens, but the context of {self.model.name} holds "
                f"{context}: shorten it or split it into chunks."
            )
        if prompt >= slots:
            raise EngineError(
                f"The prompt has {prompt} tokens, but the KV cache holds {slots}: "
                "give the engine more memory (--kv-memory)."
            )
        return min(context, slots) - prompt

    def constraint(self, grammar: Grammar | None) -> Constraint | None:
        """What a grammar allows, token by token."""
        if grammar is None:
            return None
        if self._vocabulary is None:
            tokenizer = self.model.tokenizer
            self._vocabulary = vocabulary(
                tokenizer.backend, size=self.model.config.vocab, eos=min(tokenizer.eos_ids)
            )
        return Constraint(self._vocabulary, grammar)
