"""How much memory a step takes: the peak of a process that does nothing else (Linux)."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from prefixes.arms import smollm, step
from prefixes.batches import Writer

PROCESS = Path("/proc/self")


def peak(arm: str, layers: int, prompt: int, answers: int, answer: int, seed: int) -> float:
    """MiB that one step of an arm takes beyond the weights and their gradients."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak, arm, layers, prompt, answers, answer, seed).result()


def _peak(arm: str, layers: int, prompt: int, answers: int, answer: int, seed: int) -> float:
    torch.set_num_threads(1)
    policy = smollm(layers)
    step(policy, Writer(seed).group(8, 2, 2), arm)  # gradients, and what is made at first use
    before = _mib("VmRSS")
    (PROCESS / "clear_refs").write_text("5")  # the peak is now what is resident
    step(policy, Writer(seed).group(prompt, answers, answer), arm)
    return _mib("VmHWM") - before


def _mib(name: str) -> float:
    for line in (PROCESS / "status").read_text(encoding="ascii").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"the kernel tells no {name}")
