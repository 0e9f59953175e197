"""What stands between products is what torch computes in double precision, in every way through."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from shoal.models import fused
from shoal.models.rope import rotate

EPS = 1e-5
FORMATS = [(torch.float32, 2e-6), (torch.bfloat16, 2**-8)]  # how far from it, relatively
ROWS = [1, 57]


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


def near(ours: torch.Tensor, true: torch.Tensor, error: float) -> None:
    torch.testing.assert_close(ours.double(), true.double(), rtol=error, atol=error / 100)


def true_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double()


def turning(rows: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and signed sin of some angles, as the decoder lays them out."""
    angles = torch.arange(rows)[:, None, None] * torch.linspace(0.01, 1.3, d // 2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def true_rotation(x_THd: torch.Tensor, heads: int) -> torch.Tensor:
    """Every pair (i, i + d/2) as a complex number, turned."""
    T, _, d = x_THd.shape
    cos, sin = (part.double() for part in turning(T, d))
    turn = torch.complex(cos[..., : d // 2], sin[..., d // 2 :])
    low, high = x_THd.double().chunk(2, -1)
    turned = torch.complex(low, high) * turn
    whole = torch.cat((turned.real, turned.imag), -1)
    return torch.cat((whole[:, :heads], x_THd[:, heads:].double()), 1)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("dtype", "error"), FORMATS)
@torch.inference_mode()
def test_a_norm_is_taken_over_the_last_dimension(
    rows: int, dtype: torch.dtype, error: float
) -> None:
    x_TD, weight_D = drawn(rows, 96), drawn(96, dtype=dtype)
    out_TD = fused.rms_norm(x_TD, weight_D, EPS, dtype)
    assert out_TD.dtype == dtype
    near(out_TD, true_norm(x_TD, weight_D), error)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("dtype", "error"), FORMATS)
@torch.inference_mode()
def test_a_norm_of_some_of_the_heads_leaves_the_others_out(
    rows: int, dtype: torch.dtype, error: float
) -> None:
    qkv, weight_d = drawn(rows, 7, 16, dtype=dtype), drawn(16, dtype=dtype)
    before = qkv.clone()
    out = fused.rms_norm(qkv[:, 2:5], weight_d, EPS, dtype)
    assert out.shape == (rows, 3, 16)
    near(out, true_norm(qkv[:, 2:5], weight_d), error)
    assert torch.equal(qkv, before)


@torch.inference_mode()
def test_rows_that_are_nearly_zero_or_very_large_keep_their_norm() -> None:
    x_TD = drawn(3, 96) * torch.tensor([0.0, 1e-3, 1e15])[:, None]
    weight_D = torch.ones(96)
    near(fused.rms_norm(x_TD, weight_D, EPS, torch.float32), true_norm(x_TD, weight_D), 1e-5)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_sum_is_exact_in_fp32_whatever_is_added(rows: int, dtype: torch.dtype) -> None:
    x_TD, y_TD = drawn(rows, 96), drawn(rows, 96, dtype=dtype) * 3
    before = x_TD.clone()
    sum_TD = fused.add(x_TD, y_TD)
    assert sum_TD.dtype == torch.float32
    assert torch.equal(sum_TD, x_TD + y_TD.float())
    assert torch.equal(x_TD, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_columns_cut_from_wider_products_are_added_as_they_lie(dtype: torch.dtype) -> None:
    x_TD, y_TD = drawn(57, 200)[:, ::2], drawn(57, 130, dtype=dtype)[:, 30:]
    assert torch.equal(fused.add(x_TD, y_TD), x_TD + y_TD)
    x_TD, y_TD = drawn(100, 57).T, drawn(100, 57, dtype=dtype).T
    assert torch.equal(fused.add(x_TD, y_TD), x_TD + y_TD)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("dtype", "error"), FORMATS)
@torch.inference_mode()
def test_what_passes_a_gate_is_silu_of_the_gate_times_the_other_half(
    rows: int, dtype: torch.dtype, error: float
) -> None:
    gate_up = drawn(rows, 192, dtype=dtype) * 4
    out = fused.gated(gate_up)
    assert out.dtype == dtype
    near(out, F.silu(gate_up[:, :96].double()) * gate_up[:, 96:].double(), error)
    wider = torch.cat((gate_up, gate_up), 1)[:, :192]
    assert torch.equal(fused.gated(wider), out)


@torch.inference_mode()
def test_a_gate_far_from_zero_is_shut_or_open() -> None:
    gates, ups = torch.tensor([[-1e4, -100.0, -90.0, 100.0, 1e4]]), torch.full((1, 5), 2.0)
    out = fused.gated(torch.cat((gates, ups), 1))
    near(out, torch.tensor([[0.0, 0.0, 0.0, 200.0, 2e4]]), 1e-6)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("dtype", "error"), FORMATS)
@torch.inference_mode()
def test_the_first_heads_are_turned_where_they_lie_and_the_others_stay(
    rows: int, dtype: torch.dtype, error: float
) -> None:
    whole = drawn(rows, 7, 40, dtype=dtype)
    for x_THd in (whole.clone(), whole[..., 4:36]):
        before, d = x_THd.clone(), x_THd.shape[-1]
        out = fused.rotated(x_THd, 5, *turning(rows, d))
        assert out.data_ptr() == x_THd.data_ptr()
        torch.testing.assert_close(out.double(), true_rotation(before, 5), rtol=error, atol=error)
        assert torch.equal(out[:, 5:], before[:, 5:])


def each(dtype: torch.dtype) -> list[tuple[Callable[..., torch.Tensor], list[torch.Tensor]]]:
    """Every function, and what it is differentiable in."""
    cos, sin = turning(5, 16)
    return [
        (
            lambda x, weight: fused.rms_norm(x, weight, EPS, dtype),
            [drawn(5, 32), drawn(32, dtype=dtype)],
        ),
        (fused.add, [drawn(5, 32), drawn(5, 32, dtype=dtype)]),
        (fused.gated, [drawn(5, 32, dtype=dtype)]),
        (lambda x: fused.rotated(x, 3, cos, sin), [drawn(5, 4, 16, dtype=dtype)]),
    ]


@pytest.mark.parametrize(("dtype", "error"), FORMATS)
def test_results_are_the_same_with_gradients_and_without(dtype: torch.dtype, error: float) -> None:
    for function, inputs in each(dtype):
        differentiable = function(*(x.clone().requires_grad_() for x in inputs))
        with torch.inference_mode():
            plain = function(*(x.clone() for x in inputs))
        assert plain.dtype == differentiable.dtype
        assert differentiable.requires_grad and not plain.requires_grad
        torch.testing.assert_close(plain, differentiable.detach(), rtol=4 * error, atol=error)


def test_gradients_are_those_of_the_formulas() -> None:
    formulas: list[Callable[..., torch.Tensor]] = [
        true_norm,
        lambda x, y: x + y,
        lambda x: x[:, :16] * torch.sigmoid(x[:, :16]) * x[:, 16:],
        lambda x: true_rotation(x, 3),
    ]
    for (function, inputs), formula in zip(each(torch.float32), formulas, strict=True):
        ours = [x.clone().requires_grad_() for x in inputs]
        true = [x.double().requires_grad_() for x in inputs]
        out, expected = function(*ours), formula(*true)
        direction = drawn(*out.shape)
        out.backward(direction)
        expected.backward(direction.double())
        for x, y in zip(ours, true, strict=True):
            assert x.grad is not None and y.grad is not None
            torch.testing.assert_close(x.grad.double(), y.grad, rtol=1e-5, atol=1e-5)


def test_a_rotation_that_is_differentiated_leaves_its_input_alone() -> None:
    x_THd = drawn(5, 4, 16)
    before = x_THd.clone()
    fused.rotated(x_THd, 3, *turning(5, 16))
    assert torch.equal(x_THd, before)


@torch.inference_mode()
def test_off_the_cpu_torch_computes_the_same_shapes_and_types() -> None:
    x_TD, weight_D = drawn(5, 32).to("meta"), drawn(32).to("meta")
    cos, sin = (part.to("meta") for part in turning(5, 16))
    for out, shape, dtype in [
        (fused.rms_norm(x_TD, weight_D, EPS, torch.bfloat16), (5, 32), torch.bfloat16),
        (fused.add(x_TD, x_TD.bfloat16()), (5, 32), torch.float32),
        (fused.gated(x_TD.bfloat16()), (5, 16), torch.bfloat16),
        (
            fused.rotated(drawn(5, 4, 16).bfloat16().to("meta"), 3, cos, sin),
            (5, 4, 16),
            torch.bfloat16,
        ),
    ]:
        assert out.device.type == "meta"
        assert out.shape == shape and out.dtype == dtype


@torch.inference_mode()
def test_turning_keeps_the_length_of_every_pair_and_is_what_rotate_does() -> None:
    x_THd = drawn(9, 4, 16)
    cos, sin = turning(9, 16)
    expected = rotate(x_THd, cos, sin)
    out = fused.rotated(x_THd.clone(), 4, cos, sin)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    lengths = [torch.stack(x.chunk(2, -1)).norm(dim=0) for x in (out, x_THd)]
    torch.testing.assert_close(*lengths, rtol=1e-5, atol=1e-6)
