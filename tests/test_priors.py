"""Priors: densities, draws and gradients, against torch.distributions."""

import math
import pickle
import re
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import distributions as D

from skvae.posteriors import Diagonal, Full
from skvae.priors import PRIORS, Mixture, StandardNormal, Vamp

SIZES = [1, 2, 5]


def noise(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64)


class Start(NamedTuple):
    """A prior at work: what `_model` makes of it, in float64, and its distribution."""

    prior: object
    module: torch.nn.Module
    oracle: D.Distribution
    encoded: tuple = ()  # the posteriors of the pseudo-inputs, if the prior has some

    def log_prob(self, z):
        return self.prior.log_prob(self.module, z, *self.encoded)

    def rsample(self, n, seed=0):
        n_noise = self.prior.n_noise(self.oracle.event_shape[0])
        return self.prior.rsample(self.module, noise(n, n_noise, seed=seed), *self.encoded)


def mixture_of(weights, components):
    return D.MixtureSameFamily(D.Categorical(weights), components)


def standard_normal(n_components):
    normal = D.Independent(D.Normal(torch.zeros(n_components).double(), 1.0), 1)
    return Start(StandardNormal(), StandardNormal().build(4, n_components), normal)


def mixture(n):
    def start(n_components):
        prior = Mixture(n)
        module = prior.build(4, n_components).double()
        with torch.no_grad():
            for seed, p in enumerate(module.parameters()):
                p.copy_(noise(*p.shape, seed=seed))
            module.mean.mul_(2)
        std = (6 * torch.tanh(module.raw_std / 6)).exp()
        normals = D.Independent(D.Normal(module.mean, std), 1)
        return Start(prior, module, mixture_of(module.log_weight.softmax(-1), normals))

    return start


def vamp(n, posterior):
    """With the linear encoder raw = u A, of pseudo-inputs u (n, 4)."""

    def start(n_components):
        prior = Vamp(n)
        module = prior.build(4, n_components).double()
        with torch.no_grad():
            prior.initialise(module, noise(n, 4), torch.Generator())
        raw = 0.5 * module.pseudo_inputs @ noise(4, posterior.n_outputs(n_components), seed=1)
        q = posterior.parameters(raw)
        factor = torch.diag_embed(q.log_std.exp())
        factor = factor if q.below is None else factor + q.below
        normals = D.MultivariateNormal(q.mean, scale_tril=factor)
        encoded = SimpleNamespace(
            log_density=lambda z: posterior.log_density(None, q, z),
            rsample=lambda i, eps: q.mean[i] + (factor[i] @ eps[..., None])[..., 0],
        )
        equal = mixture_of(torch.ones(n).double(), normals)
        return Start(prior, module, equal, (encoded,))

    return start


# One line for each prior: what starts it for L components.
STARTS = [
    pytest.param(standard_normal, id="StandardNormal"),
    pytest.param(mixture(1), id="Mixture(1)"),
    pytest.param(mixture(4), id="Mixture(4)"),
    pytest.param(vamp(1, Diagonal()), id="Vamp(1)"),
    pytest.param(vamp(5, Diagonal()), id="Vamp(5)-Diagonal"),
    pytest.param(vamp(5, Full()), id="Vamp(5)-Full"),
]

every_prior = pytest.mark.parametrize("start", STARTS)


@every_prior
@pytest.mark.parametrize("n_components", SIZES)
def test_log_prob_equals_torch_distributions(start, n_components):
    s, z = start(n_components), 3 * noise(4, 6, n_components)
    log_prob = s.log_prob(z)
    assert log_prob.shape == (4, 6)
    # (z - mean) / std is rounded in another order.
    torch.testing.assert_close(log_prob, s.oracle.log_prob(z), rtol=1e-12, atol=1e-12)


@every_prior
@pytest.mark.parametrize("n_components", [1, 2])
def test_density_integrates_to_1(start, n_components):
    s = start(n_components)
    # z = sinh(u) is dense near the origin. Trapezia are exact to rounding for a smooth density
    # that vanishes at the ends.
    u = torch.linspace(-5, 5, 801, dtype=torch.float64)
    z = torch.cartesian_prod(*[u.sinh()] * n_components).reshape(-1, n_components)
    weight = torch.cartesian_prod(*[u.cosh()] * n_components).reshape(-1, n_components).prod(-1)
    with torch.no_grad():
        total = (s.log_prob(z).exp() * weight).sum().item() * (u[1] - u[0]).item() ** n_components
    assert total == pytest.approx(1, abs=1e-10)


@every_prior
@pytest.mark.parametrize("n_components", SIZES)
def test_draws_have_mean_variance_and_log_density_of_the_density(start, n_components):
    n, s = 100_000, start(n_components)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        z = s.rsample(n)
        mean, variance = s.oracle.mean, s.oracle.variance
        log_prob = s.log_prob(z)
        of_oracle = s.log_prob(s.oracle.sample((n,)))  # torch's draws, by its own generator
    assert z.shape == (n, n_components)
    # Five standard errors; that of the variance from the spread of the squares.
    square = (z - mean).square()
    assert ((z.mean(0) - mean).abs() < 5 * (variance / n).sqrt()).all()
    limit = 5 * square.std(0) / math.sqrt(n) + 25 * variance / n
    assert ((square.mean(0) - variance).abs() < limit).all()
    # -entropy: it is the same only if all of the shape is.
    limit = 5 * (log_prob.var() / n + of_oracle.var() / n).sqrt()
    assert (log_prob.mean() - of_oracle.mean()).abs() < limit


@every_prior
def test_draws_have_the_characteristic_function_of_the_density(start):
    n, s = 100_000, start(1)
    u = torch.linspace(-5, 5, 4001, dtype=torch.float64)
    z, step = u.sinh(), (u[1] - u[0]).item()
    with torch.no_grad():
        drawn = s.rsample(n)[:, 0]
        density = s.log_prob(z[:, None]).exp() * u.cosh() * step
    for function in (torch.cos, torch.sin):
        for frequency in (0.3, 1.0, 4.0):
            expected, value = (density * function(frequency * z)).sum(), function(frequency * drawn)
            # Five standard errors.
            assert (value.mean() - expected).abs() < 5 * value.std() / math.sqrt(n)


@every_prior
def test_gradients_of_log_prob_equal_those_of_torch_distributions(start):
    s, z = start(3), noise(4, 3).requires_grad_()
    parameters = list(s.module.parameters())
    assert bool(parameters) == (s.prior != StandardNormal())
    gradients = torch.autograd.grad(s.log_prob(z).sum(), [z, *parameters], retain_graph=True)
    expected = torch.autograd.grad(
        s.oracle.log_prob(z).sum(), [z, *parameters], materialize_grads=True, allow_unused=True
    )
    torch.testing.assert_close(gradients, expected, rtol=1e-11, atol=1e-12)
    for gradient in gradients:  # one weight alone says nothing
        assert (gradient != 0).all() or gradient.numel() == 1


@every_prior
def test_prior_is_a_value(start):
    prior = start(1).prior
    assert pickle.loads(pickle.dumps(prior)) == prior
    assert hash(prior) == hash(pickle.loads(pickle.dumps(prior)))
    assert eval(repr(prior)) == prior


def test_names_of_priors_stand_for_values():
    assert PRIORS["standard_normal"] == StandardNormal()


@pytest.mark.parametrize("n_components", SIZES)
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


def test_vamp_starts_from_the_rows_that_it_is_given():
    prior, rows = Vamp(3), torch.arange(12.0).view(3, 4)
    module = prior.build(4, 2)
    with torch.no_grad():
        prior.initialise(module, rows, torch.Generator())
    assert prior.n_pseudo_inputs == 3
    assert torch.equal(module.pseudo_inputs, rows)


@pytest.mark.parametrize("prior", [Mixture, Vamp])
@pytest.mark.parametrize("n", [0, -1, 2.0, "10", None, True])
def test_prior_refuses_what_is_no_number_of_components(prior, n):
    message = f"The n of a {prior.__name__} prior must be a positive integer. Got {n!r} instead."
    with pytest.raises(ValueError, match=re.escape(message)):
        prior(n)
