"""The hyperbolic tangent by way of the logistic function."""

import pytest
import torch

from skvae._backend.ops import tanh


def test_tanh_is_right_to_the_last_digits_of_a_float32_near_1():
    x = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    error = (tanh(x.float()).double() - torch.tanh(x.float().double())).abs()
    assert error.max() < 2e-7


def test_tanh_goes_to_its_ends_and_leaves_nan():
    ends = torch.tensor([-3e38, -100, 0, 100, 3e38, torch.inf, torch.nan])
    expected = torch.tensor([-1.0, -1, 0, 1, 1, 1, torch.nan])
    torch.testing.assert_close(tanh(ends), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_tanh_of_another_dtype_is_torchs(dtype):
    x = torch.linspace(-3, 3, 101, dtype=dtype)
    torch.testing.assert_close(tanh(x), torch.tanh(x), rtol=0, atol=0)


def test_tanh_gives_a_value_the_same_bits_wherever_it_stands():
    x = torch.randn(64, generator=torch.Generator().manual_seed(0))
    for shift in range(1, 64):
        torch.testing.assert_close(tanh(x.roll(shift)), tanh(x).roll(shift), rtol=0, atol=0)


def test_tanh_has_the_derivative_1_minus_its_square():
    x = torch.linspace(-4, 4, 101, requires_grad=True)
    (slope,) = torch.autograd.grad(tanh(x).sum(), x)
    torch.testing.assert_close(slope, 1 - torch.tanh(x.detach()) ** 2, rtol=0, atol=5e-7)


def test_tanh_keeps_its_argument():
    x = torch.linspace(-4, 4, 101)
    tanh(x)
    torch.testing.assert_close(x, torch.linspace(-4, 4, 101), rtol=0, atol=0)
