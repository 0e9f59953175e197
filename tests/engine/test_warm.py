"""Whatever a step needs is compiled before the first request."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.engine import parts, ragged
from shoal.engine.warm import warm
from shoal.models import fused
from shoal.models.loading import load
from shoal.models.native import Loop


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "packed"])
def test_every_loop_is_compiled_once_and_progress_is_told(
    tiny_model: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, int, int]] = []
    monkeypatch.setattr("shoal.engine.warm._warm", set())
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)  # two heads leave one idle
    decoder = load(str(tiny_model), dtype=dtype).decoder
    warm(decoder, lambda *step: told.append(step))
    warm(decoder, lambda *step: pytest.fail("it is warm"))
    assert told[0][1] == 0
    assert told[-1][1] == told[-1][2] == len(told) - 1
    loops = [each for room in (fused, ragged, parts) for each in vars(room).values()]
    stored = "float32" if dtype == "fp32" else "uint16"
    for loop in loops:
        if isinstance(loop, Loop) and (dtype == "packed" or loop not in _IN_8_BITS):
            made = [*loop._alone.signatures, *loop._threads.signatures]
            assert stored in str(made), loop


_IN_8_BITS = (fused._rounded, fused._scale_rows)
