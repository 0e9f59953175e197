"""A short fine-tune that brings a shortened model back towards the original.

The third part of FoldGPT (arXiv 2407.00928): norms of folded blocks are adapted again, low-rank
updates are learned on the shared weights, and the original teaches, above all the last blocks,
where the errors of all earlier ones arrive. The loss is

    CE + α T² KL(original || student at temperature T) + β Σ_tail ‖h - h*‖² / ‖h*‖²

where the tail is the last blocks that are left, each compared with the original's block of the same
place; the last of all behind the final norm, because that is what the head reads.

Departures: every executed block has a low-rank update of its own, not the folded ones alone, so
that a plan that only removes can be cured by the same means. The base is never changed.

Shapes: N rows, S tokens of a row, B rows of a batch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn import functional as F

from shoal.core.errors import InputError, ModelError
from shoal.core.files import atomic_path
from shoal.core.rng import generator
from shoal.models.adapters.adapter import Adapter
from shoal.models.adapters.registry import new
from shoal.models.decoder import Decoder
from shoal.models.depth.arrange import NORMS, arrange
from shoal.models.depth.plan import DepthPlan
from shoal.models.depth.stack import batches, next_logits, next_targets, plain, run
from shoal.models.depth.teacher import Teacher, divergence, relative_error


@dataclass(frozen=True, slots=True)
class CureOptions:
    """How a plan is cured.

    tokens        that are learned from in all; the text is read again where it is shorter
    batch         rows of a step
    lr, warm_up   of Adam without decay, falling linearly to 0; the share of steps it rises in
    rank, scale   of the low-rank updates: ΔW = scale B A
    distil, tail  α and β of the loss; ``tail_blocks`` is how many last blocks are compared
    """

    tokens: int
    batch: int = 1
    lr: float = 5e-3
    warm_up: float = 0.1
    max_norm: float = 1.0
    rank: int = 8
    scale: float = 2.0
    distil: float = 1.0
    tail: float = 1.0
    tail_blocks: int = 3
    temperature: float = 2.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """One step: its losses in nats a token; ``tail`` is the sum of relative errors."""

    step: int
    steps: int
    language: float
    divergence: float
    tail: float


OnProgress = Callable[[Progress], None]


class Cure:
    """A plan under treatment: a decoder whose norms and low-rank updates learn.

    ``decoder`` is what has been reached; ``stopped`` says why it ended early, where it did.
    """

    def __init__(
        self,
        base: Decoder,
        plan: DepthPlan,
        ids_NS: torch.Tensor,
        options: CureOptions,
        teacher: Teacher | None = None,
    ) -> None:
        """Raises :class:`ModelError` for packed weights, :class:`InputError` for no text."""
        if base.kernels == "packed":
            raise ModelError(
                "Packed weights cannot be cured: load the model as floats, with dtype bf16 or fp32."
            )
        if not len(ids_NS):
            raise InputError("There is no row of text to cure with.")
        self.plan = plan
        self.options = options
        self.steps = math.ceil(options.tokens / (options.batch * ids_NS.shape[1]))
        self.done = 0
        self.stopped: str | None = None
        self.history: list[Progress] = []
        self._ids_NS = ids_NS
        self._batches = _order(len(ids_NS), self.steps, options)
        first = max(len(plan.steps) - options.tail_blocks, 0)
        self._tail = {place: plan.steps[place].origin for place in range(first, len(plan.steps))}
        self._teacher = teacher or Teacher(
            base, self._tail.values(), temperature=options.temperature
        )
        untouched = arrange(plain(base), plan)
        self.norms = {
            name: untouched.weights[name].clone().requires_grad_()
            for name in (f"layers.{place}.{part}" for place in plan.folded for part in NORMS)
            if name in untouched.weights
        }
        bare = arrange(plain(base), plan, self.norms)
        self.adapter: Adapter = new(
            "lora",
            bare,
            rank=options.rank,
            alpha=options.scale * options.rank,
            seed=options.seed,
        )
        self.decoder = self.adapter.over(bare)
        self.trained = {**self.norms, **self.adapter.trainable()}
        self._adam = torch.optim.Adam(self.trained.values(), lr=options.lr, betas=(0.9, 0.99))

    def step(self) -> Progress:
        """Learn from the next batch; a loss that is not finite changes nothing and ends it."""
        options = self.options
        ids_BS = self._ids_NS[self._batches[self.done]]
        loss, told = self._loss(ids_BS)
        if not math.isfinite(loss.item()):
            self.stopped = f"the loss was {loss.item()} at step {self.done}"
            return told
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.trained.values(), options.max_norm)
        for group in self._adam.param_groups:
            group["lr"] = self._lr()
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        self.done += 1
        self.history.append(told)
        return told

    def run(
        self,
        *,
        checkpoint: Path | None = None,
        every: int = 20,
        on_step: OnProgress | None = None,
    ) -> None:
        """All steps that are left; with ``checkpoint`` the state is written to that file."""
        while self.done < self.steps and self.stopped is None:
            told = self.step()
            if on_step:
                on_step(told)
            if checkpoint and (self.done % every == 0 or self.done == self.steps or self.stopped):
                self.save(checkpoint)

    def _loss(self, ids_BS: torch.Tensor) -> tuple[torch.Tensor, Progress]:
        options = self.options
        shape_BS = (ids_BS.shape[0], ids_BS.shape[1])
        x_TD, states = run(self.decoder, ids_BS, keep=self._tail if options.tail else ())
        logits_RV = next_logits(self.decoder, x_TD, shape_BS)
        language = F.cross_entropy(logits_RV, next_targets(ids_BS))
        loss, kl, tail = language, language.new_zeros(()), language.new_zeros(())
        if options.distil or options.tail:
            lesson = self._teacher.lesson(ids_BS)
        if options.distil:
            kl = divergence(lesson, logits_RV, options.temperature)
            loss = loss + options.distil * options.temperature**2 * kl
        if options.tail:
            last = self.plan.layers - 1
            for place, origin in self._tail.items():
                found = self.decoder.finish(states[place]) if origin == last else states[place]
                tail = tail + relative_error(found, lesson.states[origin])
            loss = loss + options.tail * tail
        told = Progress(self.done + 1, self.steps, language.item(), kl.item(), tail.item())
        return loss, told

    def _lr(self) -> float:
        rising = max(1, round(self.options.warm_up * self.steps))
        if self.done < rising:
            return self.options.lr * (self.done + 1) / rising
        return self.options.lr * (self.steps - self.done) / max(self.steps - rising, 1)

    def save(self, path: Path) -> None:
        """All that the next step depends on, in one file that is whole or not there."""
        tensors = {f"trained/{name}": t.detach().clone() for name, t in self.trained.items()}
        for name, tensor in self.trained.items():
            for part, value in self._adam.state.get(tensor, {}).items():
                tensors[f"adam/{part}/{name}"] = value.clone()
        told = {
            "cure": self._name(),
            "done": str(self.done),
            "history": json.dumps([asdict(progress) for progress in self.history]),
            "stopped": self.stopped or "",
        }
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata=told)

    def restore(self, path: Path) -> None:
        """Go on where a cure of the same plan, text and options was saved.

        Raises :class:`InputError` for a file that cannot be read or is of another cure.
        """
        try:
            with safe_open(path, framework="pt") as opened:
                told = opened.metadata() or {}
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            history = [Progress(**each) for each in json.loads(told.get("history", "[]"))]
        except (OSError, SafetensorError, ValueError, TypeError) as error:
            raise InputError(f"The checkpoint {path} cannot be read: {error}.") from error
        if told.get("cure") != self._name():
            raise InputError(
                f"The checkpoint {path} is of another plan, text or setting: give the cure a "
                "folder of its own, or the settings it was begun with."
            )
        with torch.no_grad():
            for name, tensor in self.trained.items():
                tensor.copy_(tensors[f"trained/{name}"])
        for name, tensor in self.trained.items():
            parts = {
                part: tensors[f"adam/{part}/{name}"] for part in ("step", "exp_avg", "exp_avg_sq")
                if f"adam/{part}/{name}" in tensors
            }  # fmt: skip
            if parts:
                self._adam.state[tensor] = parts
        self.done, self.history = int(told["done"]), history
        self.stopped = told["stopped"] or None

    def _name(self) -> str:
        """What a checkpoint must agree with."""
        text = str(hash_of(self._ids_NS))
        return json.dumps([self.plan.key, asdict(self.options), text, self.adapter.base])


def hash_of(ids_NS: torch.Tensor) -> str:
    """A short name of a text's tokens, by content."""
    return hashlib.sha256(ids_NS.numpy().tobytes()).hexdigest()[:16]


def _order(count: int, steps: int, options: CureOptions) -> list[torch.Tensor]:
    """The rows of every step: all once in an order of the seed's, then again in another."""
    wanted = steps * options.batch
    order: list[int] = []
    while len(order) < wanted:
        order += generator("cure", options.seed, len(order)).permutation(count).tolist()
    return batches(torch.tensor(order[:wanted]), options.batch)
