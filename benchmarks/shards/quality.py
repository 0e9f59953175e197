"""Loss after adapting a small model to another domain: LoRA, MoS and MoS without its parts.

All seeds and learning rates of an arm are trained at once, over one frozen base, each on the data
its seed draws. The learning rate is chosen by the loss on validation text; where the best is the
least or the largest that was tried, the next one is tried, too. What is reported is the loss on
test text, of other files, at the chosen rate; at others it is not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shards import texts
from shoal.core.rng import seed_of
from shoal.models.adapters.adapter import Adapter
from shoal.models.adapters.mixed import mixed
from shoal.models.adapters.registry import new
from shoal.models.decoder import Decoder, DecoderConfig
from shoal.training.byte_llama import ByteLlama, row_losses, rows, tiny_config
from shoal.training.optimiser import Optimiser, OptimiserOptions

LENGTH = 65
"""Bytes of a row: 64 to predict."""
ROWS = 4
"""Rows of a step, for each adapter."""
FEW = 16
"""Rows of the validation text that the curves are measured on."""
STEP, EXTENSIONS = 3.0, 2
"""How far the next learning rate lies, and how many more are tried where the best is at an end."""
SCALE = 8.0
"""α/r where it is held constant; in the published code α is 16 whatever the rank in use."""


@dataclass(frozen=True, slots=True)
class Arm:
    """A kind of adapter with its options and the learning rates to choose from."""

    name: str
    kind: str
    options: Mapping[str, Any]
    rates: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Setting:
    """How long is trained, on how large a model, how often."""

    layers: int
    pretraining: int
    steps: int
    seeds: tuple[int, ...]
    test_rows: int


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What came of an arm. Losses are nats a byte.

    rates            that were tried, growing
    validation_RS    by rate and seed, at the end
    test_by_seed     at the chosen rate
    curve_C          mean validation loss of a few rows at quarters, at the chosen rate
    """

    arm: Arm
    rates: tuple[float, ...]
    parameters: int
    validation_RS: NDArray[np.float64]
    test_by_seed: NDArray[np.float64]
    curve_C: NDArray[np.float64]

    @property
    def best(self) -> int:
        """Place of the chosen rate."""
        return int(self.validation_RS.mean(1).argmin())

    @property
    def rate(self) -> float:
        """The chosen learning rate."""
        return self.rates[self.best]

    @property
    def scale(self) -> float:
        """α/r."""
        options = self.arm.options
        return float(options["alpha"] / options.get("r", options.get("rank")))


@dataclass(slots=True)
class Base:
    """The frozen model and its loss on test text before it is adapted."""

    config: DecoderConfig
    weights: dict[str, torch.Tensor]
    unadapted: float = 0.0

    def decoder(self) -> Decoder:
        """The model."""
        return Decoder(self.config, self.weights)


def scaled(alpha: float | None, rank: int) -> float:
    """α of a rank: the given one, or what makes α/r the constant."""
    return SCALE * rank if alpha is None else alpha


def lora(rank: int, alpha: float | None = None) -> dict[str, Any]:
    """Options of LoRA."""
    return {"rank": rank, "alpha": scaled(alpha, rank)}


def mos(e: int, r: int, p: int, l: int, alpha: float | None = None, **more: Any) -> dict[str, Any]:  # noqa: E741
    """Options of MoS."""
    return {"e": e, "r": r, "p": p, "l": l, "alpha": scaled(alpha, r), **more}


def pretrained(setting: Setting, seed: int) -> Base:
    """A byte-level Llama that has learned one domain."""
    config = tiny_config(hidden=96, layers=setting.layers)
    model = ByteLlama(config, seed=seed)
    text = texts.prose()
    optimiser = Optimiser(
        model.parameters,
        OptimiserOptions(lr=3e-3, warm_up=20, schedule="linear", steps=setting.pretraining),
    )
    for step in range(setting.pretraining):
        batch = rows(text, batch=12, length=LENGTH, seed=seed_of(seed, "pretraining", step))
        model.loss(batch).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    base = Base(config, {name: t.detach() for name, t in model.parameters.items()})
    test = _held_out(texts.TEST, setting.test_rows)
    base.unadapted = float(row_losses(base.decoder(), test).mean().detach())
    return base


def measure(base: Base, arm: Arm, setting: Setting) -> Found:
    """Sweep the learning rate of an arm and measure it at the best one."""
    trained = dict(zip(arm.rates, _train(base, arm, setting, arm.rates), strict=True))
    for _ in range(EXTENSIONS if len(arm.rates) > 1 else 0):
        rates = sorted(trained)
        best = min(trained, key=lambda rate: float(trained[rate].validation_S.mean()))
        if rates[0] < best < rates[-1]:
            break
        further = best * STEP if best == rates[-1] else best / STEP
        (trained[further],) = _train(base, arm, setting, (further,))
    rates = sorted(trained)
    best = min(trained, key=lambda rate: float(trained[rate].validation_S.mean()))
    test = _held_out(texts.TEST, setting.test_rows)
    chosen = trained[best]
    return Found(
        arm,
        tuple(rates),
        chosen.adapters[0].parameters,
        np.stack([trained[rate].validation_S for rate in rates]),
        np.array([_loss(adapter.over(base.decoder()), test) for adapter in chosen.adapters]),
        chosen.curve_SC.mean(0),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Trained:
    """Adapters of one rate, by seed."""

    adapters: list[Adapter]
    validation_S: NDArray[np.float64]
    curve_SC: NDArray[np.float64]


def _train(base: Base, arm: Arm, setting: Setting, rates: Sequence[float]) -> list[_Trained]:
    """Train all seeds at these rates in one run."""
    decoder, text = base.decoder(), texts.code(texts.TRAIN)
    validation = _held_out(texts.VALIDATION, setting.test_rows // 2)
    places = [(rate, seed) for rate in rates for seed in setting.seeds]
    adapters = [new(arm.kind, decoder, seed=seed, **arm.options) for _, seed in places]
    optimisers = [
        Optimiser(
            adapter.trainable(),
            OptimiserOptions(
                lr=rate,
                betas=(0.9, 0.999),
                warm_up=max(1, setting.steps * 3 // 100),
                schedule="linear",
                steps=setting.steps,
            ),
        )
        for adapter, (rate, _) in zip(adapters, places, strict=True)
    ]
    together = mixed(decoder, [(adapter, ROWS * (LENGTH - 1)) for adapter in adapters])
    marks = sorted({max(1, setting.steps * part // 4) for part in (1, 2, 3, 4)})
    curve = np.empty((len(places), len(marks)))
    for step in range(setting.steps):
        drawn = {
            seed: rows(text, batch=ROWS, length=LENGTH, seed=seed_of(seed, "adapting", step))
            for seed in setting.seeds
        }
        loss = row_losses(together, torch.cat([drawn[seed] for _, seed in places])).sum() / ROWS
        loss.backward()  # type: ignore[no-untyped-call]
        for optimiser in optimisers:
            optimiser.step()
        if step + 1 in marks:
            for place, adapter in enumerate(adapters):
                few = validation[:FEW]
                curve[place, marks.index(step + 1)] = _loss(adapter.over(decoder), few)
    final = np.array([_loss(adapter.over(decoder), validation) for adapter in adapters])
    count = len(setting.seeds)
    return [
        _Trained(adapters[at : at + count], final[at : at + count], curve[at : at + count])
        for at in range(0, len(places), count)
    ]


def measure_all(
    base: Base, arms: Sequence[Arm], setting: Setting, *, done: Callable[[], object]
) -> dict[str, Found]:
    """All arms, one after another."""
    found = {}
    for arm in arms:
        found[arm.name] = measure(base, arm, setting)
        done()
    return found


@torch.no_grad()
def _loss(decoder: Decoder, ids: torch.Tensor) -> float:
    return float(row_losses(decoder, ids).mean())


def _held_out(modules: tuple[str, ...], count: int) -> torch.Tensor:
    return rows(texts.code(modules), batch=count, length=LENGTH, seed=seed_of("held out", modules))
