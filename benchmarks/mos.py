"""Shards of one pool for all layers: what they are worth against LoRA, and what they save.

    shoal reproduce mos [--smoke]

A small byte-level Llama that learned prose is adapted to code by LoRA, by MoS at the same number of
parameters, by MoS without each of its parts, and by LoRA with eight times the parameters; learning
rates are swept for each. Then 64 adapters answer in one batch on SmolLM2-135M.
"MoS: Unleashing Parameter Efficiency of Low-Rank Adaptation with Mixture of Shards"
(arXiv 2410.00938).
"""

from __future__ import annotations

import importlib.util
from functools import partial
from typing import Any

import numpy as np

from shards import quality, serving, together
from shards.quality import Arm, Base, Found, Setting, lora, mos
from shoal.core.claims import Bench, alternate
from shoal.core.stats import difference_interval, mean_interval, ratio_interval
from shoal.engine.compute import compute
from shoal.models.loading import load

RATES = (1e-3, 3e-3, 1e-2)
CODE_RATES = (3e-3, 1e-2, 3e-2)
CODE_ALPHA = 16.0

SWEPT = (
    Arm("LoRA r=2", "lora", lora(2), RATES),
    Arm("MoS e=2", "mos", mos(2, 6, 1, 4), RATES),
    Arm("pure sharing e=2", "mos", mos(2, 12, 0, 1, dissociated=False), RATES),
    Arm("LoRA r=16", "lora", lora(16), RATES),
    Arm("LoRA r=8", "lora", lora(8), RATES),
    Arm("MoS e=8", "mos", mos(8, 16, 2, 4), RATES),
    Arm("LoRA r=64", "lora", lora(64), RATES),
    Arm("MoS e=2, scale as in the code", "mos", mos(2, 6, 1, 4, CODE_ALPHA), CODE_RATES),
    Arm("LoRA r=8, scale as in the code", "lora", lora(8, CODE_ALPHA), CODE_RATES),
    Arm("MoS e=8, scale as in the code", "mos", mos(8, 16, 2, 4, CODE_ALPHA), CODE_RATES),
)
WITHOUT: dict[str, dict[str, Any]] = {
    "subset selection": mos(2, 7, 1, 4),
    "pair dissociation": mos(2, 6, 1, 4, dissociated=False),
    "vector sharding": mos(2, 6, 1, 1),
    "shard privatisation": mos(2, 6, 0, 4),
}


def run(bench: Bench) -> None:
    """Quality, then serving."""
    setting = bench.pick(
        full=Setting(layers=6, pretraining=350, steps=130, seeds=(0, 1, 2), test_rows=128),
        smoke=Setting(layers=6, pretraining=10, steps=6, seeds=(0, 1), test_rows=16),
    )
    bench.workload = (
        f"Quality: a byte-level Llama of {setting.layers} layers (d = 96) learns the jargon files "
        f"of the examples for {setting.pretraining} steps; adapters on all seven linear maps then "
        f"learn Python's standard library for {setting.steps} steps of {quality.ROWS} x 64 bytes "
        f"(AdamW, 3 % warm-up, linear decay), {len(setting.seeds)} seeds paired by data order. The "
        "learning rate is chosen by validation loss: of three for every arm, of more where the "
        "best of them is at an end; losses are nats a byte on other files. α/r is 8 for all; arms "
        "'as in the code' have α = 16 and so a scale "
        "that falls with the rank. Ablations take the rate of MoS e=2. Serving: SmolLM2-135M in "
        "bf16, one request an adapter, all prompts different. Training: MoS adapters of four "
        "agents on SmolLM2-135M in fp32, a document each."
    )
    base = quality.pretrained(setting, bench.seed)
    found = _quality(bench, base, setting)
    _judge(bench, found)
    _draw(bench, base, found, setting)
    _serving(bench)
    _together(bench)


def _quality(bench: Bench, base: Base, setting: Setting) -> dict[str, Found]:
    swept = SWEPT if not bench.smoke else tuple(
        Arm(arm.name, arm.kind, arm.options, arm.rates[1:2])
        for arm in SWEPT
        if arm.name in ("LoRA r=2", "MoS e=2")
    )  # fmt: skip
    parts = {} if bench.smoke else WITHOUT
    progress = iter(bench.track(range(len(swept) + len(parts)), "Adapting"))
    measured = partial(
        quality.measure_all,
        base,
        setting=setting,
        done=lambda: next(progress, None),
    )
    found = measured(swept)
    rate = found["MoS e=2"].rate
    found |= measured(
        [Arm(f"MoS e=2 without {part}", "mos", o, (rate,)) for part, o in parts.items()]
    )
    bench.arm("unadapted", test_loss=base.unadapted)
    for name, one in found.items():
        bench.arm(
            name,
            test_loss=mean_interval(one.test_by_seed, seed=bench.seed),
            parameters=float(one.parameters),
            learning_rate=one.rate,
            alpha_over_r=one.scale,
            last_quarter_gain=float(one.curve_C[-2] - one.curve_C[-1]),
        )
    return found


def _judge(bench: Bench, found: dict[str, Found]) -> None:
    """What the paper says, each as a difference of test losses paired by seed."""

    def less(worse: str, better: str, claim: str) -> None:
        if worse in found and better in found:
            gain = difference_interval(
                found[worse].test_by_seed, found[better].test_by_seed, paired=True, seed=bench.seed
            )
            bench.verdict(f"{claim} (nats a byte)", gain, at_least=0.0)

    less("LoRA r=2", "MoS e=2", "MoS e=2 is better than LoRA of as many parameters")
    less("LoRA r=8", "MoS e=8", "MoS e=8 is better than LoRA of as many parameters")
    less(
        "LoRA r=8, scale as in the code",
        "MoS e=8, scale as in the code",
        "so it is at e=8 with α = 16 for both",
    )
    less(
        "LoRA r=2",
        "MoS e=2, scale as in the code",
        "so it is at e=2 with α = 16 for both",
    )
    less("LoRA r=16", "MoS e=2", "MoS e=2 is as good as LoRA of eight times the parameters")
    less("LoRA r=64", "MoS e=8", "MoS e=8 is as good as LoRA of eight times the parameters")
    less("pure sharing e=2", "LoRA r=2", "pure sharing is no better than LoRA")
    for part in WITHOUT:
        less(f"MoS e=2 without {part}", "MoS e=2", f"MoS is worse without {part}")


def _draw(bench: Bench, base: Base, found: dict[str, Found], setting: Setting) -> None:
    with bench.plot("losses", "Test loss at the chosen rate, by seed; validation loss by rate.",
                    panels=2) as (left, right):  # fmt: skip
        names = list(found)[::-1]
        for y, name in enumerate(names):
            one = found[name]
            left.plot(
                one.test_by_seed, [y] * len(one.test_by_seed), "o", ms=4, alpha=0.6, color="C0"
            )
            left.plot(one.test_by_seed.mean(), y, "|", ms=14, color="C1")
        left.set_yticks(range(len(names)), names, fontsize=7)
        left.set_xlabel("test loss, nats a byte")
        for name, one in found.items():
            if len(one.rates) > 1:
                right.plot(one.rates, one.validation_RS.mean(1), "o-", ms=3, label=name)
        right.set_ylim(top=base.unadapted)
        right.set_xscale("log")
        right.set_xlabel("learning rate")
        right.set_ylabel("validation loss, nats a byte")
        if right.get_legend_handles_labels()[0]:
            right.legend(fontsize=6)
    with bench.plot("curves", "Validation loss while adapting, at the chosen rate.") as (axes,):
        for name in ("LoRA r=2", "MoS e=2", "pure sharing e=2", "LoRA r=16", "MoS e=8"):
            if name in found:
                curve = found[name].curve_C
                steps = np.linspace(0, setting.steps, len(curve) + 1)[1:]
                axes.plot(steps, curve, "o-", ms=3, label=name)
        axes.set_xlabel("steps")
        axes.set_ylabel("nats a byte")
        axes.legend(fontsize=7)


def _serving(bench: Bench) -> None:
    load_ = bench.pick(
        full=serving.Load(adapters=64, prompt=32, answer=24),
        smoke=serving.Load(adapters=4, prompt=8, answer=3),
    )
    rounds = 2
    model = compute.call(lambda: load(dtype="bf16"))
    small = serving.resident(model, load_, "mos", e=2, r=4, p=1, l=4)
    large = serving.resident(model, load_, "lora", rank=16)
    engines = {
        "no adapter": serving.Served(model, load_, None),
        f"{load_.adapters} x MoS e=2": serving.Served(model, load_, small),
        f"{load_.adapters} x LoRA r=16": serving.Served(model, load_, large),
    }
    seconds = alternate({name: one.round for name, one in engines.items()}, rounds=rounds)
    tokens = load_.adapters * load_.answer
    for name, timing in seconds.items():
        adapters = engines[name].engine.adapters
        bench.arm(
            f"serving: {name}",
            tokens_per_second=ratio_interval([tokens] * rounds, timing.wall, seed=bench.seed),
            cpu_seconds=timing.seconds("cpu", seed=bench.seed),
            stored_bytes=float(adapters.resident_bytes),
            assembled_bytes=float(adapters.bank.nbytes),
        )
    bare, many = seconds["no adapter"], seconds[f"{load_.adapters} x MoS e=2"]
    bench.verdict(
        "bytes resident, MoS e=2 / LoRA of eight times the parameters",
        small.resident_bytes / large.resident_bytes,
        at_most=1 / 8,
    )
    bench.verdict(
        "tokens a CPU second, a mixed batch of MoS / no adapter",
        ratio_interval(bare.cpu, many.cpu, seed=bench.seed),
        at_least=0.8,
    )
    if not bench.smoke and importlib.util.find_spec("peft") is not None:
        peft_load = serving.Load(load_.adapters, load_.prompt, bench.pick(full=6, smoke=2))
        peft = compute.call(lambda: serving.Peft(model, peft_load, rank=4))
        ours = serving.Served(model, peft_load, small)
        names = {
            "shoal": ours.round,
            "peft": lambda: compute.call(peft.round),
        }
        both = alternate(names, rounds=2, warmup=0)
        count = peft_load.adapters * peft_load.answer
        bench.arm(
            f"serving: PEFT, {load_.adapters} x LoRA r=4, {peft_load.answer} tokens",
            tokens_per_second=ratio_interval([count] * 2, both["peft"].wall, seed=bench.seed),
            cpu_seconds=both["peft"].seconds("cpu", seed=bench.seed),
            stored_bytes=float(peft.nbytes),
        )
        bench.verdict(
            "CPU seconds of PEFT's mixed batch / of the engine's, same rank and prompts",
            both["shoal"].times_faster_than(both["peft"], "cpu", seed=bench.seed),
            at_least=1.0,
        )


def _together(bench: Bench) -> None:
    """Adapters of several agents in one step, against a run for each."""
    count, steps = bench.pick(full=(4, 2), smoke=(2, 2))
    model = compute.call(lambda: load(dtype="fp32"))
    crowd = together.agents(model, count, rows=1, length=bench.pick(full=65, smoke=9))
    tables: dict[str, list[list[float]]] = {}

    def timed(name: str) -> None:
        run_ = crowd.at_once if name == "at once" else crowd.one_by_one
        compute.call(lambda: run_(steps))
        tables[name] = [list(one) for one in crowd.losses]

    names = ("one by one", "at once")
    seconds = alternate({name: partial(timed, name) for name in names}, rounds=2, warmup=0)
    for name in names:
        bench.arm(
            f"training {count} adapters {name}",
            cpu_seconds=seconds[name].seconds("cpu", seed=bench.seed),
            last_loss=float(np.mean([one[-1] for one in tables[name]])),
        )
    bench.verdict(
        "largest difference of losses, trained at once / one by one",
        together.furthest(tables["at once"], tables["one by one"]),
        at_most=1e-5,
    )
    bench.verdict(
        "CPU seconds of runs for each / of one run for all",
        seconds["at once"].times_faster_than(seconds["one by one"], "cpu", seed=bench.seed),
        at_least=1.0,
    )
