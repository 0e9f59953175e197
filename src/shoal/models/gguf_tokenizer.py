"""The tokenizer inside a GGUF file, rebuilt as a byte-level BPE of the ``tokenizers`` library.

A GGUF file stores tokens and merges, but only the *name* of the rule that splits text before
merging. The rules below are those of the models' own tokenizer files.
"""

from __future__ import annotations

from collections.abc import Callable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from shoal.core.errors import ModelError
from shoal.models.gguf import GGUFFile

_CONTROL, _USER_DEFINED = 3, 4  # token types of the format

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _smollm() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )


PRE_TOKENIZERS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "smollm": _smollm,
    "qwen2": lambda: _split(_QWEN2),
    "llama-bpe": lambda: _split(_LLAMA3),
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
}


def tokenizer_of(file: GGUFFile) -> Tokenizer:
    """Raises :class:`ModelError` for tokenizers that are no byte-level BPE with a known rule."""
    kind = file.need("tokenizer.ggml.model")
    rule = file.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2" or rule not in PRE_TOKENIZERS:
        raise ModelError(
            f"{file.path} has a tokenizer of kind {kind}/{rule}, which is not known: "
            "use the model's folder with its tokenizer.json."
        )
    tokens: list[str] = file.need("tokenizer.ggml.tokens")
    types: list[int] = file.get("tokenizer.ggml.token_type", [1] * len(tokens))
    merges = [tuple(merge.split(" ", 1)) for merge in file.need("tokenizer.ggml.merges")]
    try:
        vocab = {token: index for index, token in enumerate(tokens)}
        tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=rule == "llama-bpe"))
        added = [
            AddedToken(token, special=type_ == _CONTROL, normalized=False)
            for token, type_ in zip(tokens, types, strict=True)
            if type_ in (_CONTROL, _USER_DEFINED)
        ]
    except Exception as error:  # the library raises nothing narrower
        raise ModelError(f"{file.path} has a tokenizer that is broken: {error}.") from error
    if rule == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[rule]()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(added)
    return tokenizer
