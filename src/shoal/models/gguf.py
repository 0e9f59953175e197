"""GGUF files: what they say about a model, and their tensors, dequantised.

Two habits of the format matter here. Shapes are stored innermost first. And files of the "llama"
architecture hold the rows of query and key projections permuted for a RoPE that pairs neighbours
(2i, 2i + 1); we pair halves (i, i + d/2), as all other checkpoints do, so the rows go back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from shoal.core.errors import ModelError
from shoal.models.decoder import DecoderConfig, Family
from shoal.models.rope import Rope, yarn_attention_factor
from shoal.models.weights import Naming, fuse

_FAMILIES: dict[str, Family] = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
NAMING = Naming(
    layer="blk.{index}.{part}",
    parts={
        "attn_norm": "attn_norm.weight",
        "q": "attn_q.weight",
        "k": "attn_k.weight",
        "v": "attn_v.weight",
        "q_bias": "attn_q.bias",
        "k_bias": "attn_k.bias",
        "v_bias": "attn_v.bias",
        "q_norm": "attn_q_norm.weight",
        "k_norm": "attn_k_norm.weight",
        "out": "attn_output.weight",
        "mlp_norm": "ffn_norm.weight",
        "gate": "ffn_gate.weight",
        "up": "ffn_up.weight",
        "down": "ffn_down.weight",
    },
    others={
        "embed": "token_embd.weight",
        "final_norm": "output_norm.weight",
        "head": "output.weight",
    },
)
_ROPE_DIVISORS = "rope_freqs.weight"


class GGUFFile:
    """One file, opened: metadata by key, tensors by name. Nothing is dequantised before asked."""

    def __init__(self, path: Path) -> None:
        """Raises :class:`ModelError` where the file is missing, truncated or not GGUF."""
        self.path = path
        with self._readable():
            reader = gguf.GGUFReader(path)
            self._fields = reader.fields
            self._tensors = {tensor.name: tensor for tensor in reader.tensors}

    def get(self, key: str, default: Any = None) -> Any:
        """A metadata value; ``{arch}`` in the key stands for the architecture's name."""
        if "{arch}" in key:
            key = key.format(arch=self.get("general.architecture"))
        field = self._fields.get(key)
        if field is None:
            return default
        with self._readable():
            return field.contents()

    def need(self, key: str) -> Any:
        """A metadata value that has to be there."""
        value = self.get(key)
        if value is None:
            raise ModelError(f"{self.path} cannot be used: its metadata lacks {key!r}.")
        return value

    def config(self) -> DecoderConfig:
        """The architecture; raises :class:`ModelError` for one that is not supported."""
        arch = self.need("general.architecture")
        if arch not in _FAMILIES:
            raise ModelError(
                f"{self.path} holds a {arch!r} model, but only {', '.join(_FAMILIES)} are known."
            )
        with self._readable():
            return self._config(_FAMILIES[arch])

    def _config(self, family: Family) -> DecoderConfig:
        heads = self.need("{arch}.attention.head_count")
        hidden = self.need("{arch}.embedding_length")
        bos = self.get("tokenizer.ggml.bos_token_id")
        eos = [self.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
        return DecoderConfig(
            family=family,
            layers=self.need("{arch}.block_count"),
            hidden=hidden,
            heads=heads,
            kv_heads=self.get("{arch}.attention.head_count_kv", heads),
            head_dim=self.get("{arch}.attention.key_length", hidden // heads),
            intermediate=self.need("{arch}.feed_forward_length"),
            vocab=len(self.need("tokenizer.ggml.tokens")),
            context=self.need("{arch}.context_length"),
            eps=self.need("{arch}.attention.layer_norm_rms_epsilon"),
            rope=self._rope(),
            qkv_bias="blk.0.attn_q.bias" in self._tensors,
            qk_norm="blk.0.attn_q_norm.weight" in self._tensors,
            tied_head="output.weight" not in self._tensors,
            eos_ids=tuple(dict.fromkeys(token for token in eos if token is not None)),
            bos_id=bos if self.get("tokenizer.ggml.add_bos_token", False) else None,
        )

    def _rope(self) -> Rope:
        theta = self.get("{arch}.rope.freq_base", 10_000.0)
        scaling = self.get("{arch}.rope.scaling.type", "none")
        factor = self.get("{arch}.rope.scaling.factor", 1.0)
        if scaling == "none":
            return Rope(theta)
        if scaling == "linear":
            return Rope(theta, "linear", factor)
        if scaling == "yarn":
            return Rope(
                theta,
                "yarn",
                factor,
                original_context=self.need("{arch}.rope.scaling.original_context_length"),
                attention_factor=yarn_attention_factor(factor)
                * self.get("{arch}.rope.scaling.attn_factor", 1.0),
            )
        raise ModelError(f"{self.path} scales RoPE by {scaling!r}, which is not known.")

    def weights(
        self, config: DecoderConfig, dtype: torch.dtype
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """The decoder's tensors, dequantised and fused, one after the other."""
        present = self._tensors.keys() - {_ROPE_DIVISORS}

        def read(name: str) -> torch.Tensor:
            tensor = self._dequantised(name)
            if config.family == "llama" and name.endswith(("attn_q.weight", "attn_k.weight")):
                return _unpermuted(tensor, config.head_dim)
            return tensor

        yield from fuse(config, NAMING, present, read, dtype)
        if _ROPE_DIVISORS in self._tensors:
            yield "rope_divisors", self._dequantised(_ROPE_DIVISORS)

    def _dequantised(self, name: str) -> torch.Tensor:
        stored = self._tensors[name]
        with self._readable():
            values = gguf.dequantize(stored.data, stored.tensor_type)
        shape = [int(size) for size in reversed(stored.shape)]
        return torch.from_numpy(np.array(values, dtype=np.float32)).view(shape)

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """What the reader stumbles over in a broken file, as one sentence."""
        try:
            yield
        except FileNotFoundError as error:
            raise ModelError(f"There is no model file {self.path}.") from error
        except NotImplementedError as error:
            raise ModelError(f"{self.path} is quantised in a way not known: {error}.") from error
        except (ValueError, LookupError, ArithmeticError, TypeError, OSError) as error:
            raise ModelError(
                f"{self.path} is not a complete GGUF file ({error}): fetch it again."
            ) from error


def _unpermuted(tensor: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows (2i, 2i + 1) of every head to (i, i + d/2)."""
    pairs = tensor.view(-1, head_dim // 2, 2, tensor.shape[-1])
    return pairs.transpose(1, 2).reshape(tensor.shape)
