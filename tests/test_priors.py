"""Priors: the laws of all, and log-densities against torch.distributions."""

import math
import re

import own_parts
import pytest
import torch
from prior_laws import Case, PriorLaws, normals, start
from torch import distributions as D

from skvae.posteriors import Diagonal, Full
from skvae.priors import PRIORS, Mixture, StandardNormal, Vamp


def mixture_of(weights, components):
    return D.MixtureSameFamily(D.Categorical(weights), components)


def standard_normal(s, n_components):
    return D.Independent(D.Normal(torch.zeros(n_components).double(), 1.0), 1)


def mixture(s, n_components):
    std = (6 * torch.tanh(s.module.raw_std / 6)).exp()
    normal = D.Independent(D.Normal(s.module.mean, std), 1)
    return mixture_of(s.module.log_weight.softmax(-1), normal)


def vamp(s, n_components):
    factor = torch.diag_embed(s.q.log_std.exp())
    factor = factor if s.q.below is None else factor + s.q.below
    normal = D.MultivariateNormal(s.q.mean, scale_tril=factor)
    return mixture_of(torch.ones(len(factor)).double(), normal)


CASES = [
    Case(StandardNormal(), standard_normal),
    Case(Mixture(1), mixture),
    Case(Mixture(4), mixture),
    Case(Vamp(1), vamp),
    Case(Vamp(5), vamp, Diagonal()),
    Case(Vamp(5), vamp, Full()),
]
OF_A_USER = [
    # Trapezia see the kink of the density to the square of their steps.
    Case(own_parts.Laplace(), tolerance=1e-4),
    Case(own_parts.Shifted(), sizes=(2, 3)),
    Case(own_parts.Tempered()),
    Case(own_parts.Weighted()),
    Case(own_parts.WideStandard()),
]


def name(case):
    return f"{case.prior}-{case.posterior}"


class TestEveryPrior(PriorLaws):
    @pytest.fixture(params=CASES + OF_A_USER, ids=name)
    def case(self, request):
        return request.param


@pytest.mark.parametrize("case", CASES, ids=name)
@pytest.mark.parametrize("n_components", [1, 2, 5])
def test_log_prob_equals_torch_distributions(case, n_components):
    s, z = start(case, n_components), 3 * normals(4, 6, n_components)
    expected = case.oracle(s, n_components).log_prob(z)
    # (z - mean) / std is rounded in another order.
    torch.testing.assert_close(s.log_prob(z), expected, rtol=1e-12, atol=1e-12)


def test_names_of_priors_stand_for_values():
    assert PRIORS["standard_normal"] == StandardNormal()


@pytest.mark.parametrize("n_components", [1, 2, 5])
def test_mixture_starts_near_the_standard_normal_from_its_generator_alone(n_components):
    prior, n = Mixture(20_000), 20_000
    before = torch.get_rng_state()

    def made(seed):
        module = prior.build(4, n_components).double()
        prior.initialise(module, None, torch.Generator().manual_seed(seed))
        return module

    module = made(0)
    assert torch.equal(made(0).mean, module.mean)
    assert not torch.equal(made(1).mean, module.mean)
    assert torch.equal(torch.get_rng_state(), before)
    assert (module.log_weight == 0).all()
    std = (6 * torch.tanh(module.raw_std / 6)).exp()
    # Half of the variance is that of the means; five standard errors.
    torch.testing.assert_close(std, torch.full_like(std, math.sqrt(0.5)), rtol=1e-12, atol=0)
    assert (module.mean.mean(0).abs() < 5 * math.sqrt(0.5 / n)).all()
    assert ((module.mean.var(0) - 0.5).abs() < 5 * 0.5 * math.sqrt(2 / n)).all()


def test_mixture_stays_finite_in_float32_for_values_of_any_size():
    prior = Mixture(3)
    for size in (1e3, -1e3, 1e6):
        module = prior.build(4, 2)
        with torch.no_grad():
            for p in module.parameters():
                p.copy_(size * torch.linspace(0, 1, p.numel()).view_as(p))
        assert torch.isfinite(prior.log_prob(module, torch.ones(2, 2))).all()
        assert torch.isfinite(prior.rsample(module, torch.ones(2, 3))).all()


@pytest.mark.parametrize("prior", [Mixture, Vamp])
@pytest.mark.parametrize("n", [0, -1, 2.0, "10", None, True])
def test_prior_refuses_what_is_no_number_of_components(prior, n):
    message = f"The n of a {prior.__name__} prior must be a positive integer. Got {n!r} instead."
    with pytest.raises(ValueError, match=re.escape(message)):
        prior(n)
