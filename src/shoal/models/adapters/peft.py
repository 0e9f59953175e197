"""LoRA adapters in PEFT's layout: a folder with adapter_config.json and adapter_model.safetensors.

Any adapter can be written so, as plain LoRA of its rank in use, for PEFT, vLLM and others; LoRA
adapters that others made are read. Weights that only a pickle holds are refused, and so is what is
not a plain LoRA (DoRA, trained biases, whole modules): it would be left out in silence.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from shoal.core.errors import ModelError
from shoal.core.files import atomic_path, write_text
from shoal.models.adapters.adapter import Adapter, Factors
from shoal.models.adapters.hosts import host_of
from shoal.models.adapters.lora import LoRA, LoRAOptions
from shoal.models.adapters.sites import Site, from_hub, to_hub
from shoal.models.decoder import Decoder

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_KEY = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_(A|B)(?:\.default)?\.weight")


class PeftConfig(BaseModel):
    """What is read of an adapter_config.json."""

    model_config = ConfigDict(extra="ignore")

    peft_type: str
    r: int
    lora_alpha: float = 8.0
    use_rslora: bool = False
    use_dora: bool = False
    bias: Literal["none", "all", "lora_only"] | None = "none"
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    fan_in_fan_out: bool = False


def plain(adapter: Adapter) -> dict[str, tuple[Site, Factors]]:
    """All factors by site; those of a fused site of our decoder by its parts."""
    found = {}
    for site in adapter.sites.values():
        A_RI, B_OR, scale = adapter.materialise(site.name)
        if not site.parts:
            found[site.name] = site, Factors(A_RI, B_OR, scale)
        first = 0
        for part, outputs in site.parts:
            rows = B_OR[first : first + outputs]
            kind = part.rpartition(".")[2]
            found[part] = Site(part, kind, site.inputs, outputs), Factors(A_RI, rows, scale)
            first += outputs
    return found


@torch.no_grad()
def export_peft(adapter: Adapter, folder: Path, *, base_name: str = "") -> None:
    """Write an adapter as plain LoRA; ``base_name`` is the model PEFT is told it belongs to.

    Raises :class:`ModelError` where it cannot be written.
    """
    tensors: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for name, (_, (A_RI, B_OR, scale)) in plain(adapter).items():
        path = to_hub(name)
        tensors[f"{_PREFIX}{path}.lora_A.weight"] = A_RI.float().cpu().contiguous().clone()
        tensors[f"{_PREFIX}{path}.lora_B.weight"] = B_OR.float().cpu().contiguous().clone()
        ranks[path], alphas[path] = len(A_RI), scale * len(A_RI)
    rank, alpha = max(ranks.values()), next(iter(alphas.values()))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": adapter.options.dropout,
        "bias": "none",
        "target_modules": sorted({path.rpartition(".")[2] for path in ranks}),
        "rank_pattern": {path: found for path, found in ranks.items() if found != rank},
        "alpha_pattern": {p: a for p, a in alphas.items() if not math.isclose(a, alpha)},
        "inference_mode": True,
    }
    try:
        with atomic_path(folder / WEIGHTS) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})
        write_text(folder / CONFIG, json.dumps(config, indent=2))
    except (OSError, SafetensorError) as error:
        raise ModelError(f"Cannot write the adapter {folder}: {error}.") from error


@torch.no_grad()
def load_peft(folder: Path, model: Decoder | nn.Module) -> Adapter:
    """A LoRA adapter that PEFT or others wrote, not attached yet.

    Its base is not named by content, so only sizes can be checked. Raises :class:`ModelError` for a
    folder that cannot be read, holds more than a plain LoRA, or does not fit the model.
    """
    config, tensors = _read(folder)
    factors = _factors(folder, tensors)
    host = host_of(model)
    sites = []
    for name in factors:
        if name not in host.sites:
            known = ", ".join(sorted({site.kind for site in host.sites.values()}))
            raise ModelError(f"{folder} adapts {name}, which the model does not have ({known}).")
        sites.append(host.sites[name])
    ranks = {name: len(halves["A"]) for name, halves in factors.items()}
    options = LoRAOptions(
        rank=config.r,
        alpha=config.lora_alpha,
        rooted=config.use_rslora,
        targets=tuple(sorted({site.kind for site in sites})),
        ranks={name: rank for name, rank in ranks.items() if rank != config.r},
        alphas=_by_site(config.alpha_pattern or {}, ranks),
    )
    adapter = LoRA(sites, options, base="")
    state = {f"{name}.{half}": t.float() for name, by in factors.items() for half, t in by.items()}
    try:
        adapter.load_state(state)
    except ModelError as error:
        raise ModelError(f"{folder} does not fit the model: it is of another base.") from error
    return adapter.to(host.weight(sites[0].name).device)


def _read(folder: Path) -> tuple[PeftConfig, Mapping[str, torch.Tensor]]:
    try:
        config = PeftConfig.model_validate_json((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise ModelError(f"{folder / CONFIG} cannot be read: {_first(error)}.") from error
    extras = [
        name
        for name, there in (
            (f"peft_type {config.peft_type}", config.peft_type != "LORA"),
            ("use_dora", config.use_dora),
            ("bias", config.bias not in (None, "none")),
            ("fan_in_fan_out", config.fan_in_fan_out),
        )
        if there
    ]
    if extras:
        raise ModelError(
            f"{folder} is no plain LoRA ({', '.join(extras)}): merge it, and load that."
        )
    if not (folder / WEIGHTS).is_file() and (folder / "adapter_model.bin").is_file():
        raise ModelError(
            f"{folder} has its weights only as a pickle, which can run code when it is read: "
            "convert it to safetensors first."
        )
    try:
        return config, load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder / WEIGHTS} cannot be read: {_first(error)}.") from error


def _factors(
    folder: Path, tensors: Mapping[str, torch.Tensor]
) -> dict[str, dict[str, torch.Tensor]]:
    """A and B by site; what is neither is refused."""
    factors: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        found = _KEY.fullmatch(key)
        if found is None or tensor.dim() != 2:
            raise ModelError(f"{folder} holds {key!r}, which is no part of a plain LoRA.")
        factors.setdefault(from_hub(found[1]), {})[found[2]] = tensor
    for name, halves in factors.items():
        if halves.keys() != {"A", "B"}:
            raise ModelError(f"{folder} has only one half of the update of {name}.")
    return factors


def _by_site(pattern: Mapping[str, float], names: Mapping[str, int]) -> dict[str, float]:
    """Values for the sites whose paths end as the pattern's keys say."""
    found = {}
    for name in names:
        for key, value in pattern.items():
            if re.fullmatch(rf"(.*\.)?{key}", to_hub(name)):
                found[name] = value
                break
    return found


def _first(error: Exception) -> Any:
    if isinstance(error, ValidationError):
        one = error.errors()[0]
        return f"{'.'.join(map(str, one['loc']))}: {one['msg']}"
    return str(error).rstrip(".")
