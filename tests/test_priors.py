"""Priors: densities, draws and gradients, against torch.distributions."""

import math
import pickle

import pytest
import torch
from torch import distributions as D

from skvae.priors import StandardNormal

SIZES = [1, 2, 5]


def standard_normal(n_components):
    return D.Independent(D.Normal(torch.zeros(n_components).double(), 1.0), 1)


# One line for each prior: the value and its distribution over L components.
PRIORS = [pytest.param(StandardNormal(), standard_normal, id="StandardNormal")]

every_prior = pytest.mark.parametrize(("prior", "oracle"), PRIORS)


def noise(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64)


@every_prior
@pytest.mark.parametrize("n_components", SIZES)
def test_log_prob_equals_torch_distributions(prior, oracle, n_components):
    z = 3 * noise(4, 6, n_components)
    log_prob = prior.log_prob(z)
    assert log_prob.shape == (4, 6)
    torch.testing.assert_close(log_prob, oracle(n_components).log_prob(z), rtol=1e-14, atol=1e-14)


@every_prior
@pytest.mark.parametrize("n_components", [1, 2])
def test_density_integrates_to_1(prior, oracle, n_components):
    axis = torch.linspace(-10, 10, 401, dtype=torch.float64)
    z = torch.cartesian_prod(*[axis] * n_components).reshape(-1, n_components)
    step = (axis[1] - axis[0]).item() ** n_components
    # Trapezia are exact to rounding for a smooth density that vanishes at the ends.
    assert prior.log_prob(z).exp().sum().item() * step == pytest.approx(1, abs=1e-12)


@every_prior
@pytest.mark.parametrize("n_components", SIZES)
def test_draws_have_mean_and_variance_of_the_density(prior, oracle, n_components):
    n = 100_000
    z = prior.rsample(noise(n, n_components))
    assert z.shape == (n, n_components)
    mean, variance = oracle(n_components).mean, oracle(n_components).variance
    # Five standard errors.
    assert ((z.mean(0) - mean).abs() < 5 * (variance / n).sqrt()).all()
    assert ((z.var(0) - variance).abs() < 5 * variance * math.sqrt(2 / n)).all()
    correlation = torch.corrcoef(z.T).reshape(n_components, n_components)
    off_diagonal = correlation - torch.eye(n_components).double()
    assert (off_diagonal.abs() < 5 / math.sqrt(n)).all()


@every_prior
def test_gradient_of_log_prob_equals_that_of_torch_distributions(prior, oracle):
    z = noise(4, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(prior.log_prob(z).sum(), z)
    (expected,) = torch.autograd.grad(oracle(3).log_prob(z).sum(), z)
    torch.testing.assert_close(gradient, expected, rtol=1e-14, atol=0)
    assert (gradient != 0).all()


@every_prior
def test_prior_is_a_value(prior, oracle):
    assert pickle.loads(pickle.dumps(prior)) == prior
    assert hash(prior) == hash(pickle.loads(pickle.dumps(prior)))
    assert eval(repr(prior)) == prior
