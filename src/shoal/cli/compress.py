"""``shoal compress``: fewer blocks, shared blocks, and a cure; the base stays as it is."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import cast, get_args

import typer

from shoal.cli.console import console, errors, print_json
from shoal.core.errors import ConfigError


def compress(
    model: str = typer.Argument(help="Name, GGUF file, folder or hub name."),
    remove: float = typer.Option(0.1, help="Share of blocks not to execute any more."),
    fold: float = typer.Option(0.0, help="Share of blocks to execute with a neighbour's weights."),
    cure: int = typer.Option(0, min=0, help="Tokens to learn from afterwards; 0 leaves it out."),
    rank: str = typer.Option("loss", help="Choose what is removed by measured loss or by gates."),
    text: list[Path] = typer.Option(
        [], help="Files or folders to fit to; Python's language reference where none is given."
    ),
    out: Path = typer.Option(Path("compressed"), "--out", "-o", help="Folder of the result."),
    row: int = typer.Option(512, min=16, help="Tokens of a row of text."),
    dtype: str = typer.Option("bf16", help="bf16 or fp32 (slower) to fit in."),
    seed: int = typer.Option(0, help="Every random draw follows from it."),
    json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
) -> None:
    """Make a model of fewer blocks that runs on the weights of this one; again to go on."""
    from shoal.cli.plan import print_plan
    from shoal.cli.progress import loading
    from shoal.models.catalog import find
    from shoal.models.depth.compress import CompressOptions, Rank
    from shoal.models.depth.compress import compress as run
    from shoal.models.depth.plan import check_shares
    from shoal.models.depth.text import corpus
    from shoal.models.loading import load

    if rank not in get_args(Rank):
        raise ConfigError(f"There is no ranking {rank!r}: give {' or '.join(get_args(Rank))}.")
    options = CompressOptions(
        remove=remove, fold=fold, cure_tokens=cure, rank=cast(Rank, rank), seed=seed
    )
    with loading(errors) as progress:
        loaded = load(model, dtype=dtype, progress=progress)
        check_shares(loaded.config.layers, remove, fold)
        words = corpus(loaded.tokenizer, text, length=min(row, loaded.config.context))
        source = find(model)
        base = str(source.path.resolve()) if Path(model).expanduser().exists() else model
        file = run(loaded, words, options, out, base=base, on_work=progress)
    if json:
        print_json({"folder": str(out), **asdict(file)})
        return
    print_plan(file)
    console.print(f"Run it: shoal chat --model {out}", highlight=False, markup=False)
