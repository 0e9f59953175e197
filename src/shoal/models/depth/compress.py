"""All three parts in a row: gates, removal, folding, cure; what is done is kept if it is stopped.

While it works, ``.unfinished/`` in the output folder holds the gates, the plan so far and the last
checkpoint of the cure; the same call again goes on from there. The folder becomes a model when
``plan.json`` is written, which comes last.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from shoal.core.errors import ConfigError, InputError, ModelError
from shoal.core.files import write_text
from shoal.core.records import from_json, to_json
from shoal.models.decoder import Decoder
from shoal.models.depth.arrange import arrange
from shoal.models.depth.cure import Cure, CureOptions, Progress, hash_of
from shoal.models.depth.fold import fold
from shoal.models.depth.footprint import footprint
from shoal.models.depth.gates import GateOptions, learn_gates
from shoal.models.depth.plan import DepthPlan, check_shares
from shoal.models.depth.remove import remove_measured
from shoal.models.depth.stack import plain, row_losses
from shoal.models.depth.store import (
    ADAPTER,
    NORMS,
    PLAN,
    Account,
    PlanFile,
    Stage,
    content_of,
    save_plan,
)
from shoal.models.depth.text import Corpus
from shoal.models.loading import Model

Rank = Literal["gates", "loss"]
_WORK = ".unfinished"
OnWork = Callable[[str, int, int], None]
"""Called with what is done, how much of it, and of how much."""


@dataclass(frozen=True, slots=True)
class CompressOptions:
    """What to make of a model.

    remove, fold  shares of all blocks, in [0, 1): not executed any more; executed with the weights
                  of a neighbour
    cure_tokens   tokens of the cure; 0 leaves it out
    rank          what decides which blocks are removed: losses that are measured, which lost least
                  in the claim, or gates, as published
    trial_rows    rows on which blocks and pairs are tried and perplexity is measured, at most
    """

    remove: float = 0.1
    fold: float = 0.0
    cure_tokens: int = 0
    rank: Rank = "loss"
    gates: GateOptions = field(default_factory=GateOptions)
    trial_rows: int = 8
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The first two parts as they are kept: enough to go on from, and to report."""

    settings: str
    gates: tuple[float, ...] = ()
    removed: tuple[int, ...] = ()
    plan: DepthPlan | None = None
    merges: tuple[tuple[int, int, float], ...] = ()
    notes: tuple[str, ...] = field(default=())


def compress(
    model: Model, corpus: Corpus, options: CompressOptions, folder: Path, *, base: str = "",
    on_work: OnWork | None = None,
) -> PlanFile:  # fmt: skip
    """Make a plan of a model, and write it to a folder that loads like one.

    ``base`` is the name by which the model will be found again, its own by default. Raises
    :class:`ConfigError` for shares that leave too little or a folder that is in use,
    :class:`InputError` for too little text, :class:`ModelError` for packed weights.
    """
    tell = on_work or (lambda what, done, total: None)
    decoder = _floats(model)
    gone, shared = check_shares(decoder.config.layers, options.remove, options.fold)
    if not len(corpus.held_out_NS):
        raise InputError("There is no held-out text to measure on.")
    work = _work(folder)
    settings = f"{content_of(model)} {options} {hash_of(corpus.fitted_NS)}"
    chosen = _read(work / "chosen.json", settings)
    measured_NS = corpus.held_out_NS[: options.trial_rows]

    def stage(name: str, decoder: Decoder, added: tuple[torch.Tensor, ...] = ()) -> Stage:
        tell("Measuring", 0, 0)
        loss = float(row_losses(plain(decoder), measured_NS).mean())
        held = footprint(decoder, added)
        return Stage(name, math.exp(min(loss, 700)), held.blocks, held.added)

    if not chosen.plan:
        chosen = _choose(decoder, corpus, options, gone, shared, settings, tell)
        write_text(work / "chosen.json", to_json(chosen))
    plan = chosen.plan
    assert plan is not None
    stages = [stage("original", decoder)]
    if gone:
        kept = DepthPlan.whole(decoder.config.layers).without(chosen.removed)
        stages.append(stage("removed", arrange(decoder, kept)))
    if shared:
        stages.append(stage("folded", arrange(decoder, plan)))
    notes = list(chosen.notes)
    cure = None
    if options.cure_tokens and plan != DepthPlan.whole(plan.layers):
        cure = Cure(
            decoder,
            plan,
            corpus.fitted_NS,
            CureOptions(tokens=options.cure_tokens, seed=options.seed),
        )
        checkpoint = work / "cure.safetensors"
        if checkpoint.is_file():
            cure.restore(checkpoint)
        cure.run(checkpoint=checkpoint, on_step=lambda p: _tell_cure(tell, p))
        if cure.stopped:
            notes.append(f"The cure stopped early: {cure.stopped}.")
        added = (*cure.norms.values(), *cure.adapter.state().values())
        stages.append(stage("cured", cure.decoder, added))
    else:
        notes.append(
            f"The plan was not cured: its perplexity is {stages[-1].perplexity:.4g}, that of the "
            f"original {stages[0].perplexity:.4g}."
        )
    file = PlanFile(
        version=1,
        base=base or model.name,
        content=content_of(model),
        plan=plan,
        account=Account(
            text=f"{corpus.source}; perplexity on {measured_NS.numel()} tokens held out",
            stages=tuple(stages),
            gates=chosen.gates,
            merges=chosen.merges,
            cure_tokens=options.cure_tokens if cure else 0,
            notes=tuple(notes),
        ),
    )
    save_plan(
        folder, file, norms=cure.norms if cure else None, adapter=cure.adapter if cure else None
    )
    shutil.rmtree(work)
    return file


def _floats(model: Model) -> Decoder:
    if model.decoder.kernels == "packed":
        raise ModelError(
            f"{model.name} is loaded with packed weights, which cannot be fitted to: load it as "
            "floats, with dtype bf16 or fp32."
        )
    if model.base is not None:
        raise ModelError(
            f"{model.name} is a plan already: compress {model.base.name}, or export the plan and "
            "compress what that gives."
        )
    return plain(model.decoder)


def _choose(
    decoder: Decoder,
    corpus: Corpus,
    options: CompressOptions,
    gone: int,
    shared: int,
    settings: str,
    tell: OnWork,
) -> _Chosen:
    """Learn gates, remove, fold."""
    layers = decoder.config.layers
    plan = DepthPlan.whole(layers)
    gates: tuple[float, ...] = ()
    notes: list[str] = []
    removed: list[int] = []
    rows_NS = corpus.calibration(options.trial_rows)
    if gone == layers - 2:
        removed = list(range(1, layers - 1))  # there is nothing to choose
    elif gone and options.rank == "loss":
        removed = remove_measured(
            decoder,
            gone,
            rows_NS,
            protect=(0, layers - 1),
            on_trial=lambda done, total: tell("Leaving blocks out", done, total),
        )
    elif gone:
        learned = learn_gates(
            decoder,
            corpus.fitted_NS,
            gone,
            options.gates,
            protect=(0, layers - 1),
            seed=options.seed,
            on_step=lambda done, total: tell("Learning gates", done, total),
        )
        if learned.stopped:
            notes.append(f"Learning gates stopped early: {learned.stopped}.")
        if learned.closed < gone:
            notes.append(
                f"Only {learned.closed} of {gone} gates closed; the rest was chosen by the lowest "
                "of those that stayed open: more steps decide more."
            )
        gates = tuple(round(float(value), 4) for value in learned.final)
        removed = learned.lowest(gone, protect=(0, layers - 1))
    plan = plan.without(removed)
    merges: tuple[tuple[int, int, float], ...] = ()
    if shared:
        folding = fold(
            decoder,
            plan,
            shared,
            rows_NS,
            on_trial=lambda done, total: tell("Trying pairs", done, total),
        )
        plan = folding.plan
        merges = tuple((trial.left, trial.right, trial.loss) for trial in folding.merges)
    return _Chosen(settings, gates, tuple(removed), plan, merges, tuple(notes))


def _tell_cure(tell: OnWork, progress: Progress) -> None:
    tell("Curing", progress.step, progress.steps)


def _work(folder: Path) -> Path:
    """The folder for what is not finished; refuses to write over anything else."""
    inside = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if inside and (_WORK not in inside or inside - {_WORK, PLAN, NORMS, ADAPTER}):
        raise ConfigError(f"{folder} is in use: give --out a folder that is new or empty.")
    work = folder / _WORK
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written to: {error.strerror}.") from error
    return work


def _read(path: Path, settings: str) -> _Chosen:
    """What an interrupted call chose; nothing where there was none."""
    if not path.is_file():
        return _Chosen(settings)
    try:
        chosen = from_json(_Chosen, path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} cannot be read: {error}.") from error
    if chosen.settings != settings:
        raise ConfigError(
            f"{path.parent.parent} is of a compression with other settings, text or model: finish "
            "that one with its own, or give --out another folder."
        )
    return chosen
