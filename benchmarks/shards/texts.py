"""Two domains that everybody has: the documents of the examples, and Python's own library."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch

DOCUMENTS = Path(__file__).parents[2] / "examples" / "documents"
PROSE = ("jargon",)
TRAIN = (
    "argparse", "ast", "calendar", "configparser", "copy", "csv", "dataclasses", "difflib",
    "enum", "fractions", "heapq", "inspect", "pdb", "pickle", "random", "shutil",
)  # fmt: skip
VALIDATION = ("tarfile", "textwrap")
TEST = ("smtplib", "statistics", "zipfile")


def prose() -> torch.Tensor:
    """Bytes of the documents that the base is trained on."""
    files = [path for name in PROSE for path in sorted((DOCUMENTS / name).glob("*.md"))]
    return _bytes(files)


def code(modules: tuple[str, ...]) -> torch.Tensor:
    """Bytes of modules of the standard library."""
    library = Path(sysconfig.get_path("stdlib"))
    return _bytes([library / f"{name}.py" for name in modules])


def _bytes(files: list[Path]) -> torch.Tensor:
    content = b"\n".join(path.read_bytes() for path in files)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
