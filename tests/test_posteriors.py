"""Posteriors: densities, divergences, draws and gradients, against torch.distributions."""

import math
import pickle

import pytest
import torch
from torch import distributions as D

from skvae.posteriors import Diagonal


def diagonal(raw):
    """N(mean, std**2), with log std bent into +-15, read from the formula."""
    mean, log_std = raw[..., : raw.shape[-1] // 2], raw[..., raw.shape[-1] // 2 :]
    return D.Independent(D.Normal(mean, (15 * torch.tanh(log_std / 15)).exp()), 1)


# One line for each posterior: the value and the distribution that its raw outputs stand for.
POSTERIORS = [pytest.param(Diagonal(), diagonal, id="Diagonal")]

every_posterior = pytest.mark.parametrize(("posterior", "oracle"), POSTERIORS)


def normals(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=torch.float64)


def raw_outputs(posterior, n_rows=6, n_components=3):
    return 1.5 * normals(n_rows, posterior.n_outputs(n_components), seed=1)


def prior(n_components):
    return D.Independent(D.Normal(torch.zeros(n_components).double(), 1.0), 1)


# --- every posterior --------------------------------------------------------------------------


@every_posterior
def test_mean_and_std_equal_torch_distributions(posterior, oracle):
    raw = raw_outputs(posterior)
    mean, std = posterior.mean_std(posterior.parameters(raw))
    torch.testing.assert_close(mean, oracle(raw).mean, rtol=1e-14, atol=0)
    torch.testing.assert_close(std, oracle(raw).stddev, rtol=1e-14, atol=0)


@every_posterior
@pytest.mark.parametrize("n_components", [1, 3])
def test_kl_equals_torch_distributions(posterior, oracle, n_components):
    raw = raw_outputs(posterior, n_components=n_components)
    kl = posterior.kl(posterior.parameters(raw))
    assert kl.shape == (6,)
    assert (kl > 0).all()
    expected = D.kl_divergence(oracle(raw), prior(n_components))
    torch.testing.assert_close(kl, expected, rtol=1e-13, atol=0)


@every_posterior
@pytest.mark.parametrize("n_rows_of_noise", [6, 1])
def test_log_prob_of_draws_equals_torch_distributions(posterior, oracle, n_rows_of_noise):
    raw, eps = raw_outputs(posterior), normals(4, n_rows_of_noise, 3)
    q = posterior.parameters(raw)
    z = posterior.rsample(q, eps)
    assert z.shape == (4, 6, 3)
    log_prob = posterior.log_prob(q, eps)
    assert log_prob.shape == (4, 6)
    # z - mean loses some digits where std is small: the oracle is rounded more.
    torch.testing.assert_close(log_prob, oracle(raw).log_prob(z), rtol=1e-11, atol=1e-11)


@every_posterior
def test_density_integrates_to_1(posterior, oracle):
    raw = raw_outputs(posterior, n_rows=5, n_components=1)
    q = posterior.parameters(raw)
    eps = torch.linspace(-10, 10, 401, dtype=torch.float64).reshape(-1, 1, 1)
    z, density = posterior.rsample(q, eps)[..., 0], posterior.log_prob(q, eps).exp()
    # Trapezia are exact to rounding for a smooth density that vanishes at the ends.
    torch.testing.assert_close(
        torch.trapezoid(density, z, dim=0), torch.ones(5).double(), rtol=0, atol=1e-12
    )


@every_posterior
def test_draws_have_mean_and_variance_of_the_density(posterior, oracle):
    raw, n = raw_outputs(posterior), 100_000
    z = posterior.rsample(posterior.parameters(raw), normals(n, 1, 3))
    mean, variance = oracle(raw).mean, oracle(raw).variance
    # Five standard errors.
    assert ((z.mean(0) - mean).abs() < 5 * (variance / n).sqrt()).all()
    assert ((z.var(0) - variance).abs() < 5 * variance * math.sqrt(2 / n)).all()


@every_posterior
def test_kl_is_the_mean_log_ratio_over_draws(posterior, oracle):
    raw, n = raw_outputs(posterior), 100_000
    q, eps = posterior.parameters(raw), normals(n, 1, 3)
    log_ratio = posterior.log_prob(q, eps) - prior(3).log_prob(posterior.rsample(q, eps))
    standard_error = log_ratio.std(0) / math.sqrt(n)
    assert ((log_ratio.mean(0) - posterior.kl(q)).abs() < 5 * standard_error).all()


@every_posterior
def test_a_gradient_reaches_every_raw_output(posterior, oracle):
    raw = raw_outputs(posterior).requires_grad_()
    q, eps = posterior.parameters(raw), normals(2, 6, 3)
    for quantity in (posterior.kl(q), posterior.rsample(q, eps).square()):
        (gradient,) = torch.autograd.grad(quantity.sum(), raw, retain_graph=True)
        assert (gradient != 0).all()


@every_posterior
@pytest.mark.parametrize("n_draws", [1, 3])
@pytest.mark.parametrize("n_models", [1, 3])
def test_vjp_equals_draws_and_kl_and_pulls_back_as_autograd_does(
    posterior, oracle, n_models, n_draws
):
    raw = torch.stack([(1 + m) * raw_outputs(posterior).roll(m, 0) for m in range(n_models)])
    raw, eps = raw.requires_grad_(), normals(n_models, n_draws, 6, 3)
    qs = [posterior.parameters(rows) for rows in raw]
    z = torch.stack([posterior.rsample(q, noise) for q, noise in zip(qs, eps, strict=True)])
    kl = torch.stack([posterior.kl(q) for q in qs])
    g_z, g_kl = normals(n_models, n_draws, 6, 3, seed=2), normals(n_models, 6, seed=3)
    (expected,) = torch.autograd.grad([z, kl], raw, [g_z, g_kl])

    with torch.no_grad():
        same_z, same_kl, pull = posterior.vjp(raw.detach(), eps)
        gradient = pull(g_z, g_kl)

    torch.testing.assert_close(same_z, z.detach(), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(same_kl, kl.detach(), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-13)


@every_posterior
@pytest.mark.parametrize("n_draws", [1, 3])
def test_vjp_of_a_stack_gives_what_each_member_gives_alone(posterior, oracle, n_draws):
    raw = 1.5 * normals(3, 6, posterior.n_outputs(3), seed=1)
    eps, g_z, g_kl = normals(3, n_draws, 6, 3), normals(3, n_draws, 6, 3, seed=2), normals(3, 6)
    z, kl, pull = posterior.vjp(raw, eps)
    gradient = pull(g_z, g_kl)
    for m in range(3):
        one = slice(m, m + 1)
        z_alone, kl_alone, pull_alone = posterior.vjp(raw[one], eps[one])
        # float64: rounding alone.
        for a, b in [
            (z[one], z_alone),
            (kl[one], kl_alone),
            (gradient[one], pull_alone(g_z[one], g_kl[one])),
        ]:
            torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


@every_posterior
@pytest.mark.parametrize(("n_components", "n_wider"), [(1, 5), (2, 3), (3, 3)])
def test_raw_outputs_in_their_places_say_the_same_and_the_prior_of_the_other_components(
    posterior, oracle, n_components, n_wider
):
    raw = raw_outputs(posterior, n_components=n_components)
    places = posterior.places(n_components, n_wider)
    assert len(places) == posterior.n_outputs(n_components)
    wide = torch.zeros(6, posterior.n_outputs(n_wider)).double()
    wide[:, places] = raw
    mean, std = posterior.mean_std(posterior.parameters(wide))
    for moment, own, of_prior in zip(
        (mean, std), posterior.mean_std(posterior.parameters(raw)), (0, 1), strict=True
    ):
        assert torch.equal(moment[:, :n_components], own)
        assert (moment[:, n_components:] == of_prior).all()


@every_posterior
def test_posterior_is_a_value(posterior, oracle):
    assert pickle.loads(pickle.dumps(posterior)) == posterior
    assert hash(posterior) == hash(pickle.loads(pickle.dumps(posterior)))
    assert eval(repr(posterior)) == posterior


# --- Diagonal ---------------------------------------------------------------------------------


def test_diagonal_of_raw_outputs_0_is_the_prior():
    posterior = Diagonal()
    q = posterior.parameters(torch.zeros(2, posterior.n_outputs(4)))
    assert posterior.kl(q).tolist() == [0, 0]


@pytest.mark.parametrize("raw_log_std", [-1e6, -40.0, 40.0, 1e6])
def test_diagonal_stays_finite_in_float32_for_raw_outputs_of_any_size(raw_log_std):
    posterior = Diagonal()
    q = posterior.parameters(torch.tensor([[0.5, raw_log_std]]))
    eps = torch.tensor([[[1.5]]])
    for quantity in (posterior.kl(q), posterior.rsample(q, eps), posterior.log_prob(q, eps)):
        assert torch.isfinite(quantity).all()


@pytest.mark.parametrize("raw_log_std", [-40.0, 40.0])
def test_diagonal_lets_a_gradient_through_where_a_clamp_would_not(raw_log_std):
    posterior = Diagonal()
    raw = torch.tensor([[0.5, raw_log_std]], requires_grad=True)
    posterior.kl(posterior.parameters(raw)).sum().backward()
    assert raw.grad[0, 1].sign() == math.copysign(1, raw_log_std)  # towards the prior
