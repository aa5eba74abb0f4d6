"""Missing values: NaN in X, the bound of what is there, and what the encoder sees of the rest."""

import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from sklearn.base import clone
from sklearn.datasets import load_wine

from skvae import VAETransformer, metrics
from skvae.likelihoods import Bernoulli, Gaussian, Poisson


@pytest.fixture(scope="module")
def wine():
    return load_wine().data


def with_holes(X, share=0.3, seed=0):
    X = np.array(X, float)
    X[np.random.default_rng(seed).random(X.shape) < share] = np.nan
    return X


@pytest.fixture(scope="module")
def linear(wine):
    """Factor analysis of rows with holes, and those rows."""
    H = with_holes(wine)
    vae = VAETransformer(
        3,
        likelihood=Gaussian("per_feature"),
        hidden_layer_sizes=(),
        learning_rate=1e-2,
        early_stopping=False,
        random_state=0,
    )
    return vae.fit(H), H


def marginal_log_density(vae, X):
    """log N(x; location, W W' + V) of the values that are there, row by row."""
    zero = np.zeros((1, vae.n_components))
    location = vae.inverse_transform(zero)[0]
    W = (vae.inverse_transform(np.eye(vae.n_components)) - location).T
    covariance = torch.from_numpy(W @ W.T + np.diag(vae.noise_variance_))
    densities = []
    for x in X:
        there = np.flatnonzero(~np.isnan(x))
        own = covariance[there][:, there]
        mean = torch.from_numpy(location[there])
        normal = torch.distributions.MultivariateNormal(mean, own)
        densities.append(normal.log_prob(torch.from_numpy(x[there])).item())
    return np.array(densities)


def test_the_log_likelihood_is_that_of_the_values_that_are_there(linear):
    vae, H = linear
    expected = marginal_log_density(vae, H)
    estimate, error = metrics.log_likelihood(
        vae, H, n_samples=2000, random_state=0, per_sample=True, return_std_error=True
    )
    # Importance samples of a posterior that is nearly the true one; float32.
    assert (np.abs(estimate - expected) < 5 * error + 1e-3).mean() > 0.98
    assert abs(estimate.mean() - expected.mean()) < 0.05


def test_the_score_is_a_bound_of_it(linear):
    vae, H = linear
    gap = marginal_log_density(vae, H) - vae.score_samples(H)
    assert gap.min() > -1e-3
    # The encoder sees what is missing: one map for all rows comes close to 2**13 of them.
    assert gap.mean() < 1


def test_training_with_holes_is_better_than_training_on_means(linear, wine):
    vae, H = linear
    filled = np.where(np.isnan(H), np.nanmean(H, axis=0), H)

    def scores(X):
        models = (VAETransformer(**vae.get_params() | {"random_state": s}) for s in (1, 2))
        return [model.fit(X).score(wine) for model in models]

    # Both come to their optimum, so that seeds differ by a few hundredths.
    assert min(scores(H)) > max(scores(filled)) + 0.05


def test_history_is_in_the_units_of_x_of_what_is_there(linear):
    vae, H = linear
    last = np.mean(vae.history_["negative_elbo"][-20:])  # of one draw a row each
    assert last == pytest.approx(-metrics.elbo(vae, H), abs=0.1)


def test_values_that_are_missing_change_nothing_whatever_they_were(wine):
    X = np.repeat(wine[:40], 2, axis=0)
    H = X.copy()
    H[::2, 3] = np.nan
    vae = VAETransformer(2, max_iter=3, random_state=0).fit(H)
    shuffled = wine.copy()
    shuffled[:, 3] = 1e6
    shuffled[:, 3] = np.nan
    same = wine.copy()
    same[:, 3] = np.nan
    np.testing.assert_array_equal(vae.score_samples(shuffled), vae.score_samples(same))
    assert (vae.transform(same) != vae.transform(wine)).any(axis=1).all()


@pytest.mark.parametrize(
    "likelihood",
    ["gaussian", Gaussian("per_feature"), Gaussian("shared"), "student_t", "laplace"],
    ids=str,
)
def test_a_row_with_holes_has_the_same_bits_alone_or_among_others(wine, likelihood):
    H = with_holes(wine)
    warnings.filterwarnings("ignore", "X has missing values")
    for data in (wine, H):  # a model that has not seen holes, and one that has
        vae = VAETransformer(2, likelihood=likelihood, max_iter=1, random_state=0).fit(data)
        for method in (vae.transform, vae.score_samples):
            together = method(H)
            np.testing.assert_array_equal(
                np.concatenate([method(x[None]) for x in H[:9]]), together[:9]
            )
            complete = method(wine)
            np.testing.assert_array_equal(method(np.vstack([H, wine]))[len(H) :], complete)


@pytest.mark.parametrize(
    ("likelihood", "binarise"),
    [(Bernoulli(), True), (Bernoulli(resample=True), True), (Poisson(), False)],
    ids=str,
)
def test_other_likelihoods_take_missing_values(wine, likelihood, binarise):
    X = (wine > wine.mean(axis=0)).astype(float) if binarise else np.round(wine)
    H = with_holes(X)
    vae = VAETransformer(2, likelihood=likelihood, max_iter=20, random_state=0).fit(H)
    assert np.isfinite(vae.transform(H)).all()
    whole, part = vae.score_samples(X), vae.score_samples(H)
    assert np.isfinite(whole).all()
    assert part.mean() > whole.mean()  # fewer probabilities are multiplied
    assert np.isfinite(vae.sample(10, random_state=0)).all()


def test_a_row_of_missing_values_only_says_nothing(wine):
    H = with_holes(wine)
    H[0] = np.nan
    vae = VAETransformer(2, max_iter=30, random_state=0).fit(H)
    mean, std = vae.encode(H[:1])
    kl = 0.5 * (mean**2 + std**2 - 1 - 2 * np.log(std)).sum()
    assert vae.score_samples(H[:1])[0] == pytest.approx(-kl, abs=1e-4)


def test_frames_with_every_kind_of_missing_value(wine):
    frame = pd.DataFrame(wine[:, :3], columns=["a", "b", "c"])
    frame.loc[::3, "a"] = np.nan
    frame["b"] = frame["b"].convert_dtypes()
    frame.loc[1::3, "b"] = pd.NA
    frame["c"] = frame["c"].astype(object)
    frame.loc[2::3, "c"] = None
    vae = VAETransformer(2, max_iter=3, random_state=0).fit(frame)
    H = frame.astype(float).to_numpy()
    expected = VAETransformer(2, max_iter=3, random_state=0).fit(H)
    np.testing.assert_array_equal(vae.score_samples(frame), expected.score_samples(H))


# --- an encoder that never saw a hole -----------------------------------------------------

METHODS = {
    "transform": VAETransformer.transform,
    "encode": VAETransformer.encode,
    "sample_posterior": VAETransformer.sample_posterior,
    "score_samples": VAETransformer.score_samples,
    "score": VAETransformer.score,
    "log_likelihood": metrics.log_likelihood,
    "reconstruction per feature": lambda vae, X: metrics.reconstruction(vae, X, per_feature=True),
    "kl_per_component": metrics.kl_per_component,
    "mutual_information": metrics.mutual_information,
    "active_units": metrics.active_units,
}


@pytest.mark.parametrize("kind", ["array", "frame", "auto", "sparse"])
def test_rows_with_holes_are_told_to_be_strange_to_a_model_of_complete_rows(wine, kind):
    H = wine[:, :5].copy()
    H[:7, 2] = np.nan
    H[:2, 4] = np.nan
    make = {"array": np.asarray, "sparse": scipy.sparse.csr_array}.get(kind, pd.DataFrame)
    likelihood = "auto" if kind == "auto" else "gaussian"
    vae = VAETransformer(2, likelihood=likelihood, max_iter=2, random_state=0)
    complete, with_holes = clone(vae).fit(make(wine[:, :5])), clone(vae).fit(make(H))
    for method in METHODS.values():
        with pytest.warns(UserWarning, match="X has missing values in 7 of 178 rows") as caught:
            method(complete, make(H))
        assert len(caught) == 1
        method(complete, make(wine[:, :5]))  # no warning
        method(with_holes, make(H))


def test_unknown_categories_have_one_warning_and_holes_beside_them_another(wine):
    frame = pd.DataFrame({"x": wine[:, 0], "kind": np.where(wine[:, 1] > 2, "a", "b")})
    vae = VAETransformer(2, likelihood="auto", max_iter=2, random_state=0).fit(frame)
    frame.loc[:3, "kind"] = "new"
    with pytest.warns(UserWarning, match="taken as missing: 'new'") as caught:
        vae.transform(frame)
    assert len(caught) == 1
    frame.loc[3:4, "x"] = np.nan
    frame.loc[5, "kind"] = None
    unknown = pytest.warns(UserWarning, match="taken as missing: 'new'")
    with unknown, pytest.warns(UserWarning, match="missing values in 3 of 178 rows") as caught:
        vae.transform(frame)
    assert len(caught) == 2


def test_fitted_to_rows_with_holes_as_the_warning_says_the_encoder_does_without_values():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(1200, 1)) + 0.2 * rng.normal(size=(1200, 4))
    H = np.where(rng.random(X.shape) < 0.3, np.nan, X)
    alone = X.copy()
    alone[:, 1:] = np.nan
    # The log-density of the one value that is there, the most that its bound can be.
    expected = -0.5 * (np.log(2 * np.pi * 1.04) + X[:, 0] ** 2 / 1.04).mean()
    vae = VAETransformer(
        1,
        likelihood=Gaussian("per_feature"),
        early_stopping=False,  # or factor analysis is kept, whose encoder is linear
        learning_rate=0.005,
        max_iter=80,
        random_state=0,
    )
    with pytest.warns(UserWarning, match="X has missing values in 1200 of 1200 rows"):
        assert vae.fit(X).score(alone) < expected - 1
    assert vae.fit(H).score(alone) > expected - 0.2
