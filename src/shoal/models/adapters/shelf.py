"""A folder of adapters, by name: files of ours and folders in PEFT's layout.

``NAME.safetensors`` is one that :func:`shoal.models.adapters.files.save` wrote, ``NAME/`` one with
an adapter_config.json in it. Anything else in the folder is left alone.
"""

from __future__ import annotations

import re
from pathlib import Path

from shoal.core.errors import InputError, ModelError
from shoal.models.adapters.adapter import Adapter
from shoal.models.adapters.files import load
from shoal.models.adapters.peft import CONFIG, load_peft
from shoal.models.decoder import Decoder

_NAME = re.compile(r"[\w-][\w.-]*")


def names_in(folder: Path) -> dict[str, Path]:
    """The adapters of a folder by name.

    Raises :class:`InputError` for a folder that is not there, holds none, or holds two of a name.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder of adapters {folder}.")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and (path / CONFIG).is_file():
            name = path.name
        elif path.suffix == ".safetensors" and not path.name.startswith("."):
            name = path.stem
        else:
            continue
        if not _NAME.fullmatch(name):
            raise InputError(
                f"An adapter in {folder} is called {name!r}: name it by letters, digits, '.', '_' "
                "and '-'."
            )
        if name in found:
            raise InputError(f"{folder} holds two adapters named {name!r}: rename one.")
        found[name] = path
    if not found:
        raise InputError(
            f"{folder} holds no adapters: put NAME.safetensors of shoal or a PEFT folder there."
        )
    return found


def open_adapter(path: Path, model: Decoder) -> Adapter:
    """An adapter from its file or folder; raises :class:`ModelError` as :func:`load` does."""
    if path.is_dir():
        return load_peft(path, model)
    if path.suffix != ".safetensors":
        raise ModelError(f"{path} is no adapter: give a .safetensors file or a PEFT folder.")
    return load(path, model)
