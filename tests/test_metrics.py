"""Metrics: of a linear Gaussian model all is known, log p(x) and the true posterior too."""

import copy
import functools
import math

import numpy as np
import pytest
import torch
from sklearn import config_context
from sklearn.datasets import make_swiss_roll
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import distributions as D

from skvae import VAETransformer, metrics
from skvae._fit import execution
from skvae.likelihoods import Gaussian
from skvae.posteriors import Flow
from skvae.priors import Mixture, Vamp

ESTIMATES = {
    name: getattr(metrics, name) for name in ("log_likelihood", "elbo", "reconstruction", "kl")
}
every_estimate = pytest.mark.parametrize("metric", ESTIMATES.values(), ids=ESTIMATES)


def rows(n_rows=60):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n_rows, 4)) @ rng.normal(size=(4, 4)) * [1, 2, 0.5, 4] + [3, -1, 0, 9]


@functools.cache
def fitted(**params):
    """A linear model in float64, of few epochs from random weights: q is not the true posterior."""
    few = {"max_iter": 100, "learning_rate": 0.03}
    linear = {"hidden_layer_sizes": (), "likelihood": Gaussian("per_feature")}
    params = {"n_components": 2} | linear | few | params
    vae = VAETransformer(
        **params, early_stopping=False, precision="float64", random_state=0, device="cpu"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execution, "begins_as_factors", lambda job: False)
        return vae.fit(rows())


# One line for each combination of prior and posterior.
PARTS = {
    "standard-diagonal": {},
    "standard-full": {"posterior": "full"},
    "mixture-diagonal": {"prior": Mixture(3)},
    "vamp-full": {"prior": Vamp(5), "posterior": "full"},
    "flow": {"posterior": Flow(hidden_layer_sizes=(8,), n_context=3)},
}
every_part = pytest.mark.parametrize("params", PARTS.values(), ids=PARTS)


@torch.no_grad()
def truth(vae, X):
    """Exact log p(x), ELBO and KL(q || p(z)) of each row, in nats, by torch.distributions."""
    model = vae.to_module()
    y = (torch.tensor(X) - model.location) / model.scale
    weight, bias = model.decoder[0].weight, model.decoder[0].bias
    variance = model.observation.floor + model.observation.raw_variance.exp()
    mean, std = model.encode(torch.tensor(X))
    log_p = D.MultivariateNormal(bias, weight @ weight.T + variance.diag()).log_prob(y)
    precision = torch.eye(2).double() + (weight.T / variance) @ weight
    posterior = D.MultivariateNormal(
        ((y - bias) / variance) @ weight @ precision.inverse(), precision_matrix=precision
    )
    q = D.MultivariateNormal(mean, scale_tril=torch.diag_embed(std))
    log_p = log_p - model.scale.log().sum()
    prior = D.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    terms = log_p, log_p - D.kl_divergence(q, posterior), D.kl_divergence(q, prior)
    return [term.numpy() for term in terms]


# --- estimates and the truth ------------------------------------------------------------------


def test_elbo_of_each_row_is_the_exact_one_within_its_standard_error():
    vae, X = fitted(), rows()
    _, exact, _ = truth(vae, X)
    elbo, error = metrics.elbo(
        vae, X, n_samples=400, random_state=0, per_sample=True, return_std_error=True
    )
    assert elbo.shape == error.shape == (60,)
    # Sixty rows: five standard errors.
    assert (np.abs(elbo - exact) < 5 * error).all()
    assert np.abs(elbo - exact).mean() > 1e-6  # by draws
    # The square of what is normal over its standard error has mean 1 and variance 2.
    assert np.square((elbo - exact) / error).mean() == pytest.approx(1, abs=5 * math.sqrt(2 / 60))


def test_kl_of_each_row_is_the_exact_one():
    vae, X = fitted(), rows()
    kl, error = metrics.kl(vae, X, per_sample=True, return_std_error=True)
    np.testing.assert_allclose(kl, truth(vae, X)[2], rtol=1e-12)
    assert not error.any()


def test_log_likelihood_is_between_the_elbo_and_the_exact_log_density():
    vae, X = fitted(), rows()
    exact, elbo, _ = truth(vae, X)
    values, errors = metrics.log_likelihood(
        vae, X, n_samples=5000, random_state=0, per_sample=True, return_std_error=True
    )
    # By draws alone, of the mean over rows.
    error = math.sqrt(np.square(errors).sum()) / len(X)
    assert elbo.mean() + 0.3 < values.mean() < exact.mean() + 3 * error
    # Where q is near the true posterior a few draws are enough to come to log p(x).
    near = exact - elbo < 0.3
    assert near.sum() > 20
    assert (np.abs(values - exact)[near] < 5 * errors[near]).all()
    assert errors[near].max() < 0.1


def test_gap_of_log_likelihood_falls_with_the_number_of_draws():
    vae, X = fitted(), rows()
    exact, elbo, _ = (term.mean() for term in truth(vae, X))
    estimates = np.array(
        [
            [metrics.log_likelihood(vae, X, n_samples=n, random_state=i) for i in range(20)]
            for n in (1, 4, 16, 64)
        ]
    )
    gaps = (exact - estimates).mean(axis=1)
    assert np.all(np.diff(gaps) < 0)
    # One draw: the ELBO on average. Five standard errors.
    error = estimates[0].std(ddof=1) / math.sqrt(20)
    assert gaps[0] == pytest.approx(exact - elbo, abs=5 * error)


def test_elbo_and_score_agree_for_models_of_many_draws():
    # Such models have log-densities that vary much under q: 64 draws were off by -0.35 and 0.02,
    # 256 by -0.16 and 0.20, 1,024 by -0.01 and 0.01, with 8 and with 16 components.
    X = make_swiss_roll(500, noise=0.5, random_state=0)[0]
    vae = VAETransformer(
        8,
        n_importance_samples=10,
        max_iter=120,
        early_stopping=False,
        n_score_draws=1024,
        random_state=0,
        device="cpu",
    ).fit(X[:400])
    values, errors = metrics.elbo(
        vae, X[400:], n_samples=3000, random_state=0, per_sample=True, return_std_error=True
    )
    assert math.sqrt(np.square(errors).sum()) / 100 < 0.05
    assert values.mean() == pytest.approx(vae.score(X[400:]), abs=0.1)


@every_part
@pytest.mark.parametrize("per_sample", [False, True])
def test_reconstruction_and_kl_sum_to_minus_the_elbo(params, per_sample):
    vae, options = fitted(**params), {"n_samples": 7, "random_state": 0, "per_sample": per_sample}
    reconstruction, kl, elbo = (
        metric(vae, rows(), **options)
        for metric in (metrics.reconstruction, metrics.kl, metrics.elbo)
    )
    np.testing.assert_allclose(reconstruction + kl, -elbo, rtol=1e-12)


@pytest.mark.parametrize(
    "params", [PARTS[name] for name in ("mixture-diagonal", "vamp-full", "flow")], ids=str
)
def test_log_likelihood_is_at_least_the_elbo_of_the_same_draws(params):
    # Jensen's inequality, row by row where the KL divergence is estimated by the draws too.
    vae, X = fitted(**params), rows()
    options = {"random_state": 0, "per_sample": True}
    one, elbo_of_one, several, elbo_of_several = (
        metric(vae, X, n_samples=n, **options)
        for n in (1, 20)
        for metric in (metrics.log_likelihood, metrics.elbo)
    )
    np.testing.assert_allclose(one, elbo_of_one, rtol=1e-12)
    assert (several > elbo_of_several).all()


@pytest.mark.parametrize(("n_samples", "per_sample"), [(1, True), (7, False), (300, True)])
@every_part
def test_reconstruction_per_feature_sums_to_the_whole(params, n_samples, per_sample):
    options = {"n_samples": n_samples, "random_state": 0, "per_sample": per_sample}
    vae, X = fitted(**params), rows(200)
    whole = metrics.reconstruction(vae, X, **options)
    each = metrics.reconstruction(vae, X, per_feature=True, **options)
    assert each.shape == (200, 4) if per_sample else (4,)
    np.testing.assert_allclose(each.sum(-1), whole, rtol=1e-11)


def test_reconstruction_of_a_constant_column_is_0():
    X = np.insert(rows(), 1, 7.0, axis=1)
    vae = VAETransformer(2, hidden_layer_sizes=(), max_iter=2, random_state=0).fit(X)
    each = metrics.reconstruction(vae, X, per_feature=True, random_state=0)
    assert each[1] == 0
    assert (np.delete(each, 1) != 0).all()


def test_kl_per_component_sums_to_kl():
    vae, X = fitted(), rows()
    each = metrics.kl_per_component(vae, X)
    assert each.shape == (2,)
    assert (each > 0).all()
    np.testing.assert_allclose(each.sum(), metrics.kl(vae, X, n_samples=1), rtol=1e-12)


# --- Pareto k-hat -----------------------------------------------------------------------------


def narrowed(by):
    """The linear model, with standard deviations of q that are `by` times smaller."""
    vae = copy.deepcopy(fitted())
    bias = vae.state_["encoder.0.bias"].copy()
    bias[2:] -= math.log(by)  # nearly that: the bend of log std is slight here
    vae.state_ = {**vae.state_, "encoder.0.bias": bias}
    return vae


@pytest.mark.parametrize("by", [4, 8])
def test_log_likelihood_is_right_where_q_is_too_narrow(by):
    vae, X = narrowed(by), rows()
    exact = truth(fitted(), X)[0]
    values, errors, k = metrics.log_likelihood(
        vae,
        X,
        n_samples=4000,
        random_state=0,
        per_sample=True,
        return_std_error=True,
        return_pareto_k=True,
    )
    # Draws of q alone are too low by 0.8 and 1.9 nats, many of their own standard errors.
    assert (k < 0.7).mean() > 0.9
    assert values.mean() == pytest.approx(exact.mean(), abs=0.06)
    assert np.median(np.abs(values - exact) / errors) < 1.2  # 0.67 of a normal distribution


def test_k_hat_comes_last_and_per_row_and_leaves_the_other_results_as_they_are():
    vae, X, options = fitted(), rows(), {"n_samples": 50, "random_state": 0}
    for per_sample in (False, True):
        options["per_sample"] = per_sample
        value = metrics.log_likelihood(vae, X, **options)
        same, k = metrics.log_likelihood(vae, X, return_pareto_k=True, **options)
        np.testing.assert_array_equal(same, value)
        assert k.shape == (60,)
        value, error = metrics.log_likelihood(vae, X, return_std_error=True, **options)
        results = metrics.log_likelihood(
            vae, X, return_std_error=True, return_pareto_k=True, **options
        )
        for result, expected in zip(results, (value, error, k), strict=True):
            np.testing.assert_array_equal(result, expected)


def test_heavy_tails_of_many_rows_are_one_warning_that_says_how_many():
    vae, X = narrowed(30), rows()
    with pytest.warns(UserWarning, match=r"k-hat is above 0.7 for \d+ of 60 rows") as caught:
        _, k = metrics.log_likelihood(vae, X, n_samples=50, random_state=0, return_pareto_k=True)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert f"for {(k > 0.7).sum()} of 60 rows" in message
    assert "n_samples=50. Use more draws, for example n_samples=500" in message
    assert caught[0].filename == __file__


@pytest.mark.filterwarnings("error")
def test_few_heavy_tails_are_no_warning():
    _, k = metrics.log_likelihood(
        fitted(posterior="full", max_iter=400),
        rows(),
        n_samples=1000,
        random_state=0,
        return_pareto_k=True,
    )
    assert (k > 0.7).mean() < 0.1


@pytest.mark.filterwarnings("error")
def test_few_draws_have_no_k_hat_and_no_warning():
    _, k = metrics.log_likelihood(narrowed(30), rows(), n_samples=24, return_pareto_k=True)
    assert np.isnan(k).all()


# --- standard errors --------------------------------------------------------------------------


@every_estimate
@pytest.mark.parametrize("params", [PARTS["standard-diagonal"], PARTS["mixture-diagonal"]], ids=str)
def test_standard_errors_of_rows_are_the_spread_over_random_states(metric, params):
    # Rows draw for themselves: the same one many times has as many random states.
    vae, n_copies, n_states = fitted(**params), 40, 3
    X = np.repeat(rows()[:20], n_copies, axis=0)
    values, errors = zip(
        *(
            metric(vae, X, n_samples=200, random_state=i, per_sample=True, return_std_error=True)
            for i in range(n_states)
        ),
        strict=True,
    )
    n = n_copies * n_states
    values, errors = (
        np.reshape(array, (n_states, 20, n_copies)).swapaxes(0, 1).reshape(20, n)
        for array in (values, errors)
    )
    spread, error = values.std(axis=1, ddof=1), np.sqrt(np.square(errors).mean(axis=1))
    if metric is metrics.kl and not params:
        assert spread.max() < 1e-12  # known
        assert not error.any()
    else:
        # The delta method holds where no few draws have most of a row's weight.
        small = (error < 0.05) | (metric is not metrics.log_likelihood)
        assert small.sum() >= 8
        # Of a standard deviation of n values, 1 / sqrt(2 n); five of them.
        np.testing.assert_allclose(spread[small], error[small], rtol=5 / math.sqrt(2 * n))


@every_estimate
def test_standard_error_of_the_mean_is_that_of_the_rows(metric):
    vae, options = fitted(), {"n_samples": 5, "random_state": 0}
    values = metric(vae, rows(), per_sample=True, **options)
    mean, error = metric(vae, rows(), return_std_error=True, **options)
    assert mean == metric(vae, rows(), **options) == pytest.approx(values.mean(), rel=1e-14)
    assert error == pytest.approx(values.std(ddof=1) / math.sqrt(60), rel=1e-12)


def test_one_draw_and_one_row_have_no_standard_error():
    vae, X = fitted(), rows()
    _, error = metrics.elbo(vae, X, n_samples=1, per_sample=True, return_std_error=True)
    assert np.isnan(error).all()
    _, error = metrics.elbo(vae, X[:1], return_std_error=True)
    assert math.isnan(error)


# --- what decides the numbers -----------------------------------------------------------------


@every_estimate
def test_random_state_decides_the_draws(metric):
    vae, X, options = fitted(), rows(), {"n_samples": 3, "per_sample": True}
    np.random.seed(0)
    state = np.random.get_state()[1].copy()
    before = torch.get_rng_state()
    first, same, other = (metric(vae, X, random_state=i, **options) for i in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any() or metric is metrics.kl
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    of_global = metric(vae, X, **options)
    np.random.seed(0)
    np.testing.assert_array_equal(metric(vae, X, **options), of_global)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "metric",
    [
        *(functools.partial(own, n_samples=20, per_sample=True) for own in ESTIMATES.values()),
        metrics.mutual_information,
        metrics.kl_per_component,
        metrics.active_units,
    ],
    ids=[*ESTIMATES, "information", "components", "units"],
)
def test_numbers_do_not_depend_on_the_working_memory(metric):
    vae, X, numbers = fitted(), rows(3000), []
    of_no_draws = metric in (metrics.kl_per_component, metrics.active_units)
    for megabytes in (1, 16, 1024):
        with config_context(working_memory=megabytes):
            numbers.append(metric(vae, X, **({} if of_no_draws else {"random_state": 0})))
    np.testing.assert_array_equal(numbers[0], numbers[1])
    np.testing.assert_array_equal(numbers[0], numbers[2])


# --- Pipelines and searches -------------------------------------------------------------------

SCORERS = {
    **{name: functools.partial(metric, random_state=0) for name, metric in ESTIMATES.items()},
    "mutual_information": functools.partial(metrics.mutual_information, random_state=0),
    "kl_per_component": metrics.kl_per_component,
    "active_units": metrics.active_units,
}


@pytest.mark.parametrize("scorer", SCORERS.values(), ids=SCORERS)
def test_metric_of_a_pipeline_is_that_of_its_last_step_on_what_this_sees(quick, scorer):
    X = rows()
    pipeline = make_pipeline(StandardScaler(), PCA(3), quick()).fit(X)
    seen = pipeline[:-1].transform(X)
    np.testing.assert_array_equal(scorer(pipeline, X), scorer(pipeline[-1], seen))
    np.testing.assert_array_equal(scorer(make_pipeline(pipeline[-1]), seen), scorer(pipeline, X))


def test_metrics_are_scorers_of_a_grid_search(quick):
    X = rows()
    scoring = {name: scorer for name, scorer in SCORERS.items() if name != "kl_per_component"}
    pipeline = make_pipeline(StandardScaler(), quick())
    search = GridSearchCV(
        pipeline,
        {"vaetransformer__n_components": [1, 2]},
        scoring=scoring,
        refit="elbo",
        cv=2,
        error_score="raise",
    ).fit(X)
    results = search.cv_results_
    assert all(np.isfinite(results[f"mean_test_{name}"]).all() for name in scoring)
    assert search.best_index_ == results["mean_test_elbo"].argmax()
    parts = results["mean_test_reconstruction"] + results["mean_test_kl"]
    np.testing.assert_allclose(parts, -results["mean_test_elbo"], rtol=1e-12)
    # Of a search that model which it has refitted.
    assert SCORERS["elbo"](search, X) == SCORERS["elbo"](search.best_estimator_, X)


# --- information ------------------------------------------------------------------------------


def with_encoder(size, posterior="diagonal"):
    """A model of one column whose posteriors are N(size * y, 1)."""
    X = np.linspace(-1, 1, 50)[:, None]
    vae = VAETransformer(
        1,
        posterior=posterior,
        hidden_layer_sizes=(),
        max_iter=1,
        early_stopping=False,
        precision="float64",
    ).fit(X)
    state = dict(vae.state_)
    state["encoder.0.weight"] = np.array([[size], [0.0]])
    state["encoder.0.bias"] = np.zeros(2)
    vae.state_ = state
    return vae, X


@pytest.mark.parametrize("posterior", ["diagonal", "full"])
def test_mutual_information_is_log_n_for_posteriors_far_apart_and_0_for_equal_ones(posterior):
    vae, X = with_encoder(300.0, posterior)  # 12 standard deviations from row to row
    information = metrics.mutual_information(vae, X, random_state=0)
    assert information == pytest.approx(math.log(50), rel=1e-12)
    vae, X = with_encoder(0.0, posterior)
    assert metrics.mutual_information(vae, X, random_state=0) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("size", [0.3, 1.0, 4.0])
def test_mutual_information_is_that_of_the_mixture_by_integration(size):
    vae, X = with_encoder(size)
    information = metrics.mutual_information(vae, X, n_samples=200, random_state=0)
    means = torch.tensor(vae.transform(X))
    z = torch.linspace(-20, 20, 8001).double()
    rows = D.Normal(means, 1.0)
    log_q = rows.log_prob(z)
    log_mean = torch.logsumexp(log_q, 0) - math.log(50)
    exact = (log_q.exp() * (log_q - log_mean)).sum(1).mean().item() * (z[1] - z[0]).item()
    # 10,000 draws of what varies by about 1: five standard errors.
    assert information == pytest.approx(exact, abs=0.05)
    # The mean divergence is more by that of the mixture from the prior.
    assert exact < metrics.kl(vae, X)


@pytest.mark.parametrize(
    "params",
    [PARTS[name] for name in PARTS if name != "flow"],
    ids=[n for n in PARTS if n != "flow"],
)
def test_mutual_information_is_at_most_log_n_and_decided_by_random_state(params):
    vae, X = fitted(**params), rows()
    first, same, other = (
        metrics.mutual_information(vae, X, n_samples=2, random_state=i) for i in (0, 0, 1)
    )
    assert first == same != other
    assert 0 < first < math.log(60)


def test_active_units_are_those_whose_mean_moves():
    vae, X = with_encoder(0.0)
    assert metrics.active_units(vae, X) == 0
    # Standardised rows have variance 1, and so have the means.
    vae, X = with_encoder(1.0)
    assert metrics.active_units(vae, X) == 1
    assert metrics.active_units(vae, X, threshold=0.99) == 1
    assert metrics.active_units(vae, X, threshold=1.01) == 0
    vae, X = with_encoder(0.09)
    assert metrics.active_units(vae, X) == 0
    vae, X = with_encoder(0.11)
    assert metrics.active_units(vae, X) == 1
    assert isinstance(metrics.active_units(vae, X), int)


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scorer", SCORERS.values(), ids=SCORERS)
def test_metric_of_another_or_an_unfitted_estimator_raises(scorer):
    X = rows()
    for estimator in (PCA(2).fit(X), make_pipeline(StandardScaler(), PCA(2)).fit(X)):
        with pytest.raises(TypeError, match=r"Metrics expect a VAETransformer.*Got PCA"):
            scorer(estimator, X)
    with pytest.raises(NotFittedError):
        scorer(VAETransformer(), X)


@pytest.mark.parametrize(
    "metric", [*ESTIMATES.values(), metrics.mutual_information], ids=[*ESTIMATES, "information"]
)
def test_number_of_draws_must_be_a_positive_integer(metric):
    with pytest.raises(ValueError, match="n_samples == 0, must be >= 1"):
        metric(fitted(), rows(), n_samples=0)
    with pytest.raises(TypeError, match="n_samples must be an instance of int"):
        metric(fitted(), rows(), n_samples=2.5)


def test_reconstruction_has_no_standard_errors_per_feature():
    with pytest.raises(
        ValueError, match=r"no standard errors per feature.*set one of them to False"
    ):
        metrics.reconstruction(fitted(), rows(), per_feature=True, return_std_error=True)


@pytest.mark.parametrize("params", [PARTS[name] for name in PARTS if name != "standard-diagonal"])
def test_kl_per_component_raises_where_it_is_no_sum_over_them(params):
    with pytest.raises(ValueError, match=r"only for posterior='diagonal'.*see active_units"):
        metrics.kl_per_component(fitted(**params), rows())


def test_mutual_information_of_a_flow_raises():
    with pytest.raises(ValueError, match=r"known everywhere: 'diagonal' or 'full'. Got Flow"):
        metrics.mutual_information(fitted(**PARTS["flow"]), rows())
