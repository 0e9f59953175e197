"""A six-layer Llama over bytes, trained for two seconds, as a folder and in memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from shoal.models.decoder import Decoder, DecoderConfig
from shoal.models.export import write_folder
from shoal.models.loading import Model, load
from shoal.models.rope import Rope
from shoal.models.tokenizer import Tokenizer
from shoal.training.byte_llama import ByteLlama, rows

TEXT = (
    "the heron waits by the water and the otter swims under the ice. "
    "a net is only as good as its knots, and a fleet only as fast as its last boat. "
    "when the wind turns north the boats come home before the tide. "
)
LAYERS, ROW = 6, 48


@pytest.fixture(scope="session")
def small_folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose answers are about boats."""
    folder = tmp_path_factory.mktemp("depth") / "small"
    config = DecoderConfig(
        family="llama", layers=LAYERS, hidden=48, heads=4, kv_heads=2, head_dim=12,
        intermediate=96, vocab=258, context=512, eps=1e-5, rope=Rope(10_000.0), tied_head=True,
        eos_ids=(257,),
    )  # fmt: skip
    model = ByteLlama(config, seed=1)
    ids = _tokens(tiny_model, TEXT * 40)
    adam = torch.optim.Adam(model.parameters.values(), lr=4e-3)
    for step in range(70):
        adam.zero_grad()
        model.loss(rows(ids, batch=8, length=ROW, seed=step)).backward()
        adam.step()
    weights = {name: tensor.detach() for name, tensor in model.parameters.items()}
    tokenizer = (tiny_model / "tokenizer.json").read_text(encoding="utf-8")
    write_folder(folder, config, weights, tokenizer=tokenizer, chat_template=None)
    shutil.copy(tiny_model / "tokenizer_config.json", folder)
    return folder


def _tokens(tiny_model: Path, text: str) -> torch.Tensor:
    from tokenizers import Tokenizer as Backend

    told = (tiny_model / "tokenizer.json").read_text(encoding="utf-8")
    return torch.tensor(Tokenizer(Backend.from_str(told)).encode(text, special=False))


@pytest.fixture(scope="session")
def small(small_folder: Path) -> Model:
    """The same in memory, in fp32."""
    return load(str(small_folder), dtype="fp32")


@pytest.fixture(scope="session")
def decoder(small: Model) -> Decoder:
    return small.decoder


@pytest.fixture(scope="session", name="ids_NS")
def _ids(small: Model) -> torch.Tensor:
    """Rows of the text that it was trained on: [24, 48]."""
    ids = torch.tensor(small.tokenizer.encode(TEXT * 8, special=False))
    return ids[: 24 * ROW].view(24, ROW)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "boats.txt"
    path.write_text(TEXT * 12, encoding="utf-8")
    return path


def settings(folder: Path) -> dict[str, object]:
    """The config.json of a folder."""
    found: dict[str, object] = json.loads((folder / "config.json").read_text("utf-8"))
    return found
