"""Policies: a decoder whose weights learn, and the tokens it reads and writes.

A word-level transformer from scratch and a model of the hub are the same thing here: a decoder, a
tokenizer, and the tensors that the optimiser moves. With an adapter (:func:`adapted`) these are the
adapter's alone, and the decoder looks through it at weights that stay.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from shoal.core.errors import ConfigError, InputError
from shoal.core.records import Message
from shoal.models.adapters.adapter import Adapter
from shoal.models.adapters.files import card_of
from shoal.models.adapters.registry import new
from shoal.models.chat import ChatTemplate
from shoal.models.decoder import Decoder, DecoderConfig
from shoal.models.loading import load
from shoal.models.rope import Rope
from shoal.models.tokenizer import Tokenizer
from shoal.models.weights import layout

END, UNKNOWN = "<end>", "<unknown>"
_REMEMBERED = 65_536
_SPACE = "\u0120"  # how byte-level vocabularies spell a space


@dataclass(slots=True, eq=False)
class Policy:
    """Weights that learn.

    trained   what the optimiser moves, by name, in an order that is the same in every process
    version   how often the weights have been moved
    chat      how messages become text; None where their contents are simply put in a row
    adapter   through which the decoder looks at its weights; None where all weights learn
    """

    name: str
    decoder: Decoder
    tokenizer: Tokenizer
    trained: dict[str, torch.Tensor]
    chat: ChatTemplate | None = None
    version: int = 0
    adapter: Adapter | None = None
    _known: dict[tuple[Message, ...], tuple[int, ...]] = field(default_factory=dict)

    @property
    def config(self) -> DecoderConfig:
        """The architecture."""
        return self.decoder.config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.decoder.weights["embed"].device

    @property
    def end(self) -> int:
        """The token that ends an answer."""
        return self.config.eos_ids[0]

    def encode(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The tokens of a prompt; the same prompt is encoded once."""
        key = tuple(messages)
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            known = self._known[key] = tuple(self._encode(key))
        return known

    def _encode(self, messages: tuple[Message, ...]) -> list[int]:
        if self.chat is not None:
            return self.chat.encode(messages, self.tokenizer)
        text = " ".join(message.content for message in messages)
        return self.tokenizer.encode(" ".join(text.split()))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of an answer, without marks such as its end."""
        return self.tokenizer.decode(tokens, special=False).strip()

    @property
    def own(self) -> dict[str, torch.Tensor]:
        """The tensors that are this policy's alone: an adapter's, or all weights."""
        return dict(self.decoder.weights if self.adapter is None else self.adapter.tensors)

    def frozen(self) -> Policy:
        """A copy that does not learn, for a reference policy; an adapter's base is not copied."""
        adapter = None if self.adapter is None else self.adapter.copy()
        if adapter is None:
            weights = {name: old.detach().clone() for name, old in self.decoder.weights.items()}
            decoder = Decoder(self.config, weights)
        else:
            decoder = adapter.over(self.decoder)
        return Policy(
            f"{self.name} (frozen)",
            decoder,
            self.tokenizer,
            {},
            self.chat,
            self.version,
            adapter,
        )


def word_policy(
    words: Sequence[str],
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    context: int = 512,
    seed: int = 0,
) -> Policy:
    """A small Llama from scratch that reads and writes whole words.

    Raises :class:`ConfigError` where ``hidden`` is not a multiple of twice the heads.
    """
    if hidden % (2 * heads):
        raise ConfigError(f"A hidden size of {hidden} cannot be cut into {heads} heads.")
    tokenizer = word_tokenizer(words)
    config = DecoderConfig(
        family="llama",
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        intermediate=hidden * 3,
        vocab=tokenizer.backend.get_vocab_size(),
        context=context,
        eps=1e-5,
        rope=Rope(theta=1_000.0),
        tied_head=True,
        eos_ids=(0,),
    )
    weights = random_weights(config, seed=seed)
    return Policy("words", Decoder(config, weights), tokenizer, weights)


def random_weights(
    config: DecoderConfig, *, seed: int, scale: float = 0.05
) -> dict[str, torch.Tensor]:
    """Weights to begin with: normal, smaller where they write into the residual stream."""
    random = torch.Generator().manual_seed(seed)
    weights = {}
    for name, tensor in sorted(layout(config).items()):
        if len(tensor.shape) == 1:
            weight = (
                torch.zeros(tensor.shape) if name.endswith("bias") else torch.ones(tensor.shape)
            )
        else:
            shrink = math.sqrt(2 * config.layers) if name.endswith(("out", "down")) else 1.0
            weight = torch.randn(tensor.shape, generator=random) * (scale / shrink)
        weights[name] = weight.requires_grad_()
    return weights


def hub_policy(name: str, *, device: str = "cpu", learns: bool = True) -> Policy:
    """A model of the catalog, a folder or the hub in fp32, all of whose weights learn.

    Without ``learns`` none do, and weights that are mapped from a file are not copied.

    Raises :class:`ModelError` where it cannot be found or used.
    """
    model = load(name, dtype="fp32")
    weights = {
        key: tensor.to(device, copy=learns).requires_grad_(learns and key != "rope_divisors")
        for key, tensor in model.decoder.weights.items()
    }
    trained = {key: weights[key] for key in sorted(weights) if weights[key].requires_grad}
    chat = model.chat if model.chat.template else None
    return Policy(model.name, Decoder(model.config, weights), model.tokenizer, trained, chat)


def adapted(policy: Policy, kind: str, options: Mapping[str, Any]) -> Policy:
    """A policy over the same weights, which stay as they are: a new adapter learns.

    Raises :class:`ConfigError` or :class:`ModelError` for options that cannot be used. Dropout is
    refused: the log-probabilities of what was drawn would not be those that are learned from.
    """
    if options.get("dropout"):
        raise ConfigError(
            f"policy.adapter_options.dropout is {options['dropout']}, but what is sampled must be "
            "what is learned from: leave it out."
        )
    for tensor in policy.decoder.weights.values():
        tensor.requires_grad_(False)
    adapter = new(kind, policy.decoder, **options)
    return Policy(
        policy.name,
        adapter.over(policy.decoder),
        policy.tokenizer,
        adapter.trainable(),
        policy.chat,
        policy.version,
        adapter,
    )


def word_tokenizer(words: Sequence[str]) -> Tokenizer:
    """One token a word or sign, with a space before it or not; the unknown is one token."""
    alphabet = pre_tokenizers.ByteLevel(add_prefix_space=True)
    spelled = {piece for word in words for piece, _ in alphabet.pre_tokenize_str(word)}
    bare = {piece.lstrip(_SPACE) for piece in spelled}
    pieces = sorted(spelled | {sign for sign in bare if sign and not any(map(str.isalnum, sign))})
    vocabulary = {END: 0, UNKNOWN: 1, **{piece: 2 + place for place, piece in enumerate(pieces)}}
    backend = Backend(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = alphabet
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END, UNKNOWN])
    return Tokenizer(backend, eos_ids=(0,))


def set_weights(policy: Policy, weights: Mapping[str, torch.Tensor]) -> None:
    """Copy weights into the tensors that are trained, in place."""
    assert weights.keys() == policy.trained.keys(), "the same policy has the same weights"
    with torch.no_grad():
        for name, tensor in policy.trained.items():
            tensor.copy_(weights[name])


def read_weights(policy: Policy, path: Path) -> None:
    """Weights out of a file, such as a checkpoint's, in place.

    Raises :class:`InputError` for a file that cannot be read, and for weights of another policy.
    """
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"The weights {path} cannot be read: {error}.") from error
    shapes = {name: tensor.shape for name, tensor in policy.trained.items()}
    if {name: tensor.shape for name, tensor in found.items()} != shapes:
        raise InputError(
            f"The weights {path} are of another policy than {policy.name} as the run file "
            "describes it: give the file's policy the same sizes and vocabulary."
        )
    set_weights(policy, found)


def fingerprint(policy: Policy) -> str:
    """What a checkpoint must agree with: architecture and vocabulary."""
    vocabulary = json.loads(policy.tokenizer.backend.to_str())["model"]["vocab"]
    names = hashlib.blake2b(json.dumps(vocabulary).encode(), digest_size=8).hexdigest()
    adapter = "" if policy.adapter is None else f"/{card_of(policy.adapter).model_dump_json()}"
    return f"{policy.config}/{len(policy.trained)}/{names}{adapter}"
