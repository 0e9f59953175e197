"""Packed matrices: what they lose, and when a decoder uses them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shoal.models.decoder import causal_attend
from shoal.models.loading import load
from shoal.models.packed import GROUP, PACKED_ROWS, Int4, Int8, blocked
from shoal.models.packed import packed as pack
from shoal.models.quality import divergence


def test_a_matrix_on_a_grid_of_sixteen_values_takes_four_bits() -> None:
    torch.manual_seed(0)
    N, K = 64, 96
    step = torch.rand(N, K // GROUP, 1) + 0.5
    low = -8 * step + torch.randn(N, K // GROUP, 1)
    codes = torch.randint(0, 16, (N, K // GROUP, GROUP)).float()
    codes[..., 0], codes[..., 1] = 0, 15
    weight = (codes * step + low).view(N, K)
    small = pack(weight.bfloat16())
    assert isinstance(small, Int4)
    x = torch.randn(3, K).bfloat16()
    expected = x.float() @ weight.T
    error = (small.apply(x).float() - expected).square().mean() / expected.square().mean()
    assert error.sqrt() < 0.01


def test_any_other_matrix_takes_eight_bits() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 96)
    weight[3] = 0
    small = pack(weight)
    assert isinstance(small, Int8)
    rounded = small.codes.float() * small.scale.float()[:, None]
    assert ((rounded - weight).abs() <= 0.51 * small.scale.float()[:, None]).all()
    x = torch.randn(2, 96).bfloat16()
    torch.testing.assert_close(small.apply(x).float(), x.float() @ rounded.T, rtol=0.01, atol=0.05)
    assert small.apply(x)[:, 3].abs().max() == 0


@pytest.mark.parametrize("shape", [(30, 96), (64, 80)])
def test_shapes_the_four_bit_kernel_refuses_take_eight(shape: tuple[int, int]) -> None:
    assert isinstance(pack(torch.zeros(shape)), Int8)


def test_only_steps_of_a_few_rows_are_packed(tiny_model: Path) -> None:
    plain, packed = (load(str(tiny_model), dtype=dtype) for dtype in ("bf16", "packed"))
    ids = torch.arange(PACKED_ROWS + 1) + 65

    def states(model, count):  # type: ignore[no-untyped-def]
        return model.decoder.forward(ids[:count], torch.arange(count), causal_attend)

    assert torch.equal(states(plain, PACKED_ROWS + 1), states(packed, PACKED_ROWS + 1))
    few = states(packed, PACKED_ROWS)
    assert not torch.equal(states(plain, PACKED_ROWS), few)
    torch.testing.assert_close(few, states(plain, PACKED_ROWS), rtol=0.1, atol=0.1)
    assert plain.fingerprint != packed.fingerprint


def test_divergence_is_measured_with_packed_matrices_at_every_row(tiny_model: Path) -> None:
    plain, packed = (load(str(tiny_model), dtype=dtype) for dtype in ("bf16", "packed"))
    texts = ["A shoal of fish moves as one."]
    assert 0 < divergence(packed, plain, texts).kl < 0.02


@pytest.mark.model
def test_the_packaged_model_keeps_its_four_bits() -> None:
    plain, packed = (load(dtype=dtype) for dtype in ("bf16", "packed"))
    matrix = pack(plain.decoder.weights["layers.0.qkv"])
    assert isinstance(matrix, Int4)
    text = "A shoal is many fish that swim together, and nobody leads them. " * 2
    assert divergence(packed, plain, [text]).kl < 0.02


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_the_blocked_layout_gives_the_same_numbers(rows: int) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(96, 64).bfloat16(), torch.randn(96).bfloat16()
    laid_out, x = blocked(weight), torch.randn(rows, 64).bfloat16()
    if isinstance(laid_out, torch.Tensor):
        pytest.skip("this processor has no bf16 kernels with a layout of their own")
    expected = torch.nn.functional.linear(x.float(), weight.float(), bias.float())
    torch.testing.assert_close(laid_out.apply(x, bias).float(), expected, rtol=2**-7, atol=0.1)


def test_fp32_matrices_stay_as_they_are() -> None:
    weight = torch.randn(8, 8)
    assert blocked(weight) is weight
