"""Any array at all: a fit ends with numbers everywhere, or with an error that names what is wrong.

Arrays are of all dtypes and orders in memory, of a few rows or more, of columns of any scale that
are constant, equal or have missing values. None is ever changed.
"""

import pathlib
import re
import traceback
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.exceptions import ConvergenceWarning

from skvae import VAETransformer
from skvae.likelihoods import Bernoulli, Gaussian, NegativeBinomial, Poisson, ZeroInflated

REALS = ["gaussian", "student_t", Gaussian("shared"), Gaussian("per_feature"), "laplace"]
FLOATS = [np.float16, np.float32, np.float64, np.longdouble, ">f4", ">f8"]
WHOLE = [np.int8, np.int32, np.int64, np.uint8, np.uint64, ">i4", bool]

ORDERS = {
    "C": np.ascontiguousarray,
    "F": np.asfortranarray,
    "negative strides": lambda X: X[::-1, ::-1].copy()[::-1, ::-1],
    "every second row": lambda X: np.repeat(X, 2, axis=0)[::2],
    "every second column": lambda X: np.repeat(X, 2, axis=1)[:, ::2],
    "part of a larger array": lambda X: np.pad(X, 1)[1:-1, 1:-1],
}

# What an array can be refused for, in words that say of what.
NAMED = (
    r"Input X contains infinity|X contains infinity in column \d",
    r"only missing values",
    r"X has the value .* in column \d",
    r"expects .* Got .* in column \d",
    r"not finite in epoch \d+, at learning rate",
)
BESIDE = "X has values that differ from the constant of a column in the rows that fit trained on"
OF_TORCH = r"mat1|tensor|Tensor|torch|scalar type|grad_fn"


def columns(draw, n_rows, n_columns, rng):
    """Columns of float64, each of a kind, scale and place of its own."""
    X = rng.normal(size=(n_rows, n_columns))
    for i in range(n_columns):
        kind = draw(st.sampled_from(["normal", "constant", "equal", "two values", "outlier"]))
        if kind == "constant":
            X[:, i] = X[0, i]
        elif kind == "equal":
            X[:, i] = X[:, 0]
        elif kind == "two values":
            X[:, i] = X[:, i] > 0
        elif kind == "outlier":
            X[rng.integers(n_rows), i] *= 1e6
        X[:, i] += draw(st.sampled_from([0, 0, 1, -1e3, 1e9]))
        X[:, i] *= 10.0 ** draw(st.integers(-30, 30))
    return X


@st.composite
def arrays(draw, dtypes, values=columns):
    """An array of one of the dtypes, in any order in memory, some floats with NaN."""
    n_rows = draw(st.one_of(st.integers(2, 6), st.integers(7, 60)))
    n_columns = draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    X, dtype = values(draw, n_rows, n_columns, rng), np.dtype(draw(st.sampled_from(dtypes)))
    if dtype.kind in "iu":
        room = np.iinfo(dtype)
        X = np.clip(np.rint(X), room.min // 2, room.max // 2)
    with np.errstate(over="ignore", under="ignore"):
        X = X.astype(dtype)
    if dtype.kind == "f":
        X[rng.random(X.shape) < draw(st.sampled_from([0, 0, 0.1, 0.5]))] = np.nan
    if draw(st.booleans()):
        X = X[rng.integers(n_rows, size=n_rows)]  # some rows twice
    X = draw(st.sampled_from(list(ORDERS.values())))(X)
    X.flags.writeable = draw(st.booleans())
    return X


def reason_to_refuse(vae, X):
    """The error of a fit, if there is one."""
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        # Of scikit-learn, which adds up infinities of both signs.
        warnings.filterwarnings("ignore", "invalid value encountered in reduce", RuntimeWarning)
        # What else there is to say of arrays such as these; other tests hold fits to these words.
        warnings.filterwarnings(
            "ignore", "X has no value in|X has values|All columns of X are const"
        )
        warnings.filterwarnings("ignore", ".* rows held out are copies of rows")
        try:
            vae.fit(X)
        except (TypeError, ValueError) as error:
            return error


def numbers_everywhere(X, vae, empty):
    """Ask a fitted model for everything: all numbers, and the same at each call."""
    for name, values in (vae.state_ | vae.history_).items():
        known = ~empty if name == "location" else ...
        assert np.isfinite(values[known]).all(), name
    scores, Z = vae.score_samples(X), vae.transform(X)
    for array in (scores, Z, *vae.encode(X)):
        assert np.isfinite(array).all()
    for array in (vae.inverse_transform(Z), vae.sample(5, 0)):
        np.testing.assert_array_equal(np.isnan(array), np.broadcast_to(empty, array.shape))
        assert not np.isinf(array).any()
    np.testing.assert_array_equal(vae.score_samples(X), scores)
    np.testing.assert_array_equal(vae.score_samples(X[:1]), scores[:1])
    np.testing.assert_array_equal(vae.transform(X), Z)


def numbers_or_a_reason(X, vae, possible):
    """Fit and ask for everything: all that comes back are numbers, or the error says why not.

    `possible` says of each number in X whether the likelihood knows it.
    """
    memory = X if X.base is None else X.base
    before, flags = memory.tobytes(), str(X.flags)
    error = reason_to_refuse(vae, X)
    missing = np.isnan(X)
    empty = missing.all(axis=0)
    good = (missing | possible(X)).all() and not empty.all()
    assert good == (error is None), error
    if good:
        with warnings.catch_warnings():
            if "validation_loss" in vae.history_:  # a row held out may differ from a constant
                warnings.filterwarnings("ignore", BESIDE, UserWarning)
            numbers_everywhere(X, vae, empty)
    else:
        where = pathlib.Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        assert pathlib.Path(torch.__file__).parent not in where.parents
        assert not re.search(OF_TORCH, str(error))
        assert re.search("|".join(NAMED), str(error)), error
        assert vars(vae).keys() == vae.get_params().keys()
    assert memory.tobytes() == before
    assert str(X.flags) == flags


def small(draw, likelihood):
    return VAETransformer(
        draw(st.integers(1, 3)),
        likelihood=likelihood,
        hidden_layer_sizes=(4,),
        max_iter=draw(st.integers(2, 3)),
        early_stopping=draw(st.sampled_from(["auto", False])),
        random_state=0,
    )


@settings(max_examples=25, deadline=None)
@given(st.data())
@pytest.mark.parametrize("likelihood", REALS, ids=str)
def test_columns_of_any_kind_and_scale_are_fitted_or_refused(likelihood, data):
    X = data.draw(arrays(FLOATS + WHOLE))
    numbers_or_a_reason(X, small(data.draw, likelihood), np.isfinite)


def anything(draw, n_rows, n_columns, rng):
    """What hypothesis finds among the floats."""
    elements = st.floats(-1e300, 1e300) | st.sampled_from([np.inf, 5e-324, -0.0])
    return draw(hnp.arrays(np.float64, (n_rows, n_columns), elements=elements))


@settings(max_examples=40, deadline=None)
@given(st.data())
@pytest.mark.parametrize("likelihood", ["gaussian", "student_t"])
def test_any_numbers_are_fitted_or_refused(likelihood, data):
    X = data.draw(arrays([np.float64, np.longdouble, ">f8"], anything))
    numbers_or_a_reason(X, small(data.draw, likelihood), np.isfinite)


def counts(draw, n_rows, n_columns, rng):
    """Whole numbers of any size; in some arrays one that is none."""
    X = rng.poisson(10.0 ** draw(st.integers(-2, 6)), size=(n_rows, n_columns)).astype(float)
    X[0, 0] = draw(st.sampled_from([X[0, 0], X[0, 0], 0.5, -1, np.inf]))
    return X


@settings(max_examples=20, deadline=None)
@given(st.data())
@pytest.mark.parametrize(
    "likelihood", ["poisson", NegativeBinomial(), ZeroInflated(Poisson())], ids=str
)
def test_any_counts_are_fitted_or_refused(likelihood, data):
    X = data.draw(arrays(FLOATS + WHOLE, counts))
    most = np.float64(1e10)  # which no float16 is asked to hold
    vae = small(data.draw, likelihood)
    numbers_or_a_reason(X, vae, lambda X: (X >= 0) & (most >= X) & (np.rint(X) == X))


def shares(draw, n_rows, n_columns, rng):
    """Numbers in [0, 1]; in some arrays one that is not."""
    X = rng.random((n_rows, n_columns))
    if draw(st.booleans()):
        X = np.rint(X)
    X[0, 0] = draw(st.sampled_from([X[0, 0], X[0, 0], 1 + 1e-9, -0.1, 2, np.inf]))
    return X


@settings(max_examples=20, deadline=None)
@given(st.data())
@pytest.mark.parametrize(
    "likelihood", ["bernoulli", Bernoulli(resample=True), "continuous_bernoulli"], ids=str
)
def test_any_shares_are_fitted_or_refused(likelihood, data):
    X = data.draw(arrays(FLOATS + WHOLE, shares))
    numbers_or_a_reason(X, small(data.draw, likelihood), lambda X: (X >= 0) & (X <= 1.000001))
