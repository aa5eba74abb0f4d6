"""Importance sampling, by distributions whose integrals and tails are known."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from skvae._model import importance


def draws(n_samples, n_components, n_rows, seed=0):
    """Draws of scaled noise, one set a row, and their strata."""
    of = importance.strata(n_samples, n_components)
    generator = torch.Generator().manual_seed(seed)
    shape = n_samples, n_rows, n_components
    eps = torch.randn(shape, generator=generator, dtype=torch.float64)
    return eps * torch.from_numpy(importance.scales(of))[:, None, None], of


def estimate(n_samples, n_components, n_rows, std, shift=0.0):
    """Estimates of the integral, which is 1, of a normal density N(shift, std) in noise space."""
    eps, of = draws(n_samples, n_components, n_rows)
    ratio = importance.log_ratio(eps, of)
    target = -0.5 * ((eps - shift) / std).square().sum(-1) - n_components * math.log(std)
    log_weight = target + 0.5 * eps.square().sum(-1) - ratio
    return *importance.log_mean(log_weight, ratio, of), log_weight


# --- draws ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_components", [1, 2, 16])
@pytest.mark.parametrize("n_samples", [40, 41, 99, 100, 5000])
def test_a_fifth_of_the_draws_is_wider_with_even_numbers(n_samples, n_components):
    of = importance.strata(n_samples, n_components)
    sizes = [n for _, n in of]
    assert sum(sizes) == n_samples == len(importance.scales(of))
    assert of[0][0] == 1.0
    assert all(n % 2 == 0 and n >= 2 for n in sizes[1:])
    assert 0.2 - 6 / n_samples <= sum(sizes[1:]) / n_samples <= 0.2


@pytest.mark.parametrize("n_samples", [1, 2, 39])
def test_fewer_than_forty_draws_are_all_of_q(n_samples):
    assert importance.strata(n_samples, 2) == [(1.0, n_samples)]


def test_log_ratio_is_that_of_the_mixture_and_the_standard_normal_density():
    eps, of = draws(100, 3, 5)
    density = sum(n / 100 * stats.norm(scale=scale).pdf(eps.numpy()).prod(-1) for scale, n in of)
    expected = np.log(density / stats.norm.pdf(eps.numpy()).prod(-1))
    np.testing.assert_allclose(importance.log_ratio(eps, of), expected, rtol=1e-9, atol=1e-12)


# --- the mean weight --------------------------------------------------------------------------


@pytest.mark.parametrize("n_samples", [7, 40, 101])
@pytest.mark.parametrize(("std", "shift"), [(1.0, 0.0), (0.7, 0.4), (1.3, 0.0)])
def test_the_mean_weight_is_unbiased(n_samples, std, shift):
    if n_samples == 7 and std > 1:
        std = 1.2  # beyond sqrt(2) weights of q alone have no variance
    log_mean, _, _ = estimate(n_samples, 2, 10_000, std, shift)
    mean = log_mean.exp().numpy()
    error = mean.std(ddof=1) / math.sqrt(len(mean))
    assert mean.mean() == pytest.approx(1, abs=5 * error + 1e-12)


@pytest.mark.parametrize("n_components", [1, 4, 16])
def test_the_estimate_is_nearly_exact_where_q_is_the_true_posterior(n_components):
    # The control variate: the rest is the product of two errors of 1/r.
    log_mean, error, _ = estimate(100, n_components, 500, std=1.0)
    assert log_mean.abs().mean() < 0.002
    assert error.max() < 3e-4


@pytest.mark.parametrize("n_components", [2, 16])
@pytest.mark.parametrize(("std", "shift"), [(0.8, 0.1), (0.9, 0.3)])
def test_the_variance_is_within_1_3_times_that_of_draws_of_q_where_q_is_good(
    n_components, std, shift
):
    log_mean, _, _ = estimate(200, n_components, 3000, std, shift / math.sqrt(n_components))
    generator = torch.Generator().manual_seed(1)
    eps = torch.randn((200, 3000, n_components), generator=generator, dtype=torch.float64)
    target = -0.5 * ((eps - shift / math.sqrt(n_components)) / std).square().sum(-1)
    log_weight = target - n_components * math.log(std) + 0.5 * eps.square().sum(-1)
    alone = (torch.logsumexp(log_weight, 0) - math.log(200)).var()
    # 1 / 0.8, as a fifth is not drawn from q. Of a variance of 3000 values, 2.6 % is chance.
    assert log_mean.var() < 1.3 * alone


@pytest.mark.parametrize("std", [2.0, 4.0])
@pytest.mark.parametrize("n_components", [2, 8])
def test_the_estimate_is_right_where_q_is_far_too_narrow(n_components, std):
    log_mean, error, _ = estimate(2000, n_components, 200, std)
    # Of q alone, the estimate in 8 dimensions is off by more than 1 at these standard deviations.
    assert log_mean.abs().max() < 0.5
    assert log_mean.mean() == pytest.approx(0, abs=0.02)
    assert (log_mean / error).square().mean() == pytest.approx(1, abs=0.4)


def test_a_row_without_any_weight_has_the_logarithm_of_0():
    eps, of = draws(100, 2, 2)
    ratio = importance.log_ratio(eps, of)
    log_weight = torch.stack([torch.zeros(100), torch.full((100,), -math.inf)], 1).double()
    log_mean, _ = importance.log_mean(log_weight - ratio, ratio, of)
    assert log_mean[0].abs() < 0.1
    assert log_mean[1] == -math.inf


# --- Pareto k-hat -----------------------------------------------------------------------------


@pytest.mark.parametrize("k", [-0.5, -0.2, 0.1, 0.5, 0.9, 1.5])
def test_the_fit_of_a_pareto_tail_finds_its_shape(k):
    n, n_rows = 1000, 100
    x = stats.genpareto(k, scale=3.0).rvs((n, n_rows), random_state=np.random.default_rng(0))
    fitted = importance.fit_pareto(np.sort(x, axis=0))
    # The standard error of maximum likelihood is (1 + k) / sqrt(n) above -0.5.
    error = (1 + k) / math.sqrt(n)
    assert fitted.mean() == pytest.approx(k, abs=0.01 + 5 * error / math.sqrt(n_rows))
    assert fitted.std() == pytest.approx(error, rel=0.3)


def test_the_fit_does_not_depend_on_the_scale():
    x = np.sort(stats.genpareto(0.7).rvs((50, 4), random_state=np.random.default_rng(0)), axis=0)
    np.testing.assert_allclose(
        importance.fit_pareto(x), importance.fit_pareto(1e-30 * x), rtol=1e-10
    )


@pytest.mark.parametrize("alpha", [1.0, 1.5, 3.0])
def test_k_hat_is_the_inverse_of_the_index_of_a_heavy_tail(alpha):
    # P(w > t) = t^-alpha: k = 1 / alpha.
    w = np.random.default_rng(0).pareto(alpha, (20_000, 50)) + 1
    k = importance.pareto_k(np.log(w))
    tail = 425
    error = (1 + 1 / alpha) / math.sqrt(tail)
    assert k.mean() == pytest.approx(1 / alpha, abs=0.02 + 5 * error / math.sqrt(50))


def test_k_hat_is_small_for_bounded_weights_and_0_for_equal_ones():
    rng = np.random.default_rng(0)
    assert (importance.pareto_k(np.log(rng.random((1000, 50)))) < 0).all()
    np.testing.assert_array_equal(importance.pareto_k(np.full((1000, 3), 2.0)), 0)


def test_k_hat_is_large_where_one_draw_has_all_the_weight():
    log_weight = np.random.default_rng(0).normal(size=(1000, 3))
    log_weight[7] += 2000
    assert (importance.pareto_k(log_weight) > 1).all()


def test_k_hat_of_few_draws_is_nan():
    rng = np.random.default_rng(0)
    assert np.isnan(importance.pareto_k(rng.normal(size=(24, 3)))).all()
    assert np.isfinite(importance.pareto_k(rng.normal(size=(25, 3)))).all()
