"""Model folders as the hub lays them out: config.json, safetensors, tokenizer.json.

Weights come from ``model.safetensors`` or from the shards that ``model.safetensors.index.json``
lists. Pickled weights are refused: reading them can run code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer as Backend

from shoal.core.errors import ModelError
from shoal.models.decoder import DecoderConfig
from shoal.models.description import Description
from shoal.models.hf_config import config_from_hf, token_ids
from shoal.models.weights import Naming, fuse

PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})

_DESCRIPTIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
NAMING = Naming(
    layer="model.layers.{index}.{part}",
    parts={
        "attn_norm": "input_layernorm.weight",
        "q": "self_attn.q_proj.weight",
        "k": "self_attn.k_proj.weight",
        "v": "self_attn.v_proj.weight",
        "q_bias": "self_attn.q_proj.bias",
        "k_bias": "self_attn.k_proj.bias",
        "v_bias": "self_attn.v_proj.bias",
        "q_norm": "self_attn.q_norm.weight",
        "k_norm": "self_attn.k_norm.weight",
        "out": "self_attn.o_proj.weight",
        "mlp_norm": "post_attention_layernorm.weight",
        "gate": "mlp.gate_proj.weight",
        "up": "mlp.up_proj.weight",
        "down": "mlp.down_proj.weight",
    },
    others={
        "embed": "model.embed_tokens.weight",
        "final_norm": "model.norm.weight",
        "head": "lm_head.weight",
    },
)


class ModelFolder:
    """One folder; its files are read when they are asked for."""

    def __init__(self, path: Path) -> None:
        """Raises :class:`ModelError` where the folder lacks a part of a safetensors model."""
        self.path = path
        for name in ("config.json", "tokenizer.json"):
            if not (path / name).is_file():
                raise ModelError(f"{path} is no complete model folder: it has no {name}.")
        self.weight_files = self._weight_files()

    @property
    def files(self) -> list[Path]:
        """Everything the model is made of."""
        present = [path for name in _DESCRIPTIONS if (path := self.path / name).is_file()]
        return [*present, *self.weight_files]

    def describe(self) -> Description:
        """Everything but the weights; raises :class:`ModelError` where it cannot be used."""
        text = (self.path / "tokenizer.json").read_text(encoding="utf-8")
        settings = self._json("tokenizer_config.json")
        return Description(
            config=self._config(text, settings),
            tokenizer=text,
            chat_template=self._chat_template(settings),
            bos=_token_text(settings.get("bos_token")),
            eos=_token_text(settings.get("eos_token")),
        )

    def weights(
        self, config: DecoderConfig, dtype: torch.dtype
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """The decoder's tensors, fused, one after the other."""
        with contextlib.ExitStack() as stack:
            where: dict[str, Any] = {}
            for file in self.weight_files:
                opened = stack.enter_context(_opened(file))
                where |= dict.fromkeys(opened.keys(), opened)
            present = {name for name in where if not name.endswith("rotary_emb.inv_freq")}
            if config.tied_head:
                present.discard(NAMING.others["head"])  # some folders store it all the same
            yield from fuse(
                config, NAMING, present, lambda name: where[name].get_tensor(name), dtype
            )

    def _config(self, tokenizer: str, settings: dict[str, Any]) -> DecoderConfig:
        config = config_from_hf(self._json("config.json"))
        also_eos = token_ids(self._json("generation_config.json").get("eos_token_id"))
        backend = _tokenizer(self.path, tokenizer)
        eos = backend.token_to_id(_token_text(settings.get("eos_token")))
        ids = (*config.eos_ids, *also_eos, *([] if eos is None else [eos]))
        begins_with = backend.encode("").ids  # what the tokenizer puts before any text
        bos = begins_with[0] if begins_with else None
        return dataclasses.replace(config, eos_ids=tuple(dict.fromkeys(ids)), bos_id=bos)

    def _chat_template(self, settings: dict[str, Any]) -> str | None:
        path = self.path / "chat_template.jinja"
        if path.is_file():
            return path.read_text(encoding="utf-8")
        template = settings.get("chat_template")
        if isinstance(template, list):  # several, by name
            named = {entry["name"]: entry["template"] for entry in template}
            return named.get("default")
        return template

    def _json(self, name: str) -> dict[str, Any]:
        """A JSON object of the folder; empty where there is no such file."""
        try:
            content = json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise ModelError(f"{self.path / name} cannot be read: {error}.") from error
        if not isinstance(content, dict):
            raise ModelError(f"{self.path / name} is not a JSON object.")
        return content

    def _weight_files(self) -> list[Path]:
        whole = self.path / "model.safetensors"
        if whole.is_file():
            return [whole]
        shards = self._json("model.safetensors.index.json").get("weight_map", {})
        files = [self.path / Path(name).name for name in sorted(set(shards.values()))]
        if missing := [file.name for file in files if not file.is_file()]:
            raise ModelError(f"{self.path} is no complete model folder: it has no {missing[0]}.")
        if files:
            return files
        pickles = sorted(file.name for file in self.path.iterdir() if file.suffix in PICKLES)
        if pickles:
            raise ModelError(
                f"{self.path} has its weights only as a pickle ({pickles[0]}), which can run code "
                "when it is read: convert it to safetensors first."
            )
        raise ModelError(f"{self.path} is no complete model folder: it has no model.safetensors.")


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{file} is not a complete safetensors file ({error}): fetch it again."
        ) from error


def _tokenizer(path: Path, text: str) -> Backend:
    try:
        return Backend.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        raise ModelError(f"{path / 'tokenizer.json'} cannot be used: {error}.") from error


def _token_text(value: str | dict[str, Any] | None) -> str:
    """A token as tokenizer_config.json spells it: nothing, a text, or an object."""
    return value["content"] if isinstance(value, dict) else value or ""
