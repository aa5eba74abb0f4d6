"""What `fit` learns of the columns, before a model is made."""

import inspect
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy.sparse import csr_array

from skvae import VAEImputer, VAETransformer
from skvae._data import arrays, description
from skvae._fit.preparation import prepare
from skvae.likelihoods import Gaussian


class Watched:
    """Rows that note how many of them are asked for at once."""

    def __init__(self, X):
        self.X, self.shape, self.dtype, self.asked = X, X.shape, X.dtype, []

    def __getitem__(self, rows):
        some = self.X[rows]
        self.asked.append(some.shape[0])
        return some


def describe(data, held_out, weight=None):
    names = {"_categories": {}}
    return description.describe(data, Gaussian(), names, weight, held_out, reset=True)[0]


@pytest.mark.filterwarnings("ignore:X has values that are farther from the others")
@pytest.mark.parametrize("kind", [np.asarray, csr_array], ids=["dense", "sparse"])
def test_rows_are_described_in_blocks_those_held_out_too(kind):
    X = np.random.default_rng(0).normal(size=(3000, 1000))
    held_out = np.random.default_rng(1).permutation(3000)[:1500]
    X[held_out[7], 3] = 1e9
    X[held_out[9], 4] = np.nan
    data = Watched(kind(X))
    moments = describe(data, held_out)
    assert max(data.asked) <= arrays.READ_AT_ONCE // 1000
    assert moments.has_holes
    assert moments.suspects[1, 3] == 1e9
    training = np.delete(X, held_out, axis=0)
    np.testing.assert_allclose(moments.mean, training.mean(axis=0), rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(moments.std, training.std(axis=0), rtol=1e-9)


def test_a_hole_of_a_held_out_row_in_a_column_without_a_value_is_none():
    X = np.random.default_rng(0).normal(size=(30, 3))
    X[:, 1] = np.nan
    with pytest.warns(UserWarning, match="X has no value in column 1"):
        assert not describe(X, np.array([4, 2])).has_holes


@pytest.mark.filterwarnings("ignore:X has values that are farther from the others")
@pytest.mark.parametrize("weighted", [False, True])
def test_a_held_out_value_out_of_reach_is_counted_in_the_units_of_its_column(weighted):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, 3))
    X[[5, 80], 1] = 1e20, 1e19
    weight = rng.uniform(0.5, 2, 100) if weighted else None
    whole, training = (describe(X, np.array(out, int), weight) for out in ([], [5, 80]))
    for name in ("mean", "std", "n_values", "n_various"):
        assert getattr(training, name)[1] == getattr(whole, name)[1]
    others = describe(X[:, [0, 2]], np.array([5, 80]), weight)
    np.testing.assert_array_equal(training.std[[0, 2]], others.std)
    assert training.n_values.tolist() == [98, 100, 98]


# --- columns that vary by less than float64 resolves --------------------------------------------


def narrow(kind):
    """300 rows whose column 1 varies by little, if for its size."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(300)
    column = {
        "1e15": 1e15 + np.round(noise * 4),
        "seconds": 1.6e9 + 1e-6 * noise,
        "float32": (1.6e9 + 100 * noise).astype(np.float32),
        "int64": 2**62 + rng.integers(200, size=300),
        "uint64": np.uint64(2**63) + rng.integers(200, size=300).astype(np.uint64),
        "longer": 2**62 + rng.integers(100_000, size=300),
    }[kind]
    others = rng.standard_normal((2, 300)) * 1000
    return np.column_stack([others[0].astype(column.dtype), column, others[1].astype(column.dtype)])


def fit(X, **params):
    how = {"hidden_layer_sizes": (4,), "max_iter": 2, "early_stopping": False, "random_state": 0}
    return VAETransformer(2, **how | params).fit(X)


@pytest.mark.parametrize("kind", ["1e15", "seconds", "float32", "int64", "uint64", "longer"])
def test_a_column_that_varies_too_little_to_be_more_than_constant_is_named(kind):
    X, share = narrow(kind), "5e-07" if kind == "float32" else "3e-14"
    assert len(np.unique(X[:, 1])) > 3
    message = f"X has values in column 1 that differ by less than {share} of their size: the model"
    with pytest.warns(UserWarning, match=message):
        vae = fit(X)
    assert vae.state_["scale"][1] == 0
    frame = pd.DataFrame(X, columns=list("abc"))
    for container in (frame, pl.DataFrame(X, schema=list("abc"))):
        with pytest.warns(UserWarning, match=r"in column 1 \('b'\) that differ") as caught:
            fit(container)
        assert len(caught) == 1
    # The remedy.
    assert (fit(X - X.min(axis=0)).state_["scale"] > 0).all()


@pytest.mark.parametrize("container", [np.asarray, pd.DataFrame])
def test_a_warning_of_a_column_points_at_the_line_that_called_fit(container):
    vae = VAETransformer(1, max_iter=1, random_state=0)
    with pytest.warns(UserWarning, match="that differ by less") as caught:
        vae.fit(container(narrow("int64")))
    line = inspect.currentframe().f_lineno - 1
    assert (caught[0].filename, caught[0].lineno) == (__file__, line)


def test_a_warning_of_copies_points_at_the_line_that_called_fit():
    vae, (X, _) = VAETransformer(1, max_iter=1, random_state=0), drawn_again()
    with pytest.warns(UserWarning, match="are copies") as caught:
        vae.fit(X)
    line = inspect.currentframe().f_lineno - 1
    assert (caught[0].filename, caught[0].lineno) == (__file__, line)


@pytest.mark.parametrize("value", [0.1, -1e15, 1e300, 2**62, 2**53 + 1])
def test_nothing_is_said_of_a_column_that_is_constant(value):
    X = np.column_stack([np.arange(40) % 7, np.full(40, value)])
    for rows in (X, pd.DataFrame(X), X.astype(np.float64)):
        assert fit(rows).state_["scale"][1] == 0
    assert fit(X.astype(np.float64), precision="float64").state_["scale"][1] == 0


def test_long_numbers_of_rows_without_weight_are_left_out():
    X = np.column_stack([np.arange(40), 2**62 + np.arange(40) % 20 * 2])
    weight = np.where(X[:, 1] == 2**62, 1.0, 0.0)
    weight[0] = 2.0
    for rows in (X, pd.DataFrame(X)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "All|The loss")
            VAETransformer(1, max_iter=1).fit(rows, sample_weight=weight)


# --- rows that are copies of each other ---------------------------------------------------------


def drawn_again(n=100, n_drawn=400):
    """Rows of real values and a category's code, drawn with replacement; and their places."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 3)) @ rng.normal(size=(3, 4))
    X[:, 3] = X[:, 3] > 0
    row = rng.integers(n, size=n_drawn)
    return X[row], row


@pytest.mark.parametrize("container", [np.asarray, np.float32, pd.DataFrame])
def test_rows_drawn_with_replacement_are_said_to_be_copies_with_two_remedies(container):
    X, row = drawn_again()
    X[row % 7 == 0, 1] = np.nan
    message = r"of the 40 rows held out are copies of rows that are .*in groups.*sample_weight"
    with pytest.warns(UserWarning, match=message):
        fit(container(X), early_stopping=True)
    fit(container(X), early_stopping=False)
    weight = np.r_[0.0, np.ones(399)]
    with pytest.warns(UserWarning, match="of the 39 rows held out are copies"):
        fit_with(container(X), sample_weight=weight)
    fit_with(container(X), groups=row)
    first, n = np.unique(row, return_index=True, return_counts=True)[1:]
    fit_with(container(X[first]), sample_weight=n)


def fit_with(X, **of_rows):
    how = {"hidden_layer_sizes": (4,), "max_iter": 2, "random_state": 0}
    return VAETransformer(2, **how).fit(X, **of_rows)


def discrete(kind, n=2000):
    """Rows that are equal by chance."""
    rng = np.random.default_rng(0)
    answers = rng.integers(1, 6, size=(n, 3)).astype(float)
    age, sex = rng.integers(18, 90, size=n), rng.integers(2, size=n)
    if kind == "answers":
        return answers
    if kind == "counts":
        return rng.poisson([1.0, 40.0], size=(n, 2)).astype(float)
    if kind == "one column":
        return np.round(rng.normal(37, 0.5, size=(n, 1)), 1)
    if kind == "one column varies":
        return np.hstack([np.round(rng.normal(37, 0.5, size=(n, 1)), 1), np.ones((n, 1))])
    if kind == "digits":
        return rng.integers(17, size=(n, 2)) / 16
    if kind == "one real column":
        return np.column_stack([rng.normal(size=n), age, sex])
    return np.column_stack([age, sex]).astype(float)


@pytest.mark.parametrize(
    "kind",
    ["answers", "counts", "one column", "one column varies", "digits", "one real column", "people"],
)
@pytest.mark.parametrize("scaled", [False, True])
def test_rows_that_are_equal_by_chance_raise_no_alarm(kind, scaled):
    X = discrete(kind)
    if scaled:
        X = (X - X.mean(axis=0)) / np.maximum(X.std(axis=0), 1e-9)
    vae = fit(X, early_stopping=True)
    assert "validation_loss" in vae.history_


def test_the_copies_that_an_imputer_makes_raise_no_alarm():
    X = np.random.default_rng(0).normal(size=(60, 3))
    how = {"hidden_layer_sizes": (4,), "max_iter": 2, "early_stopping": True}
    VAEImputer(VAETransformer(1, **how, random_state=0), n_draws=4).fit(X)


def test_a_column_with_values_in_held_out_rows_alone_is_told_as_that():
    X = np.random.default_rng(0).normal(size=(60, 3))
    vae = VAETransformer(2, max_iter=2, random_state=0)
    held_out = prepare(vae, X)[0].held_out
    only_there = X.copy()
    only_there[np.setdiff1d(np.arange(60), held_out), 1] = np.nan
    with pytest.warns(UserWarning, match="no value in column 1: all .* in the rows that are train"):
        vae.fit(only_there)
    only_there[held_out, 1] = np.nan
    with pytest.warns(UserWarning, match="no value in column 1: all are missing[.]"):
        vae.fit(only_there)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_copies_are_looked_for_among_rows_with_holes_and_of_any_size(dtype):
    # Differences of such values would be invalid, or overflow.
    rng = np.random.default_rng(0)
    X = np.repeat(rng.normal(size=(30, 2)), 8, axis=0).astype(dtype)
    X[rng.random(X.shape) < 0.1] = np.nan
    assert description._is_real(np.unique(X, axis=0)) in (True, False)
    X[:2, 0] = np.finfo(dtype).min, np.finfo(dtype).max
    assert description._is_real(X) in (True, False)
