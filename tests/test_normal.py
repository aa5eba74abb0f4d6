"""Densities of many normal distributions at many points."""

import pytest
import torch
from torch import distributions as D

from skvae._backend import normal


def normals(*shape, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("n_distributions", [1, 3, 40])
@pytest.mark.parametrize("n_components", [1, 2, 5])
@pytest.mark.parametrize("points", [(7,), (2, 7)])
def test_log_density_is_that_of_torch_distributions(n_distributions, n_components, points):
    z = 3 * normals(*points, n_components)
    mean = 5 * normals(n_distributions, n_components, seed=1)
    log_std = normals(n_distributions, n_components, seed=2)
    expected = D.Normal(mean, log_std.exp()).log_prob(z.unsqueeze(-2)).sum(-1)
    log_density = normal.log_density(z, mean, log_std)
    torch.testing.assert_close(log_density, expected, rtol=1e-12, atol=1e-11)


def test_log_density_of_float32_keeps_what_squares_of_large_numbers_cancel():
    # 1e8 - 1e8 where the density is highest: float32 has 7 digits.
    mean, log_std = torch.full((1, 4), 10.0), torch.full((1, 4), -7.0)
    z = mean + log_std.exp() * normals(5, 4, dtype=torch.float32)
    exact = D.Normal(mean.double(), log_std.double().exp()).log_prob(z.double()).sum(-1)
    log_density = normal.log_density(z, mean, log_std).squeeze(-1)
    assert log_density.dtype == torch.float32
    torch.testing.assert_close(log_density, exact.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_distributions", [3, 40])
@pytest.mark.parametrize("n_components", [1, 2, 5])
def test_a_point_has_the_same_density_wherever_it_stands(n_distributions, n_components):
    # In blocks of a multiple of 32 points, as inference has them.
    z = normals(256, n_components, dtype=torch.float32)
    mean, log_std = (
        normals(n_distributions, n_components, seed=1),
        0.1 * normals(n_distributions, n_components, seed=2),
    )
    order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    whole = normal.log_density(z, mean.float(), log_std.float())
    moved = normal.log_density(z[order], mean.float(), log_std.float())
    assert torch.equal(moved, whole[order])


@pytest.mark.parametrize("n_models", [1, 3])
@pytest.mark.parametrize(("n_distributions", "n_components"), [(1, 1), (5, 3), (40, 2)])
def test_vjp_of_mixtures_is_that_of_autograd(n_models, n_distributions, n_components):
    shape = n_models, n_distributions, n_components
    inputs = [
        2 * normals(n_models, 7, n_components),
        normals(*shape[:2], seed=1),
        normals(*shape, seed=2),
        0.5 * normals(*shape, seed=3),
    ]
    z, log_weight, mean, log_std = (tensor.requires_grad_() for tensor in inputs)
    of_each = D.Normal(mean.unsqueeze(1), log_std.exp().unsqueeze(1)).log_prob(z.unsqueeze(2))
    expected = torch.logsumexp(of_each.sum(-1) + log_weight.unsqueeze(1), -1)
    g = normals(n_models, 7, seed=4)
    gradients = torch.autograd.grad(expected, inputs, g)
    with torch.inference_mode():
        log_p, pull = normal.mixture_vjp(*(tensor.detach().clone() for tensor in inputs))
        pulled = pull(g)
    torch.testing.assert_close(log_p, expected.detach(), rtol=1e-12, atol=1e-12)
    for a, b in zip(pulled, gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
