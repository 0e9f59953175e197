"""What there is to say about a model beside its weights."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.models.decoder import DecoderConfig


@dataclass(frozen=True, slots=True)
class Description:
    """A model without its weights.

    tokenizer      the text of a tokenizer.json
    bos, eos       texts of the tokens that templates call so; empty where there is none
    chat_template  Jinja, or None where the model was not trained to chat
    """

    config: DecoderConfig
    tokenizer: str
    bos: str
    eos: str
    chat_template: str | None = None
