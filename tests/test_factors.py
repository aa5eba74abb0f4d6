"""Factor analysis, where training begins and which it is to beat."""

import warnings

import numpy as np
import pytest
import torch
from sklearn import config_context
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine
from sklearn.decomposition import PCA, FactorAnalysis
from sklearn.model_selection import GridSearchCV

from skvae import VAEGridSearchCV, VAETransformer, _factors, _training
from skvae.likelihoods import Gaussian, Laplace, StudentT
from skvae.networks import MLP, Conv
from skvae.priors import Mixture, Vamp

TABLES = {f.__name__[5:]: f for f in (load_wine, load_diabetes, load_iris, load_breast_cancer)}
FLOOR = 1e-4


def standardised(table):
    X = TABLES[table]().data
    return (X - X.mean(axis=0)) / X.std(axis=0)


def factors(X, n_components, noise="per_feature", floor=FLOOR):
    """With all components."""
    found = _factors.maximise(torch.from_numpy(X), n_components, floor, noise)
    return [part.numpy() for part in found]


def log_likelihood(X, loading, variance):
    covariance = torch.from_numpy(loading @ loading.T + np.diag(variance))
    normal = torch.distributions.MultivariateNormal(torch.zeros(len(variance)).double(), covariance)
    return normal.log_prob(torch.from_numpy(X)).mean().item()


@pytest.mark.filterwarnings("ignore:FactorAnalysis did not converge")
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("n_components", [1, 2, 4])
def test_em_comes_as_far_as_factor_analysis_of_scikit_learn(table, n_components):
    X = standardised(table)
    loading, variance, *_ = factors(X, n_components, floor=1e-12)
    reference = FactorAnalysis(n_components, svd_method="lapack", tol=1e-5, max_iter=3000).fit(X)
    # 50 steps of EM, against some thousand.
    assert log_likelihood(X, loading, variance) > reference.score(X) - 0.05


@pytest.mark.parametrize("table", ["wine", "diabetes"])
@pytest.mark.parametrize("n_components", [1, 3])
def test_with_shared_noise_it_is_pca(table, n_components):
    X = standardised(table)
    loading, variance, *_ = factors(X, n_components, "shared")
    assert len(set(variance)) == 1
    assert log_likelihood(X, loading, variance) == pytest.approx(
        PCA(n_components).fit(X).score(X), abs=1e-3
    )


def test_the_posterior_is_that_of_the_normal_distribution():
    X = standardised("wine")
    loading, variance, projection, log_std = factors(X, 3)
    joint = loading @ loading.T + np.diag(variance)
    expected = loading.T @ np.linalg.inv(joint)
    np.testing.assert_allclose(projection, expected, rtol=1e-9, atol=1e-12)
    covariance = np.eye(3) - expected @ loading
    np.testing.assert_allclose(covariance, np.diag(np.exp(2 * log_std)), rtol=1e-9, atol=1e-12)
    assert (np.diff(log_std) > 0).all()  # the strongest first


def test_components_that_are_not_worth_it_are_left_out():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(800, 2)) @ rng.normal(size=(2, 20)) + 0.5 * rng.normal(size=(800, 20))
    found = _factors.analyse(torch.from_numpy(X + 7), 6, FLOOR, "per_feature")
    expected = factors(X - X.mean(axis=0), 2)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_nothing_is_left_of_columns_that_have_nothing_in_common():
    X = np.random.default_rng(0).normal(size=(800, 20))
    found = _factors.analyse(torch.from_numpy(X), 6, FLOOR, "per_feature")
    assert found.loading.shape == (20, 0)
    np.testing.assert_allclose(found.variance, X.var(axis=0))


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_candidates_that_become_factor_analysis_are_one(precision):
    # Whatever is trained beside them, and with how many components: to the last bit.
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 2)) @ rng.normal(size=(2, 6)) + 0.5 * rng.normal(size=(300, 6))
    vae = VAETransformer(learning_rate=1e-9, max_iter=1, random_state=0, precision=precision)
    grid = {"beta": [0.5, 0.8, 1], "n_components": [1, 2, 3]}
    search = VAEGridSearchCV(vae, grid, cv=3).fit(X)
    scores = search.cv_results_["mean_test_score"].reshape(3, 3)
    assert (scores == scores[0]).all()
    assert scores[0, 0] < scores[0, 1]
    reference = GridSearchCV(vae, grid, cv=3).fit(X)
    np.testing.assert_array_equal(scores.ravel(), reference.cv_results_["mean_test_score"])


@pytest.mark.parametrize("columns", [1, 3])
def test_columns_that_do_not_vary_and_few_rows_leave_finite_numbers(columns):
    X = np.zeros((4, 5))
    X[:, :columns] = np.random.default_rng(0).normal(size=(4, columns))
    for noise in ("per_feature", "shared", None):
        for part in factors(X, 8, noise):
            assert np.isfinite(part).all()


@pytest.mark.parametrize("family", [Gaussian, Laplace, StudentT])
@pytest.mark.parametrize("noise", ["per_sample", "per_feature", "shared", 0.5])
@pytest.mark.parametrize("posterior", ["diagonal", "full"])
@pytest.mark.parametrize("prior", ["standard_normal", Mixture(3)])
def test_a_fit_that_learns_nothing_is_factor_analysis(family, noise, posterior, prior):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 2)) @ rng.normal(size=(2, 6)) + 0.5 * rng.normal(size=(300, 6))
    vae = VAETransformer(
        2,
        likelihood=family(noise),
        posterior=posterior,
        prior=prior,
        learning_rate=1e-9,
        max_iter=1,
        random_state=0,
    ).fit(X)
    Z = vae.transform(X)
    best = PCA(2).fit(X).score(X)
    if family is Gaussian and noise != 0.5:
        # 270 of the 300 rows were trained on.
        assert best - 0.3 < vae.score(X) < best + 0.3
    explained = PCA(2).fit_transform(X)
    residual = explained - Z @ np.linalg.lstsq(Z, explained, rcond=None)[0]
    assert residual.var() < 0.1 * explained.var()


@pytest.mark.parametrize(
    "params",
    [
        {"network": MLP(linear=False)},
        {"network": Conv((1, 8, 8))},
        {"likelihood": "bernoulli"},
        {"early_stopping": False},
        {"prior": Vamp(3)},
    ],
    ids=["no linear part", "convolutions", "no real values", "nothing held out", "pseudo-inputs"],
)
def test_nothing_is_kept_but_what_training_left_where_there_is_no_other(params):
    X = (np.random.default_rng(0).normal(size=(100, 64)) > 0).astype(float)
    start, end = (
        VAETransformer(2, max_iter=1, learning_rate=rate, random_state=0, **params).fit(X)
        for rate in (1e-9, 1e-2)
    )
    names = [name for name in start.state_ if name.endswith("weight")]
    assert any((start.state_[name] != end.state_[name]).any() for name in names)


@pytest.mark.parametrize("working_memory", [0.03, 1000])
def test_rows_that_are_held_out_are_no_part_of_it(monkeypatch, working_memory):
    X, seen, judged = np.random.default_rng(0).normal(size=(1000, 10)), [], []
    analyse, train = _factors.analyse, _training.train

    def watch_analysis(y, *args):
        seen.extend(map(tuple, y.numpy()))
        return analyse(y, *args)

    def watch_training(stack, read, rows, *args, **more):
        judged.extend(map(tuple, rows.take(rows.index)[0].double().numpy()))
        return train(stack, read, rows, *args, **more)

    monkeypatch.setattr(_factors, "analyse", watch_analysis)
    monkeypatch.setattr(_training, "train", watch_training)
    with config_context(working_memory=working_memory):
        VAETransformer(2, max_iter=1, random_state=0).fit(X)
    assert len(seen) > 800
    assert len(judged) > 10
    assert not set(seen) & set(judged)


@pytest.mark.parametrize(
    ("scale", "noise"),
    [(1.0, 1e-14), *((10.0**i, noise) for i in (3, 5, 6, 7) for noise in (0.5, 1))],
)
@pytest.mark.parametrize("n_copies", [1, 3])
def test_rows_of_few_dimensions_far_above_their_noise_can_be_fitted(scale, noise, n_copies):
    rng = np.random.default_rng(0)
    X = np.tile(rng.normal(size=(200, 2)) @ rng.normal(size=(2, 6)), n_copies) * scale
    vae = VAETransformer(8, likelihood=Gaussian(noise), max_iter=2, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert np.isfinite(vae.fit(X).score(X))


def test_variances_of_rows_are_learned_in_every_epoch_of_a_warm_start():
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(300, 1))
    X = np.hstack([Z, np.exp(Z) * rng.normal(size=(300, 1))])
    vae = VAETransformer(1, max_iter=1, early_stopping=False, warm_start=True, random_state=0)
    for _ in range(3):
        vae.fit(X)
    assert (vae.state_["decoder.linear"][2:] != 0).all()
