"""`VAEGridSearchCV`: what `GridSearchCV` finds, from models that were trained together."""

import gc
import pickle
import signal
import threading
import warnings
import weakref
from itertools import product
from unittest import mock

import joblib
import numpy as np
import pandas as pd
import pytest
import skops.io
import torch
from sklearn import config_context
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.datasets import load_wine
from sklearn.decomposition import PCA
from sklearn.exceptions import FitFailedWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, ShuffleSplit
from sklearn.model_selection import _search as model_selection
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, StandardScaler
from torch import nn

from skvae import VAEGridSearchCV, VAETransformer, _candidates, _vae
from skvae._fit import execution, packing
from skvae._model import loop
from skvae._model.adam import Adam
from skvae.likelihoods import Gaussian, NegativeBinomial, Poisson, ZeroInflated
from skvae.networks import MLP
from skvae.priors import Mixture, Vamp

# In float64 a stack and single fits part by rounding of 1e-16 that training amplifies.
SAME = {"rtol": 0, "atol": 1e-8}

FOLDS = KFold(3, shuffle=True, random_state=0)


@pytest.fixture(scope="module")
def wine():
    """178 rows of 13 columns: folds of 118 and 119 rows."""
    return load_wine().data


def small(**params):
    """A quick model, computed in float64."""
    plain = {
        "n_components": 2,
        "hidden_layer_sizes": (8,),
        "max_iter": 4,
        "precision": "float64",
        "random_state": 0,
    }
    return VAETransformer(**plain | params)


def assert_same_results(search, reference):
    """All but times is equal, in the same columns."""
    ours, theirs = search.cv_results_, reference.cv_results_
    assert list(ours) == list(theirs)
    assert ours["params"] == theirs["params"]
    for name in ours:
        if name.endswith("_time") or name == "params":
            continue
        if name.startswith(("rank", "param_")):
            np.testing.assert_array_equal(ours[name], theirs[name])
        else:
            np.testing.assert_allclose(ours[name], theirs[name], **SAME)
    for name in ("best_index_", "best_params_", "multimetric_", "n_splits_"):
        assert getattr(search, name, None) == getattr(reference, name, None)
    if hasattr(reference, "best_score_"):
        np.testing.assert_allclose(search.best_score_, reference.best_score_, **SAME)


def search_both(estimator, grid, X, y=None, *, groups=None, max_stack="auto", **params):
    """Both searches, of which the results are the same."""
    fit_params = {} if groups is None else {"groups": groups}
    params = {"cv": FOLDS} | params
    search = VAEGridSearchCV(estimator, grid, max_stack=max_stack, **params)
    search.fit(X, y, **fit_params)
    reference = GridSearchCV(estimator, grid, **params).fit(X, y, **fit_params)
    assert_same_results(search, reference)
    return search, reference


@pytest.fixture
def trained(monkeypatch):
    """The sizes of the stacks that were trained."""
    sizes, run = [], execution.train

    def counting(jobs, *args, **params):
        sizes.append(len(jobs))
        return run(jobs, *args, **params)

    monkeypatch.setattr(execution, "train", counting)
    return sizes


# --- the same results -------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Maximum number of epochs")  # at a constant rate
@pytest.mark.parametrize(
    "grid",
    [
        {"beta": [0.0, 0.5, 4], "n_components": [1, 2, 5]},
        {"learning_rate": [1e-3, 2e-2], "weight_decay": [0.0, 0.1], "max_grad_norm": [None, 1.0]},
        {"beta_warmup": [0.0, 0.5], "learning_rate_schedule": ["constant", "cosine"]},
        {"max_iter": [1, 3, 6], "random_state": [0, 1]},
        {"n_iter_no_change": [1, 2, 30], "tol": [0.0, 10.0], "max_iter": [12]},
        [{"early_stopping": [False]}, {"validation_fraction": [0.1, 0.3]}],
        {"likelihood": ["gaussian", Gaussian("shared"), Gaussian(0.5), Gaussian("per_sample")]},
        {"hidden_layer_sizes": [(), 3, [8, 4]], "n_components": [1, 3]},
        {"activation": ["tanh", "silu"], "batch_size": [7, 500, "auto"]},
        {"precision": ["float32"], "max_iter": [1], "n_score_draws": [16, 64]},
        [{"beta": [0.5]}, {"n_components": [1, 20]}],
    ],
    ids=lambda grid: "-".join(grid) if isinstance(grid, dict) else "list",
)
def test_results_are_those_of_a_grid_search(wine, grid):
    if "precision" in grid:
        # float32: a row's terms are rounded at 1e-7 of about 20 nats.
        search = VAEGridSearchCV(small(), grid, cv=FOLDS).fit(wine)
        reference = GridSearchCV(small(), grid, cv=FOLDS).fit(wine)
        for i in range(3):
            name = f"split{i}_test_score"
            ours, theirs = search.cv_results_[name], reference.cv_results_[name]
            np.testing.assert_allclose(ours, theirs, atol=1e-4)
    else:
        search_both(small(), grid, wine)


@pytest.mark.filterwarnings("ignore:X has values that differ from the constant")
def test_yes_no_columns_that_are_constant_in_some_folds(wine):
    X = (wine > wine.mean(axis=0)).astype(float)
    X[:, 0] = np.arange(178) == 0  # constant in two of three training folds, but not in all
    search_both(small(likelihood="bernoulli"), {"n_components": [1, 3]}, X, cv=KFold(3))


@pytest.mark.parametrize("likelihood", [NegativeBinomial(), ZeroInflated(Poisson())])
def test_counts(wine, likelihood):
    X = np.random.default_rng(0).poisson(np.exp((wine - wine.mean(0)) / wine.std(0)))
    search_both(small(likelihood=likelihood), {"n_components": [1, 3]}, X, cv=KFold(3))


def test_columns_of_other_scales_under_one_noise_bound_the_encoder_at_each_folds_own(wine):
    grid = {"n_components": [1, 3]}
    search_both(small(likelihood=Gaussian("shared"), max_iter=20), grid, wine, cv=KFold(3))


@pytest.mark.parametrize(
    "cv",
    [None, 4, GroupKFold(4), ShuffleSplit(2, random_state=0)],
    ids=["default", "4", "groups", "shuffle"],
)
def test_folds_may_be_of_any_kind_and_of_unequal_sizes(wine, cv):
    # 8 groups, the first of 64 rows.
    groups = np.arange(178) ** 2 // 4000 if isinstance(cv, GroupKFold) else None
    # GridSearchCV gives groups to the splitter alone; here they would hold out other rows.
    vae = small(early_stopping=False)
    search_both(vae, {"beta": [0.5, 2]}, wine, cv=cv, groups=groups)


def test_folds_that_can_be_drawn_only_once(wine):
    search = VAEGridSearchCV(small(), {"beta": [0.5, 2]}, cv=iter(list(FOLDS.split(wine))))
    reference = GridSearchCV(small(), {"beta": [0.5, 2]}, cv=FOLDS)
    assert_same_results(search.fit(wine), reference.fit(wine))


def test_folds_that_are_drawn_at_random_are_scored_on_what_they_were_not_trained_on(wine, trained):
    cv = ShuffleSplit(2)
    VAEGridSearchCV(small(), {"beta": [0.5, 2]}, cv=cv, refit=False).fit(wine)
    assert sum(trained) == 4  # nothing was fitted again, as other rows would have been


def count_types(estimator, X, y=None):
    """A scorer that sees the estimator itself."""
    assert type(estimator) is VAETransformer
    assert "fit" not in vars(estimator)
    return {"score": estimator.score(X), "n_iter": estimator.n_iter_, "n_rows": len(X)}


def second(results):
    """A choice of one's own."""
    return int(np.flatnonzero(results["rank_test_score"] == 2)[0])


@pytest.mark.parametrize(
    "params",
    [
        {"return_train_score": True},
        {"refit": False},
        {"refit": second},
        {"scoring": count_types, "refit": "score"},
        {"scoring": {"a": lambda e, X, y=None: e.score(X), "b": lambda e, X, y=None: e.n_iter_},
         "refit": "a"},
        {"scoring": {"a": lambda e, X, y=None: e.score(X)}, "refit": False},
    ],
    ids=["train scores", "no refit", "refit callable", "callable", "multimetric", "many"],
)  # fmt: skip
def test_scoring_and_refit_are_those_of_a_grid_search(wine, params):
    # Where none are held out, no two candidates become factor analysis, and are equal.
    search_both(small(early_stopping=False), {"beta": [0.5, 1, 4]}, wine, **params)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_workers_find_the_same(wine, n_jobs):
    search_both(small(), {"beta": [0.5, 1, 4], "n_components": [1, 3]}, wine, n_jobs=n_jobs)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_workers_get_steps_that_plain_pickle_refuses(wine, n_jobs):
    pipe = make_pipeline(FunctionTransformer(lambda X: X - 1), small())
    search_both(pipe, {"vaetransformer__beta": [0.5, 2]}, wine, n_jobs=n_jobs)


def models_of(*folds):
    """Models of folds with these training rows, and the models in it."""
    models = _candidates.Models()
    given = [_candidates.Model([], {"fold": i}, None, None, i) for i in range(len(folds))]
    for fold, (rows, model) in enumerate(zip(folds, given, strict=True)):
        models.add(rows, fold, model)
    return models, given


def test_models_of_a_candidate_are_pickled_once_for_all_workers():
    folds = [np.arange(3), np.arange(1, 4)]
    models, given = models_of(*folds)
    arrays = [models.__getstate__()["_pickled"] for _ in range(2)]
    assert arrays[0] is arrays[1]
    for sent in (models, pickle.loads(pickle.dumps(models))):
        assert [sent.find(rows, fold) for fold, rows in enumerate(folds)] == given
        assert sent.find(np.arange(4), 0) is None


def test_a_model_is_chosen_by_its_rows_and_among_equal_rows_by_its_fold():
    rows, other = np.arange(3), np.arange(1, 4)
    models, given = models_of(rows, other, rows)
    assert [models.find(rows, fold) for fold in range(3)] == [given[0], given[0], given[2]]
    assert [models.find(other, fold) for fold in range(3)] == [given[1]] * 3


def test_the_clone_of_a_candidate_has_its_models_and_its_results_have_not():
    models, _ = models_of(np.arange(3))
    candidate = _candidates.Candidate({"vae": small()}, models)
    assert list(candidate) == ["vae"]
    assert str(candidate) == str(dict(candidate))
    cloned = clone(candidate, safe=False)
    assert cloned.keys() == {"vae", _candidates.MODELS}
    assert cloned["vae"] is not candidate["vae"]
    assert cloned[_candidates.MODELS] is models


def test_workers_score_what_was_trained_before(wine):
    # Without a seed a worker that trained again would draw numbers of its own.
    before, searches = np.random.get_state(), []
    try:
        for n_jobs in (1, 2):
            np.random.seed(0)
            search = VAEGridSearchCV(
                small(random_state=None), {"beta": [0.5, 2]}, cv=FOLDS, refit=False, n_jobs=n_jobs
            )
            searches.append(search.fit(wine))
    finally:
        np.random.set_state(before)
    assert_same_results(*searches)


def test_a_fitted_search_is_used_as_any_other(wine):
    search, reference = search_both(small(), {"beta": [0.5, 4]}, pd.DataFrame(wine).add_prefix("c"))
    X = pd.DataFrame(wine).add_prefix("c")
    np.testing.assert_allclose(search.transform(X), reference.transform(X), **SAME)
    np.testing.assert_array_equal(search.feature_names_in_, X.columns)
    assert search.score(X) == search.best_estimator_.score(X)
    best = search.best_estimator_
    alone = small(**search.best_params_).fit(X)
    assert vars(best).keys() == vars(alone).keys()
    for name in alone.state_:
        np.testing.assert_array_equal(best.state_[name], alone.state_[name])


def test_a_search_without_a_seed_draws_what_a_grid_search_does(wine):
    before = np.random.get_state()
    try:
        results = []
        for search in (VAEGridSearchCV, GridSearchCV):
            np.random.seed(0)
            fitted = search(small(random_state=None), {"beta": [0.5, 2]}, cv=FOLDS, refit=False)
            results.append(fitted.fit(wine))
            results.append(np.random.randint(2**31))
    finally:
        np.random.set_state(before)
    assert_same_results(results[0], results[2])
    assert results[1] == results[3]


def test_a_random_state_is_copied_for_each_candidate(wine):
    search_both(small(random_state=np.random.RandomState(3)), {"beta": [0.5, 2]}, wine)


def clone_twice(monkeypatch):
    """Let scikit-learn clone each estimator twice, and use the second clone."""
    monkeypatch.setattr(model_selection, "clone", lambda *args, **safe: clone(clone(*args, **safe)))


def evaluate_backwards(monkeypatch):
    """Let scikit-learn clone, fit and score the last candidate and fold first."""

    def backwards(*iterables):
        pairs = list(product(*iterables))
        return pairs[::-1] if isinstance(iterables[0], enumerate) else pairs

    class Parallel(model_selection.Parallel):
        def __call__(self, tasks):
            return super().__call__(tasks)[::-1]

    monkeypatch.setattr(model_selection, "product", backwards)
    monkeypatch.setattr(model_selection, "Parallel", Parallel)


def fit_another_first(monkeypatch):
    """Let scikit-learn fit a further clone of the estimator before all others."""
    fit_and_score, fitted = model_selection._fit_and_score, []

    def fit_and_score_twice(estimator, X, y, **params):
        if not fitted:
            fitted.append(fit_and_score(clone(estimator), X, y, **params))
        return fit_and_score(clone(estimator), X, y, **params)

    monkeypatch.setattr(model_selection, "_fit_and_score", fit_and_score_twice)


@pytest.mark.parametrize("change", [clone_twice, evaluate_backwards, fit_another_first])
@pytest.mark.parametrize("in_pipeline", [False, True])
def test_models_are_found_however_often_and_in_which_order_scikit_learn_clones(
    wine, trained, monkeypatch, change, in_pipeline
):
    vae = small(max_iter=2)
    estimator = make_pipeline(StandardScaler(), vae) if in_pipeline else vae
    grid = {f"{'vaetransformer__' * in_pipeline}beta": [0.5, 2, 8]}
    params = {"cv": FOLDS, "refit": False}
    reference = GridSearchCV(estimator, grid, **params).fit(wine)
    change(monkeypatch)
    trained.clear()
    search = VAEGridSearchCV(estimator, grid, **params).fit(wine)
    assert sum(trained) == 3 * 3  # no model was trained again
    assert_same_results(search, reference)


def test_folds_that_train_on_the_same_rows_are_stacked_and_have_models_of_their_own(wine, trained):
    rows, test, before = np.arange(100), np.arange(100, 178), np.random.get_state()
    # Candidates and folds by turns, so that no two neighbours have the same rows.
    cv = [(rows, test), (rows + 5, np.arange(5)), (rows, test), (rows, np.arange(120, 178))]
    searches, grid = [], {"beta": [0.5, 2]}
    try:
        for n_jobs in (1, 2):
            np.random.seed(0)
            search = VAEGridSearchCV(
                small(random_state=None), grid, cv=cv, n_jobs=n_jobs, max_stack=100, refit=False
            )
            searches.append(search.fit(wine))
    finally:
        np.random.set_state(before)
    assert trained == [8, 8]
    assert_same_results(*searches)
    first, again = (searches[0].cv_results_[f"split{i}_test_score"] for i in (0, 2))
    assert (first != again).all()
    search_both(small(), {"beta": [1, 1, 2]}, wine, cv=cv)


def test_the_refit_trains_by_itself_even_if_a_fold_trains_on_all_rows(wine, trained):
    cv = [(np.arange(178), np.arange(60))]
    vae = small(early_stopping=False)
    search = VAEGridSearchCV(vae, {"beta": [0.5, 2]}, cv=cv, max_stack=100).fit(wine)
    assert trained == [2, 1]
    alone = clone(vae).set_params(**search.best_params_).fit(wine)
    assert vars(search.best_estimator_).keys() == vars(alone).keys()


@pytest.mark.parametrize("train", [np.arange(178) % 3 > 0, (np.arange(118) + 60).tolist()])
def test_folds_may_be_masks_or_lists(wine, trained, train):
    cv = [(train, np.arange(60)), (np.arange(60, 160), np.arange(60))]
    search_both(small(), {"beta": [0.5, 2]}, wine, cv=cv, max_stack=100, refit=False)
    assert trained == [2, 2, 1, 1, 1, 1]  # the last ones by GridSearchCV


# --- failures ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:One or more of the test scores are non-finite:UserWarning")
@pytest.mark.parametrize("grid", [{"learning_rate": [1e6, 2e-3]}, {"beta": [-1.0, 1.0]}])
def test_candidates_that_fail_have_the_error_score(wine, grid):
    with pytest.warns(FitFailedWarning, match="3 fits failed"):
        search_both(small(), grid, wine)
    with pytest.warns(FitFailedWarning, match="3 fits failed"):
        search_both(small(), grid, wine, error_score=-1000.0)


def test_candidates_that_fail_raise_if_asked_to(wine):
    search = VAEGridSearchCV(small(), {"learning_rate": [2e-3, 1e6]}, error_score="raise")
    with pytest.raises(ValueError, match="not finite in epoch 1, at learning rate 1e"):
        search.fit(wine)
    with pytest.raises(NotFittedError):
        search.transform(wine)


@pytest.mark.filterwarnings("ignore:X has values that are infinite")
def test_bad_input_is_refused_as_by_a_grid_search(wine):
    X = wine.copy()
    X[3, 4] = np.inf
    for search in (VAEGridSearchCV, GridSearchCV):
        with pytest.raises(ValueError, match="Input X contains infinity"):
            search(small(), {"beta": [1, 2]}, error_score="raise").fit(X)
    with pytest.raises(ValueError, match="'max_stack' parameter of VAEGridSearchCV must be"):
        VAEGridSearchCV(small(), {"beta": [1, 2]}, max_stack=0).fit(wine)


@pytest.mark.parametrize("max_stack", [2, 100])
def test_ctrl_c_ends_the_search(wine, monkeypatch, max_stack):
    steps, step = [], Adam.step

    def press(self, *args):
        steps.append(1)
        if len(steps) == 30:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(Adam, "step", press)
    search = VAEGridSearchCV(small(max_iter=1000), {"beta": [0.5, 1, 2]}, max_stack=max_stack)
    with pytest.raises(KeyboardInterrupt):
        search.fit(wine)
    assert not hasattr(search, "cv_results_")


@pytest.mark.parametrize("max_stack", [1, "auto"])
def test_a_real_ctrl_c_ends_all_stacks_within_an_epoch(wine, monkeypatch, max_stack):
    # The signal arrives in the main thread, which waits for those that train.
    epochs, interrupted = [], []
    judge = loop.Members.judge

    def press(self):
        epochs.append(1)
        if len(epochs) == 30:
            interrupted.append(1)
            signal.raise_signal(signal.SIGINT)
        elif interrupted:
            interrupted.append(1)
        return judge(self)

    monkeypatch.setattr(loop.Members, "judge", press)
    search = VAEGridSearchCV(small(max_iter=100_000), {"beta": [0.5, 1, 2]}, max_stack=max_stack)
    n_threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        search.fit(wine)
    assert threading.active_count() == n_threads
    assert len(interrupted) < 3000  # of 100,000: those until the main thread woke up
    assert not hasattr(search, "cv_results_")


# --- stacks -----------------------------------------------------------------------------------


def test_what_differs_in_numbers_only_is_trained_once_and_together(wine, trained):
    X = wine[:177]  # folds of 118 rows
    grid = {"beta": [0.5, 1, 4], "learning_rate": [1e-3, 5e-3], "n_components": [1, 2]}
    VAEGridSearchCV(small(), grid, cv=FOLDS, max_stack=1000).fit(X)
    assert sorted(trained) == [1, 36]  # and the best one by itself


def test_what_differs_in_shape_makes_stacks_of_its_own(wine, trained):
    grid = {"hidden_layer_sizes": [(8,), (4,)], "likelihood": ["gaussian", "bernoulli"]}
    X = MinMaxScaler().fit_transform(wine)
    VAEGridSearchCV(small(), grid, cv=FOLDS, max_stack=1000, refit=False).fit(X)
    assert sorted(trained) == [1, 1, 1, 1, 2, 2, 2, 2]  # folds of 118 and, twice, 119 rows


@pytest.mark.parametrize("max_stack", [1, 2, 5])
def test_no_stack_is_larger_than_max_stack(wine, trained, max_stack):
    grid = {"beta": [0.5, 1, 4], "n_components": [1, 2]}
    search = VAEGridSearchCV(small(), grid, cv=FOLDS, max_stack=max_stack, refit=False)
    search.fit(wine[:177])
    assert sum(trained) == 18
    assert max(trained) <= max_stack


def test_stacks_have_room_in_working_memory(wine, trained):
    grid = {"beta": np.linspace(0.1, 2, 12)}
    search = VAEGridSearchCV(small(max_iter=1), grid, cv=FOLDS, refit=False)
    search.fit(wine[:177])
    n_stacks = len(trained)
    trained.clear()
    with config_context(working_memory=1):
        search.fit(wine[:177])
    assert sum(trained) == 36
    assert len(trained) > n_stacks


def test_members_that_have_ended_may_go_along_for_a_while(wine, monkeypatch):
    # As on CUDA, where each change of a stack captures its step anew.
    monkeypatch.setattr(loop, "IDLE_SHARE", {"cpu": 0.5})
    grid = {"max_iter": [1, 2, 3, 5, 8], "n_components": [1, 3]}
    search_both(small(), grid, wine, max_stack=100)


def test_threads_share_what_one_thread_would_do(wine):
    grid = {"beta": [0.5, 1, 4], "n_components": [1, 3]}
    n_threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(VAEGridSearchCV(small(), grid, cv=FOLDS).fit(wine))
    finally:
        torch.set_num_threads(n_threads)
    for result in results[1:]:
        assert_same_results(result, results[0])


def test_a_search_leaves_its_parameters_and_its_estimator_as_they_were(wine):
    vae, grid, cv = small(), {"beta": [0.5, 4]}, KFold(3)
    search = VAEGridSearchCV(vae, grid, cv=cv).fit(wine)
    assert search.estimator is vae
    assert search.cv is cv
    assert vars(vae).keys() == vae.get_params().keys()
    assert vars(search).keys() == vars(GridSearchCV(vae, grid, cv=cv).fit(wine)).keys() | {
        "max_stack"
    }
    assert clone(search).get_params()["max_stack"] == "auto"


def test_a_fitted_search_is_saved_and_loaded(wine, tmp_path):
    search = VAEGridSearchCV(small(), {"beta": [0.5, 4]}, cv=FOLDS).fit(wine)
    joblib.dump(search, tmp_path / "search.joblib")
    loaded = joblib.load(tmp_path / "search.joblib")
    np.testing.assert_array_equal(loaded.transform(wine), search.transform(wine))


@pytest.mark.parametrize("cv", [3, FOLDS, ShuffleSplit(2, random_state=0)], ids=str)
def test_a_fitted_search_keeps_what_a_grid_search_does_and_no_folds(cv):
    rows = np.random.default_rng(0).normal(size=(5000, 3))
    vae = small(max_iter=1, batch_size=1024)
    ours, theirs = (
        search(vae, {"beta": [0.5, 1]}, cv=cv).fit(rows)
        for search in (VAEGridSearchCV, GridSearchCV)
    )
    assert vars(ours).keys() - {"max_stack"} == vars(theirs).keys()
    kept = [getattr(search, "_checked_cv_orig", None) for search in (ours, theirs)]
    assert joblib.hash(kept[0]) == joblib.hash(kept[1])
    assert str(ours.get_metadata_routing()) == str(theirs.get_metadata_routing())
    sizes = [len(pickle.dumps(search)) for search in (ours, theirs)]
    assert sizes[0] < 1.2 * sizes[1]
    trusted = [
        set(skops.io.get_untrusted_types(data=skops.io.dumps(search))) for search in (ours, theirs)
    ]
    assert trusted[0] - {"skvae.VAEGridSearchCV"} == trusted[1]


def test_each_model_has_its_share_of_the_time(wine, monkeypatch):
    run_all = packing.run_all

    def timed(*args):
        trained, _, errors = run_all(*args)
        return trained, {i: 1.0 + i for i in trained}, errors

    monkeypatch.setattr(packing, "run_all", timed)
    results = VAEGridSearchCV(small(), {"beta": [0.5, 4]}, cv=FOLDS).fit(wine).cv_results_
    np.testing.assert_array_equal(results["mean_fit_time"], [2.0, 5.0])
    np.testing.assert_allclose(results["std_fit_time"], np.sqrt(2 / 3))


def test_folds_train_one_after_the_other_where_memory_holds_the_rows_of_one(wine, monkeypatch):
    widths, run = [], execution.train

    def counted(jobs, *args):
        widths.append((len({id(job.data) for job in jobs}), len(jobs)))
        return run(jobs, *args)

    monkeypatch.setattr(execution, "train", counted)
    search = VAEGridSearchCV(small(), {"beta": [0.5, 1, 4]}, cv=FOLDS, max_stack=100, refit=False)
    with config_context(working_memory=wine.nbytes * 2.5 / 2**20):
        few = search.fit(wine).cv_results_["mean_test_score"]
    assert max(rows for rows, _ in widths) <= 2
    assert sum(models for _, models in widths) == 9
    all_ = search.fit(wine).cv_results_["mean_test_score"]
    np.testing.assert_allclose(few, all_, **SAME)


def test_what_could_not_be_trained_in_a_stack_is_fitted_by_itself_with_a_warning(wine, monkeypatch):
    run = execution.train

    def fail(jobs, *args):
        if len(jobs) > 1:
            raise RuntimeError("out of memory")
        return run(jobs, *args)

    monkeypatch.setattr(execution, "train", fail)
    search = VAEGridSearchCV(small(), {"beta": [0.5, 4]}, cv=FOLDS, max_stack=6)
    with pytest.warns(UserWarning, match=r"6 of 6 models could not .*RuntimeError: out of memory"):
        search.fit(wine)
    reference = GridSearchCV(small(), {"beta": [0.5, 4]}, cv=FOLDS).fit(wine)
    assert_same_results(search, reference)


# --- Pipelines and other estimators -----------------------------------------------------------


class Counting(TransformerMixin, BaseEstimator):
    """Scales by a number, and counts its fits."""

    fits = 0

    def __init__(self, by=1.0):
        self.by = by

    def fit(self, X, y=None):
        type(self).fits += 1
        self.scale_ = self.by * np.abs(X).max(axis=0)
        return self

    def transform(self, X):
        return X / self.scale_


def test_earlier_steps_are_fitted_once_for_each_fold_and_each_of_their_own_candidates(wine):
    pipe = Pipeline([("first", Counting()), ("scale", "passthrough"), ("vae", small())])
    grid = {"vae__beta": [0.5, 1, 4], "vae__n_components": [1, 2], "first__by": [1.0, 2.0]}
    Counting.fits = 0
    search = VAEGridSearchCV(pipe, grid, cv=FOLDS, refit=False).fit(wine)
    assert Counting.fits == 3 * 2
    assert_same_results(search, GridSearchCV(pipe, grid, cv=FOLDS, refit=False).fit(wine))


def test_steps_of_a_pipeline_can_be_candidates(wine):
    pipe = make_pipeline(StandardScaler(), small())
    grid = {
        "standardscaler": [StandardScaler(), MinMaxScaler(), "passthrough"],
        "vaetransformer": [small(), small(n_components=3), PCA(2)],
    }
    search, _ = search_both(pipe, grid, wine)
    assert isinstance(search.best_estimator_, Pipeline)


def test_a_pipeline_sees_the_target_and_its_cache(wine, tmp_path):
    class Shift(TransformerMixin, BaseEstimator):
        def fit(self, X, y):
            self.mean_ = X[y == 0].mean(axis=0)
            return self

        def transform(self, X):
            return X - self.mean_

    pipe = Pipeline([("shift", Shift()), ("vae", small())])
    y = load_wine().target
    search, _ = search_both(pipe, {"vae__beta": [0.5, 2]}, wine, y)
    np.testing.assert_allclose(
        search.best_estimator_[0].mean_, wine[y == 0].mean(axis=0), rtol=1e-12
    )
    cached = make_pipeline(StandardScaler(), small(), memory=str(tmp_path))
    search_both(cached, {"vaetransformer__beta": [0.5, 2]}, wine)


def test_an_estimator_without_a_vae_is_searched_one_by_one(wine, trained):
    search_both(PCA(), {"n_components": [1, 2]}, wine)
    assert trained == []


@pytest.mark.parametrize(
    ("grid", "stacks"),
    [
        ({"n_importance_samples": [1, 3], "beta": [0.5, 2]}, [6, 6]),
        # Alone, a component that is not there has nothing to learn from.
        ({"n_importance_samples": [3], "n_components": [1, 2]}, [3, 3]),
        ({"free_bits": [0.1, 0.5, 1.0]}, [9]),
        ({"free_bits": [0.1], "n_components": [1, 2]}, [3, 3]),
        ({"n_beta_cycles": [1, 2], "beta_warmup": [0.5], "n_components": [1, 2]}, [12]),
        ({"network": [MLP(dropout=0.2)], "n_components": [1, 2]}, [6]),
        ({"posterior": ["diagonal", "full"], "n_components": [1, 3]}, [6, 6]),
        ({"prior": [Mixture(2), Vamp(5)], "n_components": [1, 2]}, [3, 3, 3, 3]),
    ],
    ids=str,
)
def test_every_objective_and_part_is_stacked_with_its_like(wine, trained, grid, stacks):
    VAEGridSearchCV(small(), grid, cv=FOLDS, max_stack=1000, refit=False).fit(wine[:177])
    assert trained == stacks
    search_both(small(), grid, wine)


class Residual(nn.Module):
    """A network that is no Sequential, with a buffer."""

    def __init__(self, n_in, n_out, share):
        super().__init__()
        self.inner, self.outer = nn.Linear(n_in, 8), nn.Linear(8, n_out)
        self.across = nn.Linear(n_in, n_out, bias=False)
        self.register_buffer("share", torch.tensor(share))

    def forward(self, x):
        return self.outer(torch.tanh(self.inner(x))) + self.share * self.across(x)


def half(n_in, n_out):
    return Residual(n_in, n_out, 0.5)


def none(n_in, n_out):
    return Residual(n_in, n_out, 0.0)


def test_a_network_of_ones_own_is_stacked_too(wine, trained):
    grid = {"beta": [0.5, 2], "n_components": [1, 3], "network": [(half, half), (none, none)]}
    VAEGridSearchCV(small(), grid, cv=FOLDS, max_stack=1000, refit=False).fit(wine[:177])
    assert trained == [6, 6, 6, 6]  # another size or value is another stack
    search_both(small(), grid, wine)


class Broken(Residual):
    """Fails, but for the row or two that a network is tried with."""

    def forward(self, x):
        return super().forward(x) if len(x) <= 2 else None


def broken(n_in, n_out):
    return Broken(n_in, n_out, 0.5)


def failing(n_in, n_out):
    raise RuntimeError("no such network")


@pytest.mark.filterwarnings("ignore:One or more of the test scores are non-finite:UserWarning")
@pytest.mark.parametrize("network", [(broken, broken), (half, failing)])
def test_a_stack_that_fails_leaves_its_candidates_to_themselves(wine, network):
    grid = {"network": [(half, half), network], "max_iter": [1]}
    with (
        pytest.warns(FitFailedWarning, match="3 fits failed"),
        pytest.warns(UserWarning, match="3 of 6 models could not be trained in a stack"),
    ):
        search_both(small(), grid, wine)


class Chosen(nn.Module):
    """A linear layer whose outputs stand in the order of a buffer."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.inner = nn.Linear(n_in, n_out)
        self.register_buffer("order", torch.arange(n_out).flip(0))

    def forward(self, x):
        return self.inner(x).index_select(-1, self.order)


def test_a_buffer_of_whole_numbers_stays_one(wine, trained):
    grid = {"network": [(Chosen, Chosen)], "beta": [0.5, 2]}
    search_both(small(), grid, wine, max_stack=100)
    assert max(trained) > 1


class DropsOutliers(Pipeline):
    """Trains without the rows that are far out, as pipelines of other packages do."""

    def fit(self, X, y=None, **params):
        far = np.abs(X - X.mean(axis=0)).max(axis=1) > 3 * X.std(axis=0).max()
        return super().fit(X[~far], y, **params)


def test_a_pipeline_of_another_kind_fits_as_it_will(wine, trained):
    pipe = DropsOutliers([("scale", StandardScaler()), ("vae", small())])
    search_both(pipe, {"vae__beta": [0.5, 2]}, wine)
    assert set(trained) == {1}


def test_steps_that_are_none_are_refused_as_by_a_grid_search(wine):
    for steps in ([], [("vae", small(), 3)]):
        errors = []
        for search in (VAEGridSearchCV, GridSearchCV):
            with pytest.raises(Exception) as error:  # noqa: PT011
                search(Pipeline(steps), {"vae__beta": [1]}, error_score="raise").fit(wine)
            errors.append((type(error.value), str(error.value)))
        assert errors[0] == errors[1]


@pytest.mark.parametrize("routing", [False, True])
def test_groups_are_routed_to_the_splitter(wine, routing):
    groups = np.arange(178) % 5
    with config_context(enable_metadata_routing=routing):
        cv = GroupKFold(3)
        vae = small(early_stopping=False)  # or the groups would hold out other rows
        vae = vae.set_fit_request(groups=False) if routing else vae
        search_both(vae, {"beta": [0.5, 2]}, wine, cv=cv, groups=groups)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_rows_are_read_in_parts_whatever_thread_trains_on_them(wine, n_threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(n_threads)
        with config_context(working_memory=0.001):
            vae = small(batch_size=8, max_iter=2)
            search_both(vae, {"beta": [0.5, 2]}, wine, refit=False)
    finally:
        torch.set_num_threads(before)


def test_no_rows_are_held_while_models_are_scored(wine):
    alive = []

    def scorer(estimator, X, y=None):
        gc.collect()
        alive.append(sum(reference() is not None for reference in references))
        return estimator.score(X)

    references, prepare = [], _candidates.prepare

    def watched(*args):
        job, fitted = prepare(*args)
        references.append(weakref.ref(job.data))
        return job, fitted

    with mock.patch.object(_candidates, "prepare", watched):
        VAEGridSearchCV(small(), {"beta": [0.5, 2]}, cv=FOLDS, scoring=scorer, refit=False).fit(
            wine
        )
    assert len(references) == 6
    assert set(alive) == {0}


# --- progress ---------------------------------------------------------------------------------


def test_progress_is_told_to_callbacks(wine):
    pytest.importorskip("sklearn.callback")

    class Watch:
        def __init__(self):
            self.begun, self.ended = [], []

        def setup(self, estimator, context):
            pass

        def on_fit_task_begin(self, estimator, context):
            self.begun.append((context.task_name, context.max_subtasks))

        def on_fit_task_end(self, estimator, context):
            self.ended.append(context.task_name)

        def teardown(self, estimator, context):
            pass

    watch, grid = Watch(), {"beta": [0.5, 2]}
    search = VAEGridSearchCV(small(), grid, cv=FOLDS, max_stack=2, refit=False)
    search.set_callbacks(watch)
    search.fit(wine[:177])
    assert sorted(watch.ended) == sorted(name for name, _ in watch.begun)
    assert watch.begun.count(("training", 3)) == 1
    assert watch.begun.count(("stack", 4)) == 3
    assert watch.ended.count("epoch") == 3 * 4
    assert ("scoring", 6) in watch.begun
    assert watch.ended.count("candidate-split-evaluation") == 6


def test_a_progress_bar_shows_the_stacks(wine, capsys):
    callback = pytest.importorskip("sklearn.callback")
    search = VAEGridSearchCV(small(), {"beta": [0.5, 2]}, cv=FOLDS)
    search.set_callbacks(callback.ProgressBar()).fit(wine)
    shown = capsys.readouterr().out
    assert "training" in shown
    assert "100%" in shown


def cases_of(shown):
    """What a search with verbose=10 prints of candidates, without times."""
    return [line.split(" total time")[0] for line in shown.splitlines() if "[CV" in line]


@pytest.mark.filterwarnings("ignore:One or more of the test scores are non-finite:UserWarning")
@pytest.mark.parametrize("in_pipeline", [False, True])
def test_verbose_shows_the_parameters_of_the_grid_and_no_others(wine, capsys, in_pipeline):
    estimator, prefix = small(), "vaetransformer__" * in_pipeline
    if in_pipeline:
        estimator = make_pipeline(StandardScaler(), estimator)
    shown = []
    for search in (VAEGridSearchCV, GridSearchCV):
        with pytest.warns(FitFailedWarning) as warned:
            search(estimator, {f"{prefix}beta": [0.5, -1]}, cv=FOLDS, verbose=10).fit(wine)
        assert _candidates.MODELS not in str(warned[0].message)
        shown.append(cases_of(capsys.readouterr().out))
    assert len(shown[0]) == 12
    assert shown[0] == shown[1]


def test_scorers_callbacks_and_results_see_the_estimator_and_its_parameters(wine):
    seen = []

    def scorer(estimator, X, y=None):
        seen.append(estimator)
        return estimator.score(X)

    def first(results):
        assert [type(params) for params in results["params"]] == [dict, dict]
        return 0

    grid = {"beta": [0.5, 2]}
    search = VAEGridSearchCV(small(), grid, cv=FOLDS, scoring=scorer, refit=first).fit(wine)
    assert [estimator.beta for estimator in seen] == [0.5] * 3 + [2] * 3
    for estimator in [*seen, search.best_estimator_]:
        assert type(estimator) is VAETransformer
        assert vars(estimator).keys() == vars(small().fit(wine)).keys()
    assert type(search.best_params_) is dict
    assert search.best_params_ is search.cv_results_["params"][0]


def test_verbose_says_how_many_stacks_there_are(wine, capsys):
    VAEGridSearchCV(small(), {"beta": [0.5, 2]}, cv=FOLDS, verbose=1, max_stack=100).fit(wine[:177])
    shown = capsys.readouterr().out
    assert "Training 6 models, stacks: 1" in shown
    assert "Fitting 3 folds for each of 2 candidates, totalling 6 fits" in shown


def test_a_candidate_with_callbacks_of_its_own_is_fitted_by_itself(wine, trained):
    callback = pytest.importorskip("sklearn.callback")

    class Stop:
        def setup(self, estimator, context):
            pass

        def on_fit_task_begin(self, estimator, context):
            pass

        def on_fit_task_end(self, estimator, context):
            return context.task_name == "epoch"

        def teardown(self, estimator, context):
            pass

    assert isinstance(Stop(), callback.FitCallback)
    vae = small()
    vae.set_callbacks(Stop())
    search = VAEGridSearchCV(vae, {"beta": [0.5, 2]}, cv=FOLDS, scoring=count_types, refit=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = search.fit(wine).cv_results_
    assert (results["mean_test_n_iter"] == 1).all()
    assert set(trained) == {1}


# --- groups of the fits -----------------------------------------------------------------------


class Watch:
    """Notes the rows that each fit holds out, and their groups."""

    def __init__(self, monkeypatch):
        self.seen, prepare = [], _vae.prepare

        def watch(vae, *args, **more):
            job, fitted = prepare(vae, *args, **more)
            self.seen.append((job.held_out, job.group))
            return job, fitted

        for module in (_vae, _candidates):
            monkeypatch.setattr(module, "prepare", watch)

    def assert_groups_are_whole(self):
        assert self.seen
        for held_out, group in self.seen:
            out, sizes = np.bincount(group[held_out], minlength=group.max() + 1), np.bincount(group)
            assert set((out / sizes).tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("in_pipeline", [False, True])
def test_groups_are_for_the_splitter_and_for_each_fit(wine, monkeypatch, in_pipeline):
    groups = np.array([f"p{i % 30}" for i in range(178)])
    vae = small(early_stopping=True, max_iter=8)
    estimator = make_pipeline(StandardScaler(), vae) if in_pipeline else vae
    prefix = "vaetransformer__" if in_pipeline else ""
    grid = {f"{prefix}beta": [0.5, 2], f"{prefix}n_components": [1, 2]}
    watch = Watch(monkeypatch)
    search = VAEGridSearchCV(estimator, grid, cv=GroupKFold(3)).fit(wine, groups=groups)
    watch.assert_groups_are_whole()
    # As fits by hand with the groups of each fold.
    for i, params in enumerate(search.cv_results_["params"]):
        for fold, (train, test) in enumerate(GroupKFold(3).split(wine, groups=groups)):
            own = {f"{prefix}groups": groups[train]}
            fitted = clone(estimator).set_params(**params).fit(wine[train], **own)
            score = search.cv_results_[f"split{fold}_test_score"][i]
            assert score == pytest.approx(fitted.score(wine[test]), rel=1e-6)


def test_a_search_with_routed_groups_equals_that_of_scikit_learn(wine, monkeypatch):
    groups = np.arange(178) % 30
    grid = {"beta": [0.5, 2], "n_components": [1, 2]}
    watch = Watch(monkeypatch)
    with config_context(enable_metadata_routing=True):
        vae = small(early_stopping=True, max_iter=8).set_fit_request(groups=True)
        searches = [
            Search(vae, grid, cv=GroupKFold(3)).fit(wine, groups=groups)
            for Search in (VAEGridSearchCV, GridSearchCV)
        ]
    watch.assert_groups_are_whole()
    ours, theirs = (search.cv_results_["mean_test_score"] for search in searches)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    plain = VAEGridSearchCV(small(early_stopping=True, max_iter=8), grid, cv=GroupKFold(3))
    ungated = plain.fit(wine, groups=groups).cv_results_["mean_test_score"]
    np.testing.assert_allclose(ours, ungated, rtol=1e-6)


def test_groups_of_a_routed_search_reach_no_fit_that_does_not_ask_for_them(wine, monkeypatch):
    watch = Watch(monkeypatch)
    with config_context(enable_metadata_routing=True):
        vae = small(early_stopping=True).set_fit_request(groups=False)
        VAEGridSearchCV(vae, {"beta": [1, 2]}, cv=GroupKFold(3)).fit(
            wine, groups=np.arange(178) % 30
        )
    assert watch.seen
    assert all(group is None for _, group in watch.seen)


def test_the_refit_of_a_search_holds_out_whole_groups(wine):
    groups = np.arange(178) % 30
    vae = small(early_stopping=True)
    search = VAEGridSearchCV(vae, {"beta": [2.0]}, cv=GroupKFold(3)).fit(wine, groups=groups)
    alone = clone(vae).set_params(beta=2.0).fit(wine, groups=groups)
    for name, array in alone.state_.items():
        np.testing.assert_allclose(search.best_estimator_.state_[name], array, **SAME)


def test_a_search_whose_folds_have_one_group_each_trains(wine):
    X, group = wine[:80], np.repeat([0, 1], 40)
    vae = small(early_stopping=True, max_iter=3)
    search = VAEGridSearchCV(vae, {"beta": [1, 2]}, cv=GroupKFold(2)).fit(X, groups=group)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    for fold, (train, test) in enumerate(GroupKFold(2).split(X, groups=group)):
        alone = clone(vae).set_params(beta=1).fit(X[train])
        score = search.cv_results_[f"split{fold}_test_score"][0]
        assert score == pytest.approx(alone.score(X[test]), abs=1e-3)
