"""A real table of mixed columns with holes, from end to end: frames in and frames out."""

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline

from skvae import VAEGridSearchCV, VAETransformer, metrics

GRID = {"beta": [0.5, 1.0], "n_components": [2, 4]}


@pytest.fixture(scope="module")
def diabetes():
    """The patients, those with holes, and whether the disease went on fast."""
    data = load_diabetes(as_frame=True, scaled=False)
    whole = data.data.assign(sex=data.data["sex"].map({1.0: "f", 2.0: "m"}).astype("category"))
    whole["age"] = whole["age"].astype("Int64")
    whole["smoker"] = pd.array(whole["bp"] > 100, dtype="boolean")
    whole.index = whole.index + 1000
    gone = np.random.default_rng(0).random(whole.shape) < 0.1
    return whole, whole.mask(gone), data.target > data.target.median()


@pytest.fixture(scope="module")
def search(diabetes):
    vae = VAETransformer(
        likelihood="auto", hidden_layer_sizes=(32, 16), max_iter=60, random_state=0
    ).set_output(transform="pandas")
    return VAEGridSearchCV(vae, GRID, cv=3).fit(diabetes[1])


def test_columns_know_of_each_other(search, diabetes):
    # Better than each column by itself: normals, and shares of the values.
    whole, table, _ = diabetes
    alone = 0.0
    for name in whole:
        there = table[name].dropna()
        if name in ("sex", "smoker"):
            share = there.value_counts(normalize=True)
            alone += float((share * np.log(share)).sum())
        else:
            alone -= 0.5 * np.log(2 * np.pi * np.e * there.astype(float).var())
    assert metrics.log_likelihood(search, whole, random_state=0) > alone + 1


def test_latent_features_of_rows_with_holes_are_a_frame_for_a_classifier(search, diabetes):
    _, table, fast = diabetes
    Z = search.best_estimator_.transform(table)
    assert isinstance(Z, pd.DataFrame)
    pd.testing.assert_index_equal(Z.index, table.index)
    fast.index = table.index
    vae = VAETransformer(**search.best_estimator_.get_params())
    accuracy = cross_val_score(make_pipeline(vae, LogisticRegression()), table, fast, cv=3)
    assert accuracy.mean() > 0.6


def test_reconstructions_and_draws_are_tables_like_that_of_fit(search, diabetes):
    whole, table, _ = diabetes
    best = search.best_estimator_
    back, drawn = best.inverse_transform(best.transform(table)), best.sample(500, random_state=0)
    for out in (back, drawn):
        pd.testing.assert_series_equal(out.dtypes, table.dtypes)
        assert not out.isna().any(axis=None)
    pd.testing.assert_index_equal(back.index, table.index)
    numbers = whole.columns.drop(["sex", "smoker"])
    moved = (drawn[numbers].astype(float).mean() - whole[numbers].astype(float).mean()).abs()
    assert (moved < 0.3 * whole[numbers].astype(float).std()).all()
    assert (drawn["sex"] == "m").mean() == pytest.approx((whole["sex"] == "m").mean(), abs=0.1)
