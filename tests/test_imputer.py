"""VAEImputer, against the exact conditional normal distribution and scikit-learn's imputers."""

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import load_wine
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from skvae import VAEImputer, VAETransformer
from skvae.likelihoods import Gaussian


@parametrize_with_checks([VAEImputer(VAETransformer(2, max_iter=5, device="cpu"), n_draws=4)])
def test_common_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def wine():
    X = load_wine().data
    return (X - X.mean(axis=0)) / X.std(axis=0)


@pytest.fixture(scope="module")
def holes(wine):
    X = wine.copy()
    X[np.random.default_rng(0).random(X.shape) < 0.2] = np.nan
    return X


@pytest.fixture(scope="module")
def linear(holes):
    vae = VAETransformer(
        2,
        likelihood=Gaussian("per_feature"),
        hidden_layer_sizes=(),
        learning_rate=1e-2,
        early_stopping=False,
        random_state=0,
    )
    return VAEImputer(vae, n_draws=2000, random_state=0).fit(holes)


def conditional(vae, X):
    """Mean and covariance of what is missing in each row, given what is there."""
    location = vae.inverse_transform(np.zeros((1, 2)))[0]
    W = (vae.inverse_transform(np.eye(2)) - location).T
    covariance = W @ W.T + np.diag(vae.noise_variance_)
    for x in X:
        m, o = np.flatnonzero(np.isnan(x)), np.flatnonzero(~np.isnan(x))
        gain = covariance[np.ix_(m, o)] @ np.linalg.inv(covariance[np.ix_(o, o)])
        mean = location[m] + gain @ (x[o] - location[o])
        yield m, mean, covariance[np.ix_(m, m)] - gain @ covariance[np.ix_(o, m)]


def test_imputations_are_conditional_means(linear, holes):
    filled = linear.transform(holes)
    for row, (m, mean, _) in zip(filled, conditional(linear.estimator_, holes), strict=True):
        # 2000 draws, weighted; standard deviations of about 0.6.
        np.testing.assert_allclose(row[m], mean, atol=0.1)


def test_drawn_imputations_have_the_conditional_mean_and_covariance(linear, holes):
    row = holes[np.isnan(holes).sum(axis=1).argmax()]
    drawing = clone(linear).set_params(sample_posterior=True, n_draws=200)
    drawing.__dict__.update({k: v for k, v in vars(linear).items() if k.endswith("_")})
    drawing._empty = linear._empty
    drawn = drawing.transform(np.tile(row, (4000, 1)))
    ((m, mean, covariance),) = conditional(linear.estimator_, row[None])
    assert len(m) > 3
    error = np.sqrt(np.diag(covariance) / 4000)
    assert (np.abs(drawn[:, m].mean(axis=0) - mean) < 5 * error + 0.02).all()
    np.testing.assert_allclose(np.cov(drawn[:, m].T), covariance, atol=0.08)


def test_what_is_there_stays_and_nothing_is_missing(wine, holes):
    filled = VAEImputer(VAETransformer(2, max_iter=5, random_state=0)).fit_transform(holes)
    there = ~np.isnan(holes)
    np.testing.assert_array_equal(filled[there], holes[there])
    assert np.isfinite(filled).all()


def test_it_is_nearer_than_the_mean(wine, holes):
    missing = np.isnan(holes)
    ours, means = (
        imputer.fit_transform(holes) for imputer in (VAEImputer(random_state=0), SimpleImputer())
    )
    error, error_of_means = (np.square(f - wine)[missing].mean() for f in (ours, means))
    assert error < 0.75 * error_of_means


def test_imputations_are_the_same_at_every_call_and_for_a_row_alone(holes):
    imputer = VAEImputer(VAETransformer(2, max_iter=5, random_state=0)).fit(holes)
    filled = imputer.transform(holes)
    np.testing.assert_array_equal(imputer.transform(holes), filled)
    for i in range(9):
        np.testing.assert_array_equal(imputer.transform(holes[i : i + 1])[0], filled[i])


def test_draws_are_decided_by_random_state(holes):
    vae = VAETransformer(2, max_iter=5, random_state=0)
    first, same, other = (
        VAEImputer(vae, sample_posterior=True, random_state=seed).fit_transform(holes)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, same)
    assert (first != other)[np.isnan(holes)].all()


def test_columns_without_values_are_left_out_or_0(holes):
    X = holes.copy()
    X[:, 3] = np.nan
    vae = VAETransformer(2, max_iter=2, random_state=0)
    assert VAEImputer(vae).fit_transform(X).shape == (178, 12)
    kept = VAEImputer(vae, keep_empty_features=True).fit_transform(X)
    assert kept.shape == (178, 13)
    assert (kept[:, 3] == 0).all()


def test_frames_names_and_the_indicator(holes):
    frame = pd.DataFrame(holes, columns=[f"c{i}" for i in range(13)])
    frame["c0"] = np.nan_to_num(frame["c0"])
    vae = VAETransformer(2, max_iter=2, random_state=0)
    imputer = VAEImputer(vae, add_indicator=True).set_output(transform="pandas")
    filled = imputer.fit_transform(frame)
    assert list(filled.columns[:13]) == list(frame.columns)
    expected = MissingIndicator().fit_transform(frame)
    np.testing.assert_array_equal(filled.iloc[:, 13:].to_numpy(), expected)
    assert filled.columns[13] == "missingindicator_c1"


def test_other_marks_than_nan(holes):
    vae = VAETransformer(2, max_iter=2, random_state=0)
    expected = VAEImputer(vae).fit_transform(holes)
    marked = VAEImputer(vae, missing_values=-999).fit_transform(np.nan_to_num(holes, nan=-999))
    np.testing.assert_array_equal(marked, expected)


def test_in_a_pipeline_and_a_search(holes):
    pipe = make_pipeline(
        VAEImputer(VAETransformer(max_iter=3, random_state=0)), LogisticRegression()
    )
    grid = {"vaeimputer__estimator__n_components": [1, 2]}
    search = GridSearchCV(pipe, grid, cv=3).fit(holes, load_wine().target)
    assert search.best_score_ > 0.8
