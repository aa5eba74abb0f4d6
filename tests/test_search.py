"""The estimator in searches and Pipelines: what is found is what the ELBO says."""

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits, load_wine
from sklearn.exceptions import FitFailedWarning
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    KFold,
    cross_val_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skvae import VAETransformer
from skvae.likelihoods import Gaussian

FOLDS = KFold(3, shuffle=True, random_state=0)


@pytest.fixture(scope="module")
def wine():
    """178 rows of 13 columns, of scales from 0.1 to 300."""
    return load_wine().data


@pytest.fixture(scope="module")
def digits():
    """1797 rows of 64 pixels, some of them constant or nearly so in a fold."""
    return load_digits().data


@pytest.mark.parametrize(
    ("hidden_layer_sizes", "n_draws", "tolerance"),
    # Without hidden layers both are exact; else the score's draws and these differ.
    [((), None, 1e-3), ((16,), 2000, 0.05)],
    ids=["linear", "network"],
)
def test_the_best_candidate_has_the_smallest_negative_elbo_recomputed_by_hand(
    wine, numpy_elbo, hidden_layer_sizes, n_draws, tolerance
):
    vae = VAETransformer(
        likelihood=Gaussian("per_feature"),
        hidden_layer_sizes=hidden_layer_sizes,
        max_iter=30,
        learning_rate=0.01,
        early_stopping=False,
        random_state=0,
    )
    grid = {"beta": [0.5, 1, 4], "n_components": [1, 8]}
    search = GridSearchCV(vae, grid, cv=FOLDS).fit(wine)

    negative_elbo = np.empty((6, 3))
    for i, params in enumerate(search.cv_results_["params"]):
        for j, (train, test) in enumerate(FOLDS.split(wine)):
            candidate = clone(vae).set_params(**params).fit(wine[train])
            negative_elbo[i, j] = -numpy_elbo(candidate, wine[test], n_draws).mean()

    scores = np.stack([search.cv_results_[f"split{j}_test_score"] for j in range(3)], axis=1)
    np.testing.assert_allclose(-scores, negative_elbo, atol=tolerance)
    means = negative_elbo.mean(axis=1)
    assert np.diff(np.sort(means))[0] > 2 * tolerance  # the best is not best by chance
    assert search.best_index_ == means.argmin()
    np.testing.assert_allclose(search.best_score_, -means.min(), atol=tolerance)
    np.testing.assert_array_equal(search.transform(wine), search.best_estimator_.transform(wine))
    assert search.score(wine) == search.best_estimator_.score(wine)


def test_candidates_of_any_beta_are_scored_at_beta_1(wine):
    # The weighted loss would always favour the smallest beta: here it is far off.
    vae = VAETransformer(max_iter=30, learning_rate=0.01, random_state=0)
    search = GridSearchCV(vae, {"beta": [1e-6, 1]}, cv=FOLDS).fit(wine)
    assert search.best_params_ == {"beta": 1}


def test_every_way_to_run_a_search_gives_the_same_scores(wine):
    vae = VAETransformer(hidden_layer_sizes=(8,), max_iter=3, random_state=0)
    grid = {"beta": [0.5, 4], "n_components": [2, 8]}
    results = []
    for backend, n_jobs in [("loky", 1), ("loky", 2), ("threading", 2)]:
        with joblib.parallel_config(backend):
            search = GridSearchCV(vae, grid, cv=FOLDS, n_jobs=n_jobs, return_train_score=True)
            results.append(search.fit(wine).cv_results_)
    scores = [name for name in results[0] if "score" in name and "time" not in name]
    assert len(scores) == 2 * (3 + 2) + 1
    for result in results[1:]:
        for name in scores:
            np.testing.assert_array_equal(result[name], results[0][name])


def test_pixels_are_constant_in_some_folds_and_nearly_so_in_others(digits):
    scales = [digits[train].std(axis=0) for train, _ in KFold(5).split(digits)]
    assert len({(scale == 0).sum() for scale in scales}) > 1
    assert any(((scale > 0) & (scale < 0.03)).any() for scale in scales)  # of pixels from 0 to 16


@pytest.mark.filterwarnings("ignore:X has values that differ from the constant")
@pytest.mark.parametrize(
    ("noise", "hidden_layer_sizes", "size"),
    # Linear with noise per feature is factor analysis, whose folds differ by 1e7 themselves.
    [("shared", (), 1.2), ("shared", (128, 64), 1.2), ("per_feature", (128, 64), 5)],
)
def test_folds_of_the_digits_have_scores_of_one_size(digits, noise, hidden_layer_sizes, size):
    for seed in (0, 1):
        vae = VAETransformer(
            8,
            likelihood=Gaussian(noise),
            hidden_layer_sizes=hidden_layer_sizes,
            max_iter=10,
            random_state=seed,
        )
        scores = cross_val_score(vae, digits, cv=KFold(5))
        assert np.isfinite(scores).all()
        assert (scores < 0).all()
        assert scores.min() > size * scores.max(), scores


def test_a_pipeline_transforms_scores_and_inverts_as_its_steps_do(wine):
    vae = VAETransformer(2, max_iter=5, random_state=0)
    pipe = make_pipeline(StandardScaler(), vae)
    Z = pipe.fit_transform(wine)
    scaled = StandardScaler().fit_transform(wine)
    alone = clone(vae).fit(scaled)
    np.testing.assert_array_equal(Z, alone.transform(scaled))
    np.testing.assert_array_equal(pipe.transform(wine), Z)
    np.testing.assert_array_equal(pipe.score_samples(wine), alone.score_samples(scaled))
    assert pipe.score(wine) == alone.score(scaled)
    np.testing.assert_array_equal(
        pipe.inverse_transform(Z), pipe[0].inverse_transform(alone.inverse_transform(Z))
    )
    assert list(pipe.get_feature_names_out()) == ["vaetransformer0", "vaetransformer1"]


def test_a_pipeline_can_be_searched_and_cached(wine, tmp_path):
    pipe = make_pipeline(
        StandardScaler(),
        VAETransformer(hidden_layer_sizes=(8,), max_iter=3, random_state=0),
        memory=str(tmp_path),
    )
    grid = {"vaetransformer__beta": [0.5, 4], "vaetransformer__likelihood": ["gaussian"]}
    search = GridSearchCV(pipe, grid, cv=FOLDS).fit(wine)
    plain = GridSearchCV(clone(pipe).set_params(memory=None), grid, cv=FOLDS).fit(wine)
    np.testing.assert_array_equal(
        search.cv_results_["mean_test_score"], plain.cv_results_["mean_test_score"]
    )
    np.testing.assert_array_equal(search.transform(wine), plain.transform(wine))


def test_likelihoods_can_be_candidates(wine):
    vae = VAETransformer(hidden_layer_sizes=(8,), max_iter=3, random_state=0)
    grid = {"likelihood": [Gaussian("shared"), Gaussian("per_feature")]}
    search = GridSearchCV(vae, grid, cv=FOLDS).fit(wine)
    assert search.best_params_ == {"likelihood": Gaussian("per_feature")}  # scales differ


def test_halving_spends_epochs_as_its_resource(wine):
    search = HalvingGridSearchCV(
        VAETransformer(hidden_layer_sizes=(8,), random_state=0),
        {"beta": [0.5, 1, 4], "n_components": [2, 8]},
        resource="max_iter",
        min_resources=2,
        max_resources=18,
        cv=FOLDS,
        random_state=0,
    ).fit(wine)
    assert search.n_resources_ == [2, 6]
    assert search.best_estimator_.n_iter_ == search.best_estimator_.max_iter == 6
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


@pytest.mark.filterwarnings("ignore:One or more of the test scores are non-finite:UserWarning")
def test_a_candidate_that_fails_is_ranked_last_and_the_search_goes_on(wine):
    vae = VAETransformer(hidden_layer_sizes=(8,), max_iter=3, random_state=0)
    search = GridSearchCV(vae, {"learning_rate": [1e6, 2e-3]}, cv=FOLDS)
    with pytest.warns(FitFailedWarning, match="3 fits failed"):
        search.fit(wine)
    assert search.best_params_ == {"learning_rate": 2e-3}
    assert list(search.cv_results_["rank_test_score"]) == [2, 1]


def test_a_clone_has_the_parameters_and_nothing_fitted(wine):
    vae = VAETransformer(
        3, likelihood=Gaussian(0.5), hidden_layer_sizes=[8, 4], max_iter=3, random_state=0
    ).fit(wine)
    copy = clone(vae)
    assert copy.get_params() == vae.get_params()
    assert vars(copy).keys() == copy.get_params().keys()
