"""Packed matrices: what they lose, and when a decoder uses them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shoal.models.decoder import causal_attend
from shoal.models.loading import load
from shoal.models.packed import (
    GROUP,
    PACKED_ROWS,
    W8A8,
    Int4,
    Int8,
    blocked,
    multiplies_8_bits,
    w8a8,
)
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


def activations(rows: int, places: int) -> torch.Tensor:
    """bf16 [rows, places], a hundred times as large in two of the places."""
    torch.manual_seed(rows)
    x = torch.randn(rows, places)
    x[:, [3, 40]] *= 100
    return x.bfloat16()


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    error = (found.double() - expected).square().mean() / expected.square().mean()
    return float(error.sqrt())


def test_eight_bits_on_both_sides_are_the_product_of_what_was_rounded() -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(64, 96), torch.randn(64)
    x = torch.randn(7, 96).bfloat16()
    small = w8a8(weight, torch.ones(96))
    assert small.relief.log().mean().abs() < 1e-6
    smoothed = weight.double() / small.relief.double()
    codes = (smoothed / small.scale[:, None]).round()
    relieved = x.double() * small.relief.double()
    steps = relieved.abs().amax(1, keepdim=True) / 127
    expected = (relieved / steps).round() * steps @ (codes * small.scale[:, None].double()).T + bias
    assert relative_error(small.apply(x, bias.bfloat16()), expected) < 0.005
    assert (
        relative_error(small.apply(x, bias.bfloat16()), x.double() @ weight.double().T + bias)
        < 0.02
    )


def test_outliers_cost_other_places_their_bits_unless_weights_take_them() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 96)
    x = activations(30, 96)
    others = torch.ones(96).index_fill(0, torch.tensor([3, 40]), 0)
    expected = (x.double() * others) @ weight.double().T

    def error(peak: torch.Tensor) -> float:
        small = w8a8(weight, peak)
        whole = small.apply(x).double() - (x.double() * (1 - others)) @ weight.double().T
        return relative_error(whole, expected)

    assert error(x.abs().amax(0)) < 0.5 * error(weight.abs().amax(0) ** (0.35 / 0.65))


def test_rows_of_zeros_stay_zero_in_eight_bits() -> None:
    small = w8a8(torch.randn(32, 64), torch.ones(64))
    assert small.apply(torch.zeros(5, 64).bfloat16()).abs().max() == 0
    assert w8a8(torch.zeros(32, 64), torch.zeros(64)).apply(activations(3, 64)).abs().max() == 0


def test_steps_of_a_few_rows_go_through_packed_weights_and_others_through_eight_bits(
    tiny_model: Path,
) -> None:
    plain, packed = (load(str(tiny_model), dtype=dtype) for dtype in ("bf16", "packed"))
    ids = torch.arange(PACKED_ROWS + 1) + 65
    few, more, _ = packed.decoder._matrices
    assert {type(few.layers[0].qkv), type(few.head)} <= {Int4, Int8}
    kinds = {name: type(getattr(more.layers[0], name)) for name in ("qkv", "out", "gate_up")}
    assert (set(kinds.values()) == {W8A8}) == multiplies_8_bits()
    assert type(more.layers[0].down) is not W8A8  # its outliers belong to tokens

    def states(model, count):  # type: ignore[no-untyped-def]
        return model.decoder.forward(ids[:count], torch.arange(count), causal_attend)

    with torch.inference_mode():
        for count in (PACKED_ROWS, PACKED_ROWS + 1):
            found, expected = states(packed, count), states(plain, count)
            few_or_8_bits = count == PACKED_ROWS or multiplies_8_bits()
            assert torch.equal(found, expected) != few_or_8_bits
            torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1)
    assert plain.fingerprint != packed.fingerprint


def test_divergence_is_measured_with_packed_matrices_at_every_row(tiny_model: Path) -> None:
    plain, packed = (load(str(tiny_model), dtype=dtype) for dtype in ("bf16", "packed"))
    texts = ["A shoal of fish moves as one."]
    decoding, reading = (divergence(packed, plain, texts, reading=r) for r in (False, True))
    assert 0 < decoding.kl < 0.02
    assert 0 < reading.kl < 0.02
    assert decoding.kl != reading.kl


@pytest.mark.model
def test_the_packaged_model_keeps_its_four_bits() -> None:
    plain, packed = (load(dtype=dtype) for dtype in ("bf16", "packed"))
    matrix = pack(plain.decoder.weights["layers.0.qkv"])
    assert isinstance(matrix, Int4)
    text = "A shoal is many fish that swim together, and nobody leads them. " * 2
    assert divergence(packed, plain, [text]).kl < 0.02
    assert divergence(packed, plain, [text], reading=True).kl < 0.02


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


@pytest.mark.parametrize("dtype", ["bf16", "packed"])
def test_gradients_flow_through_any_number_of_rows(tiny_model: Path, dtype: str) -> None:
    decoder = load(str(tiny_model), dtype=dtype).decoder
    for rows in (1, 40, 200):
        x_TD = decoder.embed(torch.arange(rows) % 60 + 65).requires_grad_()
        layers = decoder.config.layers
        decoder.through(x_TD, torch.arange(rows), causal_attend, 0, layers).sum().backward()
        assert x_TD.grad is not None
        assert x_TD.grad.isfinite().all() and x_TD.grad.abs().sum() > 0
