"""A plan as an ordinary checkpoint: every step with weights of its own, low-rank updates merged.

Checkpoint formats know no shared blocks, so what was folded takes its bytes again; what was removed
stays removed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from shoal.core.errors import ConfigError
from shoal.models.adapters import files as adapter_files
from shoal.models.decoder import Decoder
from shoal.models.depth.footprint import footprint
from shoal.models.depth.store import ADAPTER, load_plan
from shoal.models.export import write_folder


@dataclass(frozen=True, slots=True)
class Expanded:
    """Bytes of the weights that were written, and of those that the plan executes."""

    written_bytes: int
    plan_bytes: int

    @property
    def warning(self) -> str | None:
        """One sentence where the file takes more than the plan does."""
        if self.written_bytes <= self.plan_bytes:
            return None
        return (
            f"The checkpoint takes {self.written_bytes / 1e6:.1f} MB and the plan "
            f"{self.plan_bytes / 1e6:.1f} MB: the format has no shared blocks, so each folded "
            "block was written in full."
        )


@torch.no_grad()
def expand(folder: Path, out: Path, *, dtype: str = "bf16") -> Expanded:
    """Write the model of a plan's folder as a folder for transformers.

    Raises :class:`ConfigError` where ``out`` is in use, and :class:`ModelError` for a plan that
    cannot be loaded or an architecture that cannot be written.
    """
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is in use: give a folder that is new or empty.")
    model = load_plan(folder, dtype=dtype)
    planned = model.decoder.adapted(None)
    own = {name: tensor.clone() for name, tensor in planned.weights.items()}
    if (folder / ADAPTER).is_file():
        decoder = Decoder(planned.config, own)
        adapter = adapter_files.load(folder / ADAPTER, decoder)
        adapter.attach(decoder)
        adapter.merge()
    written = write_folder(
        out,
        planned.config,
        own,
        tokenizer=model.tokenizer.backend.to_str(),
        chat_template=model.chat.template,
    )
    return Expanded(written, footprint(planned).total)
