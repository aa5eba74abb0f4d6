"""What can go wrong, and what only seems to: 53 numbered cases and what is right in each.

The number of a case is in the id of its row, or in the name of its test. Most are mistakes, of
which a class and a message are expected that name what is wrong; the others are inputs, moments
and surroundings that are unusual and right, and have to change nothing.
"""

import concurrent.futures
import contextlib
import io
import math
import multiprocessing
import os
import pickle
import re
import signal
import struct
import subprocess
import sys
import tracemalloc
import zlib

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse
import sklearn
import skops.io
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, FitFailedWarning, NotFittedError
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, KFold, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_html_repr
from threadpoolctl import threadpool_limits

from skvae import VAETransformer, metrics
from skvae._model.adam import Adam
from skvae._model.rows import Batch
from skvae._model.stack import Stack
from skvae.likelihoods import Bernoulli, Gaussian
from skvae.networks import MLP

REALS = [Gaussian("per_feature"), Gaussian("shared"), Gaussian("per_sample"), Gaussian(0.5)]
any_likelihood = pytest.mark.parametrize("likelihood", [*REALS, Bernoulli()], ids=str)

OUTPUTS = {
    "transform": lambda vae, X: vae.transform(X),
    "encode": lambda vae, X: np.hstack(vae.encode(X)),
    "inverse_transform": lambda vae, X: vae.inverse_transform(vae.transform(X)),
    "score_samples": lambda vae, X: vae.score_samples(X),
}
READ_AGAIN = ["transform", "encode", "sample_posterior", "score_samples", "score"]
every_method = pytest.mark.parametrize("method", ["fit", *READ_AGAIN])
every_method_after_fit = pytest.mark.parametrize("method", READ_AGAIN)


def suited(X, likelihood):
    """X, or zeros and ones where nothing else will do."""
    return (np.mean(X, axis=0) < X).astype(X.dtype) if likelihood == Bernoulli() else X


def framed(X):
    return pd.DataFrame(X, columns=list("abcd"))


def put(value):
    """Function that puts a value in row 3, column 2."""

    def spoil(X):
        X = X.astype(type(value)) if isinstance(value, complex) else X.copy()
        X[3, 2] = value
        return X

    return spoil


def assert_same_state(left, right):
    assert left.state_.keys() == right.state_.keys()
    for name, array in left.state_.items():
        np.testing.assert_array_equal(array, right.state_[name])


def assert_finite(vae, X):
    """The model and all that it says of X are numbers."""
    assert all(np.isfinite(array).all() for array in vae.state_.values())
    assert all(np.isfinite(output(vae, X)).all() for output in OUTPUTS.values())
    assert np.isfinite(vae.sample(3, random_state=0)).all()


def in_a_new_process(code, **environment):
    """What the code prints in an interpreter of its own, where warnings are errors."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return run.stdout


# --- 01-16: what X is ---------------------------------------------------------------------


@every_method
def test_01_nan_is_a_missing_value_and_is_accepted(X, quick, method):
    # No error: the bound is that of the values that are there.
    X[::7, 2] = np.nan
    vae = quick().fit(X)
    assert_finite(vae, X)
    getattr(vae, method)(X)


def test_01_a_column_of_nan_only_is_named(X, quick):
    X[:, 2] = np.nan
    with pytest.warns(UserWarning, match=r"X has no value in column 2: all are missing\."):
        quick().fit(X)


def dates(X):
    return np.full(X.shape, np.datetime64("2020-01-01", "D"))


def objects(X, value):
    return np.array([[value, 1.0, 2.0, 3.0]] * len(X), dtype=object)


NO_DATA = [
    pytest.param(put(np.inf), ValueError, "Input X contains infinity", id="02 infinity"),
    pytest.param(put(-np.inf), ValueError, "Input X contains infinity", id="02 minus infinity"),
    pytest.param(
        # Infinity in the words of the message, since that is what it is as float64.
        lambda X: put(np.longdouble("1e400"))(X.astype(np.longdouble)),
        ValueError,
        "contains infinity|X has the value inf in column 2",
        id="03 beyond float64",
    ),
    pytest.param(put(1j), ValueError, "Complex data not supported", id="04 complex"),
    pytest.param(lambda X: X[0], ValueError, "Expected 2D array, got 1D array", id="06 1-D"),
    pytest.param(
        lambda X: pd.Series(X[0]),
        ValueError,
        "Expected a 2-dimensional container",
        id="06 series of pandas",
    ),
    pytest.param(lambda X: X[None], ValueError, "X has 3 dimensions, of shape", id="06 3-D"),
    pytest.param(lambda X: 3.0, ValueError, "got scalar array", id="06 scalar"),
    pytest.param(lambda X: None, ValueError, "X is None", id="06 None"),
    pytest.param(lambda X: X[:0], ValueError, r"Found array with 0 sample\(s\)", id="07 0 rows"),
    pytest.param(
        lambda X: X[:, :0], ValueError, r"Found array with 0 feature\(s\)", id="07 0 columns"
    ),
    # Strings may be categories: the message says of which value, and with which likelihood.
    pytest.param(
        lambda X: [["a", "b", "c", "d"]] * 3,
        ValueError,
        "X has the value 'a' in column 0, which is no number.*likelihood='auto'",
        id="09 strings",
    ),
    pytest.param(
        lambda X: X.astype(str),
        ValueError,
        "in column 0, which is no number",
        id="09 numbers as strings",
    ),
    pytest.param(
        lambda X: objects(X, {}),
        TypeError,
        "X has a value of type dict in column 0: .* argument must be a string or a number",
        id="09 dicts",
    ),
    pytest.param(lambda X: [[1, 2, 3, 4], [1, 2]], ValueError, "unequal lengths", id="09 ragged"),
    pytest.param(dates, ValueError, r"Got dtype datetime64\[D\] in column 0", id="10 dates"),
    pytest.param(
        lambda X: list(map(list, dates(X))),
        ValueError,
        r"Got dtype datetime64\[D\] in column 0",
        id="10 list of dates",
    ),
    pytest.param(
        lambda X: objects(X, np.datetime64("2020-01-01")),
        ValueError,
        r"expects numbers. Got .*2020-01-01",
        id="10 dates among objects",
    ),
    pytest.param(
        lambda X: np.full(X.shape, np.timedelta64(3, "s")),
        ValueError,
        r"Got dtype timedelta64\[s\] in column 0",
        id="10 durations",
    ),
    pytest.param(
        lambda X: framed(X).assign(c=pd.Timestamp("2020-01-01")),
        ValueError,
        r"Got dtype datetime64\[.*\] in column 2",
        id="10 column of dates",
    ),
    pytest.param(
        lambda X: framed(X).assign(c=pd.Timestamp("2020-01-01", tz="UTC")),
        ValueError,
        r"Got dtype datetime64\[.*\] in column 2",
        id="10 column of dates with time zone",
    ),
    pytest.param(
        lambda X: pl.DataFrame(X, schema=list("abcd")).with_columns(
            pl.lit("2020-01-01").str.to_date().alias("c")
        ),
        ValueError,
        "Got dtype Date in column 2",
        id="10 column of dates in polars",
    ),
    pytest.param(
        lambda X: framed(X).assign(c="x"),
        ValueError,
        r"X has the value 'x' in column 2 \('c'\), which is no number",
        id="11 column of strings",
    ),
    pytest.param(
        lambda X: pd.DataFrame(X, columns=["a", "b", 0, 1]),
        TypeError,
        "Feature names are only supported if all input features have string names",
        id="11 names of two types",
    ),
]


@pytest.mark.filterwarnings("ignore:X has feature names:UserWarning")
@every_method
@pytest.mark.parametrize(("spoil", "error", "match"), NO_DATA)
def test_data_of_the_wrong_kind_are_refused(X, quick, method, spoil, error, match):
    vae = quick().fit(X)
    if "infinity" in match and method.startswith("score"):
        assert_minus_infinity(vae, method, spoil(X))
        return
    with pytest.raises(error, match=match):
        getattr(vae, method)(spoil(X))


def assert_minus_infinity(vae, method, X):
    """The score of X, spoilt in row 3 and column 2, is that of any row there but this one."""
    with pytest.warns(UserWarning, match="X has values that are infinite, or more than 1e\\+10"):
        scores = np.atleast_1d(getattr(vae, method)(X))
    assert np.flatnonzero(np.isinf(scores)).tolist() == ([3] if method == "score_samples" else [0])
    assert (scores < np.inf).all()


@pytest.mark.parametrize("magnitude", [1e-200, 1e39, 1e200])
def test_03_numbers_that_float32_does_not_hold_are_fitted(X, quick, magnitude):
    # No error: units are float64, so that fit has none that are too large.
    vae = quick(max_iter=30)
    score = vae.fit(X).score(X)
    Y = X * magnitude
    np.testing.assert_allclose(vae.fit(Y).score(Y), score - 4 * np.log(magnitude), atol=1e-3)
    assert np.isfinite(vae.inverse_transform(vae.transform(Y))).all()


@pytest.mark.parametrize("value", [1e39, -1e300, np.finfo(np.float64).max])
def test_03_one_number_far_from_all_others_is_fitted(X, quick, value):
    X = put(value)(X)
    with pytest.warns(UserWarning, match=re.escape(f"{value:.10g} in column 2 (1 row)")):
        vae = quick().fit(X)
    assert_finite(vae, X)


@every_method_after_fit
@pytest.mark.parametrize("value", [1e39, -1e39, 1e300])
@pytest.mark.parametrize(("form", "name"), [(np.asarray, ""), (framed, r" \('c'\)")])
def test_03_a_number_too_far_from_the_training_data_is_named(X, quick, method, value, form, name):
    vae = quick().fit(form(X))
    number = f"{value:g}".replace("+", r"\+")
    if method.startswith("score"):
        assert_minus_infinity(vae, method, form(put(value)(X)))
        return
    with pytest.raises(ValueError, match=f"X has the value {number} in column 2{name}: more than"):
        getattr(vae, method)(form(put(value)(X)))


@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "lil"])
@pytest.mark.parametrize("form", ["array", "matrix"])
def test_05_sparse_rows_are_the_rows_that_they_are(X, quick, kind, form):
    # No error: they become dense in parts.
    X[X < 0] = 0
    sparse = getattr(scipy.sparse, f"{kind}_{form}")(X)
    vae, expected = quick().fit(sparse), quick().fit(X)
    assert_same_state(vae, expected)
    np.testing.assert_array_equal(vae.transform(sparse), expected.transform(X))
    np.testing.assert_array_equal(vae.score_samples(sparse), expected.score_samples(X))


def test_08_one_row_is_too_few_to_fit(X, quick):
    with pytest.raises(ValueError, match=r"Found array with 1 sample\(s\).*minimum of 2"):
        quick().fit(X[:1])


def test_08_one_row_is_enough_for_all_else(X, quick):
    vae = quick().fit(X)
    for output in OUTPUTS.values():
        np.testing.assert_array_equal(output(vae, X[:1]), output(vae, X)[:1])


def test_11_na_of_pandas_is_a_missing_value(X, quick):
    # No error, as with NaN.
    frame = framed(X).astype("Float64")
    frame.loc[::7, "c"] = pd.NA
    expected = framed(X)
    expected.loc[::7, "c"] = np.nan
    vae = quick().fit(frame)
    assert_same_state(vae, quick().fit(expected))
    np.testing.assert_array_equal(vae.score_samples(frame), vae.score_samples(expected))


@every_method_after_fit
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda frame: frame[list("bacd")], id="12 another order"),
        pytest.param(lambda frame: frame.drop(columns="b"), id="12 a column less"),
        pytest.param(lambda frame: frame.assign(e=0.0), id="12 a column more"),
        pytest.param(lambda frame: frame.rename(columns={"b": "B"}), id="12 another name"),
    ],
)
def test_columns_of_other_names_are_refused(X, quick, method, change):
    vae = quick().fit(framed(X))
    with pytest.raises(ValueError, match="feature names should match those that were passed"):
        getattr(vae, method)(change(framed(X)))


@pytest.mark.parametrize(
    ("before", "now", "match"),
    [
        pytest.param(framed, np.asarray, "X does not have valid feature names", id="13 in fit"),
        pytest.param(np.asarray, framed, "X has feature names, but VAET", id="13 after fit"),
    ],
)
def test_names_on_one_side_only_are_a_warning_and_change_nothing(X, quick, before, now, match):
    vae = quick().fit(before(X))
    expected = vae.transform(before(X))
    with pytest.warns(UserWarning, match=match) as caught:
        np.testing.assert_array_equal(vae.transform(now(X)), expected)
    assert len(caught) == 1


@every_method_after_fit
def test_14_another_number_of_columns_is_refused(X, quick, method):
    vae = quick().fit(X)
    with pytest.raises(ValueError, match="X has 2 features, but VAETransformer is expecting 4"):
        getattr(vae, method)(X[:, :2])


def test_14_another_number_of_columns_is_refused_by_partial_fit(X, quick):
    vae = quick().partial_fit(X)
    with pytest.raises(ValueError, match="X has 2 features, but VAETransformer is expecting 4"):
        vae.partial_fit(X[:, :2])


def test_14_another_number_of_columns_is_refused_where_fit_goes_on(X, quick):
    vae = quick(warm_start=True).fit(X)
    with pytest.raises(ValueError, match="X has 2 features, but VAETransformer is expecting 4"):
        vae.fit(X[:, :2])


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        pytest.param(lambda Z: Z[:, :1], "X has 1 columns.*n_components=2", id="15 too few"),
        pytest.param(
            lambda Z: np.hstack([Z, Z]), "X has 4 columns.*n_components=2", id="15 too many"
        ),
        # Rows of latent features have no missing values.
        pytest.param(
            lambda Z: np.where(Z.max() == Z, np.nan, Z), "Input X contains NaN", id="16 NaN"
        ),
        pytest.param(
            lambda Z: np.where(Z.max() == Z, np.inf, Z), "Input X contains inf", id="16 infinity"
        ),
        pytest.param(lambda Z: Z[0], "Expected 2D array, got 1D array", id="16 1-D"),
        pytest.param(dates, "Got dtype datetime64", id="16 dates"),
        pytest.param(lambda Z: Z + 1e30, "X has the value 1e\\+30.*Latent rows", id="16 too far"),
        pytest.param(
            lambda Z: Z + np.longdouble("1e400"),
            "the value inf|contains inf",
            id="16 beyond float64",
        ),
    ],
)
def test_inverse_transform_refuses_what_transform_never_gave(X, quick, spoil, match):
    vae = quick().fit(X)
    with pytest.raises(ValueError, match=match):
        vae.inverse_transform(spoil(vae.transform(X)))


# --- 17-25: what is asked for -------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda vae, X: vae.transform(X), id="17 transform"),
        pytest.param(lambda vae, X: vae.encode(X), id="17 encode"),
        pytest.param(lambda vae, X: vae.sample_posterior(X), id="17 sample_posterior"),
        pytest.param(lambda vae, X: vae.inverse_transform(X), id="17 inverse_transform"),
        pytest.param(lambda vae, X: vae.score_samples(X), id="17 score_samples"),
        pytest.param(lambda vae, X: vae.score(X), id="17 score"),
        pytest.param(lambda vae, X: vae.sample(), id="17 sample"),
        pytest.param(lambda vae, X: vae.to_module(), id="17 to_module"),
        pytest.param(lambda vae, X: vae.get_feature_names_out(), id="17 get_feature_names_out"),
    ],
)
def test_every_method_says_when_fit_is_missing(X, quick, call):
    with pytest.raises(NotFittedError, match="This VAETransformer instance is not fitted yet"):
        call(quick(), X)


BAD_PARAMETERS = {
    "n_components": [0, 2.0, None, np.nan, np.inf],
    "likelihood": ["binomial", Gaussian, None],
    "prior": ["normal", 1, None],
    "posterior": ["full_rank", 1, None],
    "network": ["cnn", MLP, None, (MLP,), ("mlp", "mlp")],
    "hidden_layer_sizes": [
        *(0, -3, "8", None, (8, 0), (8, -1), (8.5,), ("8",), (0,), (2.0,), (True,)),
        *((16, (8,)), [[16, 8], [4, 4]]),
    ],
    "activation": ["sine", math.tanh, None],
    "beta": [-1, np.nan, np.inf, None, "1"],
    "beta_warmup": [-0.1, 1.0, np.nan, None],
    "n_beta_cycles": [0, 1.5, None],
    "free_bits": [-1, np.nan, np.inf, None],
    "n_importance_samples": [0, 1.5, None],
    "learning_rate": [0, -1, np.nan, np.inf, None],
    "learning_rate_schedule": ["linear", None],
    "weight_decay": [-1e-3, np.nan, np.inf, None],
    "max_grad_norm": [0, np.nan, np.inf],
    "batch_size": [0, "all", 1.5, None],
    "max_iter": [0, 1.5, np.inf, None],
    "early_stopping": ["yes", None],
    "validation_fraction": [0, 1.0, np.nan, None],
    "n_iter_no_change": [0, 1.5, None],
    "tol": [-1.0, np.nan, np.inf, None],
    "n_score_draws": [0, 1.5, None],
    "warm_start": ["no", None],
    "device": [None, 0],
    "precision": ["float16", np.float32, None],
    "random_state": ["seed", -1, 1.5],
    "verbose": [-1, "yes"],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param(name, value, id=f"18 {name}={value!r}")
        for name, values in BAD_PARAMETERS.items()
        for value in values
    ],
)
def test_a_parameter_out_of_its_range_is_named(X, quick, name, value):
    with pytest.raises(
        ValueError, match=f"The '{name}' parameter of VAETransformer must (be|hold)"
    ):
        quick(**{name: value}).fit(X)


def test_18_every_parameter_has_bad_values():
    assert BAD_PARAMETERS.keys() == VAETransformer().get_params().keys()


def test_19_an_unknown_parameter_is_refused_with_the_list_of_those_known():
    with pytest.raises(ValueError, match=r"Invalid parameter 'latent'.*Valid parameters are"):
        VAETransformer().set_params(latent=3)


@pytest.mark.parametrize(
    ("n_samples", "error", "match"),
    [
        pytest.param(0, ValueError, "n_samples == 0, must be >= 1", id="20 none"),
        pytest.param(-1, ValueError, "n_samples == -1, must be >= 1", id="20 less than none"),
        pytest.param(1.5, TypeError, "n_samples must be an instance of", id="20 not whole"),
        pytest.param("3", TypeError, "n_samples must be an instance of", id="20 a string"),
    ],
)
def test_sample_refuses_what_is_no_number_of_rows(X, quick, n_samples, error, match):
    with pytest.raises(error, match=match):
        quick().fit(X).sample(n_samples)


def test_21_samples_of_one_seed_are_equal_and_those_of_none_differ(X, quick):
    vae = quick().fit(X)
    np.testing.assert_array_equal(vae.sample(3, random_state=5), vae.sample(3, random_state=5))
    assert not np.array_equal(vae.sample(3), vae.sample(3))


ABSENT = ["tpu", "CPU", "cuda:99", "meta", ""]
if not torch.cuda.is_available():
    ABSENT += ["cuda", "cuda:0"]
if not torch.backends.mps.is_available():
    ABSENT += ["mps"]


@pytest.mark.parametrize("device", [pytest.param(name, id=f"22 {name!r}") for name in ABSENT])
def test_a_device_that_is_not_there_is_named_with_those_that_are(X, quick, device):
    with pytest.raises(ValueError, match=f"device='{device}' is not available.*Available.*'cpu'"):
        quick(device=device).fit(X)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_23_a_model_of_an_absent_device_is_loaded_and_computes_on_the_cpu(X, quick):
    vae = quick().fit(X)
    expected = vae.score_samples(X)
    loaded = pickle.loads(pickle.dumps(vae.set_params(device="cuda")))  # as it would be there
    with pytest.warns(UserWarning, match="'cuda' is not available.*Computing on the CPU") as caught:
        np.testing.assert_array_equal(loaded.score_samples(X), expected)
    assert len(caught) == 1


@pytest.mark.parametrize("method", ["fit", "score"])
@pytest.mark.parametrize(
    ("change", "match"),
    [
        # The package's own words, since rows are to be left out by 0 and not by less.
        pytest.param(
            lambda w: w - np.eye(1, 60, 3)[0] * 1.25,
            r"sample_weight has the value -0\.25 in row 3\..*finite and at least 0",
            id="24 negative",
        ),
        pytest.param(
            lambda w: w[:59],
            r"sample_weight.shape == \(59,\), expected \(60,\)",
            id="24 too few",
        ),
        pytest.param(
            lambda w: np.ones((60, 2)), "must be 1D array or scalar", id="24 two of each row"
        ),
        pytest.param(lambda w: np.where(w.cumsum() == 8, np.nan, w), "contains NaN", id="24 NaN"),
        pytest.param(
            lambda w: np.where(w.cumsum() == 8, np.inf, w), "contains infinity", id="24 infinity"
        ),
        pytest.param(lambda w: np.nan, "has the value nan in row 0", id="24 NaN for all"),
        pytest.param(lambda w: -np.inf, "has the value -inf in row 0", id="24 -infinity for all"),
        # In the words of scikit-learn 1.8 and newer, or of the package.
        pytest.param(lambda w: 0 * w, "at least one non-zero|zero in all rows", id="24 zeros"),
        pytest.param(lambda w: 0, "at least one non-zero|zero in all rows", id="24 0 for all"),
    ],
)
def test_what_is_no_weight_is_refused(X, quick, method, change, match):
    vae = quick().fit(X)
    with pytest.raises(ValueError, match=match):
        getattr(vae, method)(X, sample_weight=change(np.ones(60)))


def test_24_one_row_that_counts_is_too_few_to_fit(X, quick):
    weight = np.eye(1, 60)[0]
    vae = quick().fit(X)
    with pytest.raises(ValueError, match=r"at least two rows\. Got n_samples = 1 with"):
        vae.fit(X, sample_weight=weight)
    assert vae.score(X, sample_weight=weight) == vae.score_samples(X)[0]


@pytest.mark.parametrize(
    "y",
    [
        pytest.param(["any", "thing"], id="25 strings"),
        pytest.param(np.full(3, np.nan), id="25 NaN"),
        pytest.param("y", id="25 a string"),
        pytest.param(object(), id="25 an object"),
    ],
)
def test_y_is_ignored(X, quick, y):
    vae = quick().fit(X, y)
    assert vae.score(X, y) == vae.score(X)
    assert_same_state(vae, quick().fit(X))


# --- 26-33: what X holds ------------------------------------------------------------------


def test_26_a_fit_that_diverges_names_epoch_and_rate_and_leaves_no_model(X, quick):
    vae = quick(learning_rate=1e6)
    match = "not finite in epoch 1, at learning rate 1e.*Use a smaller learning_rate"
    with pytest.raises(ValueError, match=match):
        vae.fit(X)
    with pytest.raises(NotFittedError):
        vae.transform(X)


@pytest.mark.filterwarnings("ignore:One or more of the test scores are non-finite:UserWarning")
def test_26_a_search_goes_on_without_a_candidate_that_diverges(X, quick):
    search = GridSearchCV(quick(), {"learning_rate": [1e6, 1e-3]}, cv=2)
    with pytest.warns(FitFailedWarning, match="2 fits failed"):
        search.fit(X)
    assert search.best_params_ == {"learning_rate": 1e-3}


@every_method
def test_27_nan_and_infinity_are_the_same_where_nobody_looks(X, quick, method):
    missing = put(np.nan)(X)
    expected = quick().fit(missing).score_samples(missing)
    vae = quick().fit(X)
    with sklearn.config_context(assume_finite=True):
        if method.startswith("score"):
            assert_minus_infinity(vae, method, put(np.inf)(X))
        else:
            with pytest.raises(ValueError, match="column 2"):
                getattr(vae, method)(put(np.inf)(X))
        np.testing.assert_array_equal(vae.fit(missing).score_samples(missing), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -1e30])
def test_27_latent_rows_are_looked_at_where_nobody_else_does(X, quick, value):
    vae = quick().fit(X)
    Z = vae.transform(X)
    Z[1, 0] = value
    match = f"X has the value {value:.6g}. Latent rows".replace("+", r"\+")
    with sklearn.config_context(assume_finite=True), pytest.raises(ValueError, match=match):
        vae.inverse_transform(Z)


@pytest.mark.parametrize("likelihood", REALS, ids=str)
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda X: np.where(np.arange(4) == 1, 0.1, X), id="28 a constant column"),
        pytest.param(lambda X: np.full_like(X, 0.3), id="28 all constant"),
        pytest.param(lambda X: np.repeat(X[:1], 60, axis=0), id="28 one row many times"),
        pytest.param(lambda X: np.hstack([X, X]), id="28 every column twice"),
        pytest.param(
            lambda X: np.tile([[1.0, 1.0, 3.0], [2.0, 2.0, 5.0]], (30, 1)),
            id="28 rows and columns many times",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:All columns of X are constant:UserWarning")
def test_columns_and_rows_that_say_nothing_new_are_fitted(X, quick, likelihood, change):
    X = change(X)
    vae = quick(likelihood=likelihood, max_iter=50).fit(X)
    assert_finite(vae, X)
    assert np.isfinite(vae.score(X))


@pytest.mark.parametrize("noise", ["per_feature", "per_sample"])
@pytest.mark.parametrize(
    "scales",
    [
        pytest.param((1e-6, 1e6, 1, 1e-6), id="29 of 12 decades"),
        pytest.param((1e-12, 1e12, 1e-3, 1), id="29 of 24 decades"),
    ],
)
def test_columns_of_any_scale_score_the_same_up_to_the_jacobian(X, quick, noise, scales):
    vae = quick(likelihood=Gaussian(noise), max_iter=30)
    score = vae.fit(X).score(X)
    raw = X * scales
    np.testing.assert_allclose(vae.fit(raw).score(raw), score - np.log(scales).sum(), atol=1e-3)


@pytest.mark.parametrize("n_rows", [pytest.param(n, id=f"30 {n} rows") for n in (2, 3, 5, 49, 50)])
def test_two_rows_and_more_fit_with_the_defaults(X, n_rows):
    vae = VAETransformer(random_state=0).fit(X[:n_rows])
    assert np.isfinite(vae.score(X[:n_rows]))
    assert vae.transform(X[:1]).shape == (1, vae.n_components)


def test_30_a_batch_larger_than_the_data_is_one_batch(X, quick):
    assert_same_state(quick(batch_size=1000).fit(X), quick(batch_size=60).fit(X))


@any_likelihood
@pytest.mark.parametrize(
    ("n_features", "params"),
    [
        pytest.param(4, {"batch_size": 59}, id="30 a last batch of one row"),
        pytest.param(4, {"batch_size": 1}, id="30 batches of one row"),
        pytest.param(
            4,
            {"batch_size": 59, "network": MLP(dropout=0.2, layer_norm=True)},
            id="30 a last batch of one row that is normalised",
        ),
        pytest.param(4, {"n_components": 9}, id="33 more components than features"),
        pytest.param(1, {}, id="33 one feature"),
        pytest.param(1, {"n_components": 1, "hidden_layer_sizes": 8}, id="33 one of each"),
        pytest.param(4, {"hidden_layer_sizes": ()}, id="33 no hidden layer"),
        pytest.param(4, {"hidden_layer_sizes": np.array([8, 4])}, id="33 layers in an array"),
    ],
)
def test_unusual_sizes_fit(X, quick, likelihood, n_features, params):
    X = suited(X, likelihood)[:, :n_features]
    vae = quick(likelihood=likelihood, **params).fit(X)
    assert np.isfinite(vae.score_samples(X)).all()
    assert vae.transform(X).shape == (60, params.get("n_components", 2))
    assert vae.inverse_transform(vae.transform(X)).shape == X.shape
    assert vae.sample(3).shape == (3, n_features)


@pytest.mark.parametrize(
    ("n_rows", "fraction"),
    [
        pytest.param(5, 0.1, id="31 few rows"),
        pytest.param(60, 0.01, id="31 a small share"),
        pytest.param(2, 0.4, id="31 two rows"),
    ],
)
def test_a_validation_set_without_rows_is_refused(X, quick, n_rows, fraction):
    vae = quick(early_stopping=True, validation_fraction=fraction)
    match = f"validation set is too small: {fraction} of {n_rows} rows.*Increase 'validation_frac"
    with pytest.raises(ValueError, match=match):
        vae.fit(X[:n_rows])


def test_32_the_last_epoch_is_a_warning_where_training_was_to_end_by_itself(X, quick):
    early, constant = {"early_stopping": True}, {"learning_rate_schedule": "constant"}
    with pytest.warns(ConvergenceWarning, match=r"Maximum number of epochs \(4\).*Increase max_i"):
        quick(**early, **constant).fit(X)
    # A warning would be an error: without rows held out nobody knows, and a rate that falls to 0
    # ends training by itself.
    quick(**constant).fit(X)
    quick(**early).fit(X)


# --- 34-41: what is around ----------------------------------------------------------------


def test_34_50_one_seed_gives_one_model_in_this_process_and_in_one_that_is_spawned(X, quick):
    # Not in one that is forked: a wide fit can hang there (docs/reliability.md).
    vae = quick().fit(X)
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, spawn) as pool:
        elsewhere = pool.submit(clone(vae).fit, X).result()
        scores = pool.submit(vae.score_samples, X).result()
    np.testing.assert_array_equal(scores, vae.score_samples(X))
    loaded = pickle.loads(pickle.dumps(vae))
    for other in (clone(vae).fit(X), clone(vae).fit(X).fit(X), loaded, elsewhere):
        assert_same_state(other, vae)
        np.testing.assert_array_equal(other.score_samples(X), scores)


@pytest.fixture
def nothing_global_moves(global_state):
    @contextlib.contextmanager
    def watch():
        torch.get_num_threads()  # at its first use in a thread torch sets the number itself
        with threadpool_limits(2, user_api="openmp"):
            before = global_state()
            assert before["threads"] == 2
            yield
            assert global_state() == before

    return watch


@any_likelihood
def test_35_nothing_global_moves(X, quick, likelihood, nothing_global_moves):
    X = suited(X, likelihood)
    vae = quick(likelihood=likelihood).fit(X)  # what is imported late is imported now
    with nothing_global_moves():
        vae.fit(X)
        vae.inverse_transform(vae.transform(X))
        vae.score(X)
        vae.sample(3, random_state=0)
        vae.to_module()


def test_35_nothing_global_moves_when_fit_fails(X, quick, nothing_global_moves):
    with nothing_global_moves(), pytest.raises(ValueError, match="learning rate"):
        quick(learning_rate=1e6).fit(X)


@contextlib.contextmanager
def float64_by_default():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param(torch.no_grad, id="36 no_grad"),
        pytest.param(torch.inference_mode, id="36 inference_mode"),
        pytest.param(lambda: torch.autocast("cpu", dtype=torch.bfloat16), id="36 autocast"),
        pytest.param(lambda: torch.device("meta"), id="36 default_device"),
        pytest.param(float64_by_default, id="36 default_dtype"),
    ],
)
def test_the_mode_of_the_caller_changes_nothing(X, quick, mode):
    expected = quick().fit(X)
    with mode():
        vae = quick().fit(X)
        inside = [output(vae, X) for output in OUTPUTS.values()] + [vae.sample(5, 0)]
    assert_same_state(vae, expected)
    outside = [output(expected, X) for output in OUTPUTS.values()] + [expected.sample(5, 0)]
    for left, right in zip(inside, outside, strict=True):
        np.testing.assert_array_equal(left, right)


def test_37_threads_fit_and_transform_as_one_after_the_other(X, quick):
    expected = quick().fit(X)
    Z, scores = expected.transform(X), expected.score_samples(X)
    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        for vae in pool.map(lambda _: clone(expected).fit(X), range(8)):
            assert_same_state(vae, expected)
        for same in pool.map(lambda _: expected.transform(X), range(64)):
            np.testing.assert_array_equal(same, Z)
        for same in pool.map(lambda _: expected.score_samples(X), range(16)):
            np.testing.assert_array_equal(same, scores)


@pytest.fixture
def whole():
    """Whole numbers from 0 to 7, which every dtype holds exactly."""
    return np.random.default_rng(0).integers(0, 8, size=(60, 4)).astype(np.float64)


def read_only(X):
    X = X.copy()
    X.flags.writeable = False
    return X


FORMS = [
    pytest.param(read_only, id="38 read-only"),
    pytest.param(np.asfortranarray, id="38 F-order"),
    pytest.param(lambda X: X[::-1, ::-1].copy()[::-1, ::-1], id="38 negative strides"),
    pytest.param(lambda X: np.repeat(X, 2, axis=0)[::2], id="38 every second row"),
    pytest.param(lambda X: X.astype(">f8"), id="38 big-endian"),
    pytest.param(lambda X: X.astype(np.float16), id="38 float16"),
    pytest.param(lambda X: X.astype(np.float32), id="38 float32"),
    pytest.param(lambda X: X.astype(np.longdouble), id="38 longdouble"),
    pytest.param(lambda X: X.astype(np.uint8), id="38 uint8"),
    pytest.param(lambda X: X.astype(np.int64), id="38 int64"),
    pytest.param(lambda X: X.tolist(), id="38 list"),
    pytest.param(lambda X: X.astype(object), id="38 object"),
    pytest.param(np.ma.masked_array, id="38 masked array without a mask"),
    pytest.param(lambda X: np.ma.masked_array(X, X > 99), id="38 masked array"),
    pytest.param(lambda X: framed(X.astype(int)), id="38 pandas of ints"),
    pytest.param(lambda X: framed(X).convert_dtypes(), id="38 pandas with its own dtypes"),
    pytest.param(lambda X: pl.DataFrame(X, schema=list("abcd")), id="38 polars"),
    pytest.param(torch.tensor, id="39 tensor"),
    pytest.param(lambda X: torch.tensor(X, dtype=torch.float32), id="39 tensor of float32"),
    pytest.param(lambda X: torch.tensor(X, dtype=torch.bfloat16), id="39 tensor of bfloat16"),
    pytest.param(lambda X: torch.tensor(X, dtype=torch.float16), id="39 tensor of float16"),
    pytest.param(lambda X: torch.tensor(X, dtype=torch.int32), id="39 tensor of ints"),
    pytest.param(lambda X: torch.tensor(X, requires_grad=True), id="39 tensor with gradient"),
    pytest.param(
        lambda X: torch.tensor(X, requires_grad=True) * 1.0, id="39 result of a computation"
    ),
]


@any_likelihood
def test_38_a_row_whose_stride_is_negative_is_read_as_any(X, quick, likelihood):
    X = (X > 0).astype(float) if likelihood == Bernoulli() else X
    vae = quick(likelihood=likelihood).fit(X)
    row, z = X[::-1][:1], vae.transform(X)[::-1][:1]  # which numpy calls contiguous
    assert row.flags.c_contiguous
    assert row.strides[0] < 0
    for output in OUTPUTS.values():
        np.testing.assert_array_equal(output(vae, row), output(vae, row.copy()))
    np.testing.assert_array_equal(vae.inverse_transform(z), vae.inverse_transform(z.copy()))


@pytest.mark.parametrize("form", FORMS)
def test_data_in_any_form_gives_the_same_model_and_is_not_changed(whole, quick, form):
    expected = quick().fit(whole)
    data = form(whole)
    before, flags = pickle.dumps(data), str(getattr(data, "flags", None))
    vae = quick().fit(data)
    assert_same_state(vae, expected)
    for output in OUTPUTS.values():
        np.testing.assert_array_equal(output(vae, data), output(vae, data))
    np.testing.assert_allclose(vae.transform(data), expected.transform(whole), rtol=1e-6)
    np.testing.assert_array_equal(vae.score_samples(data), expected.score_samples(whole))
    if hasattr(data, "equals"):  # a frame, which may keep what it was asked for
        assert data.equals(pickle.loads(before))
    else:
        assert pickle.dumps(data) == before
    assert str(getattr(data, "flags", None)) == flags


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, object])
def test_38_masked_values_are_missing(whole, quick, dtype):
    mask = np.random.default_rng(0).random(whole.shape) < 0.2
    masked = np.ma.masked_array(whole.astype(dtype), mask)
    holes = np.where(mask, np.nan, whole).astype(np.float32 if dtype == np.float32 else float)
    vae, expected = quick().fit(masked), quick().fit(holes)
    assert_same_state(vae, expected)
    np.testing.assert_array_equal(vae.transform(masked), expected.transform(holes))
    assert (masked.mask == mask).all()
    assert (masked.data == whole).all()


def test_38_booleans_are_zeros_and_ones(whole, quick):
    for likelihood in ("gaussian", "bernoulli"):
        vae = quick(likelihood=likelihood)
        assert_same_state(clone(vae).fit(whole > 3), clone(vae).fit((whole > 3) * 1.0))


@pytest.mark.parametrize("dtype", [np.float16, np.longdouble, np.uint8])
def test_38_counts_and_latent_rows_of_any_dtype_are_the_same_numbers(whole, quick, dtype):
    vae = quick(likelihood="poisson").fit(whole.astype(dtype))
    assert_same_state(vae, quick(likelihood="poisson").fit(whole))
    Z = np.rint(vae.transform(whole) + 2)
    np.testing.assert_array_equal(vae.inverse_transform(Z.astype(dtype)), vae.inverse_transform(Z))
    with pytest.raises(ValueError, match=r"expects counts, whole numbers from 0 to 1e\+10"):
        vae.fit(whole / np.array([1, 1, 1, 2], np.float16))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_38_a_read_only_memory_map_is_accepted(whole, quick, tmp_path, dtype):
    whole = whole.astype(dtype)
    np.save(tmp_path / "X.npy", whole)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    vae = quick().fit(mapped)
    assert_same_state(vae, quick().fit(whole))
    np.testing.assert_array_equal(vae.score_samples(mapped), vae.score_samples(whole))
    np.testing.assert_array_equal(mapped, whole)


def test_39_tensors_keep_float32_and_come_back_as_arrays(whole, quick):
    for dtype, expected in [(torch.float32, "float32"), (torch.bfloat16, "float32")]:
        tensor = torch.tensor(whole, dtype=dtype)
        vae = quick().fit(tensor)
        Z = vae.transform(tensor)
        assert type(Z) is np.ndarray
        assert Z.dtype == expected
        back = vae.inverse_transform(torch.tensor(Z, requires_grad=True))
        np.testing.assert_array_equal(back, vae.inverse_transform(Z))


WITH_ARRAY_API = """
import numpy as np, sklearn, torch
from skvae import VAETransformer

X = torch.tensor(np.random.default_rng(0).normal(size=(60, 4)), dtype=torch.float32)
vae = VAETransformer(2, hidden_layer_sizes=(8,), max_iter=4, early_stopping=False, random_state=0)
expected = vae.fit(X).transform(X)
with sklearn.config_context(array_api_dispatch=True):
    Z = vae.fit(X).transform(X)
    back, scores = vae.inverse_transform(Z), vae.score_samples(X)
for array in (Z, back, scores):
    assert type(array) is np.ndarray
np.testing.assert_array_equal(Z, expected)
"""


def test_39_tensors_come_back_as_arrays_where_scikit_learn_would_keep_tensors():
    # Only where the variable is set before anything is imported.
    assert in_a_new_process(WITH_ARRAY_API, SCIPY_ARRAY_API="1") == ""


@pytest.mark.parametrize("output", OUTPUTS.values(), ids=OUTPUTS)
def test_40_a_row_has_the_same_numbers_alone_in_any_order_and_in_any_memory(X, quick, output):
    many = np.random.default_rng(0).normal(size=(2100, 4))  # more than one block of 2048
    vae = quick().fit(X)
    expected = output(vae, many)
    order = np.random.default_rng(1).permutation(len(many))
    np.testing.assert_array_equal(output(vae, many[order]), expected[order])
    for i in (0, 1, 2047, 2048, 2099):
        np.testing.assert_array_equal(output(vae, many[i : i + 1]), expected[i : i + 1])
    for working_memory in (1, 4096):
        with sklearn.config_context(working_memory=working_memory):
            np.testing.assert_array_equal(output(vae, many), expected)


def test_41_a_memory_map_larger_than_working_memory_is_read_in_parts(quick, tmp_path):
    shape = 200_000, 100
    large = np.lib.format.open_memmap(tmp_path / "X.npy", "w+", dtype=np.float32, shape=shape)
    for part in np.split(large, 10):
        part[:] = np.random.default_rng(0).random(part.shape, dtype=np.float32)
    X = np.load(tmp_path / "X.npy", mmap_mode="r")
    network = MLP(linear=False)  # without factor analysis, which has costs of its own
    vae = quick(n_components=1, network=network, max_iter=1, n_score_draws=1, batch_size=4096)
    with sklearn.config_context(working_memory=1):
        tracemalloc.start()
        try:
            Z = vae.fit(X).transform(X)
            scores = vae.score_samples(X[:9000])
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < X.nbytes / 2  # four blocks of a million values in float64, of 76 MiB
    np.testing.assert_array_equal(vae.transform(X), Z)
    np.testing.assert_array_equal(vae.score_samples(X[:9000]), scores)


# --- 42-47: what comes in between, and files ----------------------------------------------


@pytest.mark.parametrize("early_stopping", [False, True])
def test_42_ctrl_c_keeps_the_last_complete_epoch_if_there_is_one(
    X, quick, monkeypatch, early_stopping
):
    step, calls = Adam.step, []

    def step_and_interrupt(*args):
        calls.append(step(*args))
        if len(calls) == n_calls:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Adam, "step", step_and_interrupt)
    vae = quick(batch_size=16, early_stopping=early_stopping)  # 4 steps an epoch
    n_calls = 2
    with pytest.raises(KeyboardInterrupt):
        vae.fit(X)
    assert vars(vae).keys() == vae.get_params().keys()
    calls.clear()
    n_calls = 2 * 4 + 2
    with pytest.warns(UserWarning, match="Training interrupted: the weights of epoch 2 were kept"):
        vae.fit(X)
    assert vae.n_iter_ == 2
    assert {len(values) for values in vae.history_.values()} == {2}
    assert_finite(vae, X)


class Unreadable:
    """Rows of a file that is gone."""

    def __array__(self, dtype=None, copy=None):
        raise OSError("the file is gone")


def full_disk(*args):
    raise OSError("no space left")


class Impatient:
    """A callback that has had enough in the second epoch."""

    events = []

    def setup(self, estimator, context):
        self.events.append("setup")

    def teardown(self, estimator, context):
        self.events.append("teardown")

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context, **data):
        if context.task_name == "epoch" and context.task_id == 1:
            raise RuntimeError("enough")


@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize(
    ("where", "error", "match"),
    [
        pytest.param("callback", RuntimeError, "enough", id="43 in a callback"),
        pytest.param("conversion", OSError, "the file is gone", id="43 in the conversion of X"),
        pytest.param("epoch", OSError, "no space left", id="43 between two epochs"),
    ],
)
def test_an_exception_is_handed_on_and_leaves_the_estimator_as_it_was(
    X, quick, monkeypatch, where, error, match, fitted
):
    vae, rows = quick(verbose=1), X + 1
    if fitted:
        vae.fit(X)
    if where == "callback":
        pytest.importorskip("sklearn.callback", reason="scikit-learn 1.9 or newer")
        monkeypatch.setattr(Impatient, "events", [])
        vae.set_callbacks(Impatient())
    elif where == "conversion":
        rows = Unreadable()
    else:
        monkeypatch.setattr("builtins.print", full_disk)
    before = joblib.hash(vars(vae))
    with pytest.raises(error, match=match):
        vae.fit(rows)
    assert joblib.hash(vars(vae)) == before
    assert vae.__sklearn_is_fitted__() == fitted
    if where == "callback":
        assert Impatient.events == ["setup", "teardown"]


@pytest.mark.parametrize(
    ("params", "spoil", "match"),
    [
        pytest.param({}, put(np.inf), "contains infinity", id="44 bad data"),
        pytest.param({"beta": -1}, np.copy, "'beta' parameter", id="44 bad parameter"),
        pytest.param({"learning_rate": 1e6}, np.copy, "not finite in epoch 1", id="44 divergence"),
        pytest.param({"likelihood": "bernoulli"}, np.copy, "expects values in", id="44 support"),
    ],
)
def test_a_fit_that_fails_after_a_good_one_leaves_the_old_model(X, quick, params, spoil, match):
    vae = quick().fit(X)
    scores = vae.score_samples(X)
    before = joblib.hash(vars(vae.set_params(**params)))
    with pytest.raises(ValueError, match=match):
        vae.fit(spoil(X))
    assert joblib.hash(vars(vae)) == before
    np.testing.assert_array_equal(vae.score_samples(X), scores)


# Whatever part of the file is missing, joblib or pickle stumbles over it.
BROKEN = (EOFError, ValueError, IndexError, pickle.UnpicklingError, struct.error, zlib.error)


def flipped(data, i):
    return data[:i] + bytes([data[i] ^ 0xFF]) + data[i + 1 :]


@pytest.mark.parametrize(
    ("compress", "spoil"),
    [
        pytest.param(0, lambda data: b"", id="45 empty"),
        pytest.param(0, lambda data: data[:100], id="45 truncated early"),
        pytest.param(0, lambda data: data[: len(data) // 2], id="45 truncated in the middle"),
        pytest.param(0, lambda data: data[:-1], id="45 truncated at its end"),
        pytest.param(3, lambda data: data[: len(data) // 2], id="45 truncated and compressed"),
        pytest.param(0, lambda data: b"a,b,c\n1,2,3\n", id="45 a table"),
        pytest.param(0, lambda data: flipped(data, len(data) // 2), id="45 corrupted"),
        pytest.param(3, lambda data: flipped(data, len(data) // 2), id="45 corrupted, compressed"),
    ],
)
def test_a_broken_file_is_no_model(X, quick, compress, spoil):
    file = io.BytesIO()
    joblib.dump(quick().fit(X), file, compress=compress)
    with pytest.raises(BROKEN):
        joblib.load(io.BytesIO(spoil(file.getvalue())))


def test_46_skops_loads_the_same_model_with_one_trusted_name_and_none_without(X, quick):
    vae = quick().fit(X)
    dumped = skops.io.dumps(vae)
    assert skops.io.get_untrusted_types(data=dumped) == ["skvae.VAETransformer"]
    with pytest.raises(skops.io.exceptions.UntrustedTypesFoundException, match="skvae"):
        skops.io.loads(dumped, trusted=[])
    loaded = skops.io.loads(dumped, trusted=["skvae.VAETransformer"])
    assert_same_state(loaded, vae)
    np.testing.assert_array_equal(loaded.score_samples(X), vae.score_samples(X))


def test_45_an_older_format_is_read_and_a_newer_one_refused_by_its_number(X, quick, monkeypatch):
    # Of each older format a file is kept: tests/test_persistence.py.
    vae = quick().fit(X)
    state = vae.__getstate__()
    older = VAETransformer()
    older.__setstate__({k: v for k, v in state.items() if not k.startswith("_skvae")})
    assert_same_state(older, vae)
    with pytest.raises(ValueError, match=r"in format 99 of skvae, and this version reads .* up to"):
        VAETransformer().__setstate__(state | {"_skvae_format": 99})


def test_47_training_goes_on_from_a_file_as_from_memory(X, quick):
    vae = quick(warm_start=True, max_iter=3).fit(X)
    loaded = pickle.loads(pickle.dumps(vae))
    assert_same_state(loaded.fit(X), vae.fit(X))
    assert loaded.n_iter_ == vae.n_iter_ == 6


def test_47_3_partial_fits_and_3_from_a_file_are_6_epochs(X, quick):
    # A fit that was stopped by a callback after 3 of 6: tests/test_long_fits.py.
    # Variances of rows are held back in the first epochs, of which partial fits know no number.
    X[3, 3] = np.nan  # the encoder of a partial fit has inputs for missing values in any case
    vae = quick(max_iter=6, learning_rate_schedule="constant", likelihood=Gaussian("per_feature"))
    whole = clone(vae).fit(X)
    for _ in range(3):
        vae.partial_fit(X)
    vae = pickle.loads(pickle.dumps(vae))
    for _ in range(3):
        vae.partial_fit(X)
    assert_same_state(vae, whole)
    assert vae.n_iter_ == 6


# --- 48-53: searches, scores, words -------------------------------------------------------


def test_48_every_way_to_search_finds_the_same_scores(X, quick, tmp_path):
    # With processes: see test_search.py.
    grid = {"beta": [0.5, 4], "n_components": [1, 2]}
    folds = KFold(2)
    one = GridSearchCV(quick(), grid, cv=folds).fit(X)
    with joblib.parallel_config("threading"):
        two = GridSearchCV(quick(), grid, cv=folds, n_jobs=2).fit(X)
    scores = one.cv_results_["mean_test_score"]
    np.testing.assert_array_equal(two.cv_results_["mean_test_score"], scores)
    halving = HalvingGridSearchCV(
        quick(), grid, cv=folds, factor=2, resource="max_iter", min_resources=2, max_resources=4
    ).fit(X)
    assert halving.cv_results_["n_resources"].tolist() == [2, 2, 2, 2, 4, 4]
    for search in (one, halving):
        results = search.cv_results_["params"], search.cv_results_["mean_test_score"]
        for params, score in zip(*results, strict=True):
            by_hand = cross_validate(quick(**params), X, cv=folds)["test_score"]
            assert score == by_hand.mean()

    grid = {f"vaetransformer__{name}": values for name, values in grid.items()}
    pipes = [make_pipeline(StandardScaler(), quick(), memory=m) for m in (None, str(tmp_path))]
    plain, cached = (GridSearchCV(pipe, grid, cv=folds).fit(X) for pipe in pipes)
    np.testing.assert_array_equal(
        cached.cv_results_["mean_test_score"], plain.cv_results_["mean_test_score"]
    )
    framed_pipe = clone(plain.best_estimator_).set_output(transform="pandas").fit(framed(X))
    Z = framed_pipe.transform(framed(X))
    assert list(Z.columns) == [f"vaetransformer{i}" for i in range(Z.shape[1])]
    np.testing.assert_array_equal(Z, plain.transform(X))


@pytest.mark.parametrize("beta", [pytest.param(b, id=f"49 beta={b:g}") for b in (0, 1e-9, 1, 1e9)])
def test_the_score_is_a_finite_float_whatever_beta_is(X, quick, beta):
    vae = quick(beta=beta).fit(X)
    score = vae.score(X)
    assert type(score) is float
    assert np.isfinite(score)
    assert vae.set_params(beta=1).score(X) == score


def test_49_rows_like_those_of_fit_score_higher_than_shuffled_columns_and_noise(X, quick):
    vae = quick(max_iter=200, learning_rate=0.02).fit(X)
    rng = np.random.default_rng(0)
    assert vae.score(X) > vae.score(rng.permuted(X, axis=0)) + 1
    assert vae.score(X) > vae.score(X.mean(axis=0) + X.std(axis=0) * rng.normal(size=X.shape)) + 1


def test_51_repr_html_parameters_and_clones_need_no_fit_and_compute_nothing(X, quick, monkeypatch):
    models = [quick(beta=-1), quick().fit(X), quick(likelihood=Gaussian("per_sample")).fit(X)]
    monkeypatch.delattr(VAETransformer, "to_module")  # what properties compute with
    for vae in models:
        assert "max_iter=4" in repr(vae)
        assert "VAETransformer" in estimator_html_repr(vae)
        assert clone(vae).get_params() == vae.get_params()
        assert not clone(vae).__sklearn_is_fitted__()


def test_52_nothing_is_printed_by_default(X, quick, capsys):
    vae = quick().fit(X)
    vae.inverse_transform(vae.transform(X))
    vae.score(X)
    vae.sample(3)
    assert capsys.readouterr() == ("", "")


IMPORTED = """
import sys
import joblib, scipy.special, scipy.stats, sklearn.model_selection, sklearn.pipeline, torch
before = set(sys.modules)
import skvae
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""


def test_52_the_import_prints_nothing_and_loads_what_the_package_depends_on():
    # In place of its seconds, which are torch's and scikit-learn's, and those of a busy machine.
    loaded = in_a_new_process(IMPORTED).split()
    known = {"joblib", "numpy", "scipy", "sklearn", "threadpoolctl", "torch"}
    assert "skvae" in loaded
    assert {name for name in loaded if name not in sys.stdlib_module_names} <= {"skvae", *known}


def test_53_the_kl_divergence_is_that_of_torch_distributions(X, quick):
    vae = quick(precision="float64").fit(X)
    mean, std = map(torch.tensor, vae.encode(X))
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(mean, std), normal(0.0, 1.0)).sum(1)
    np.testing.assert_allclose(metrics.kl(vae, X, per_sample=True), kl, rtol=1e-12)


def test_53_the_elbo_is_below_the_bound_of_many_draws_and_that_below_the_log_density(X, quick):
    vae = quick(
        likelihood=Gaussian("shared"), hidden_layer_sizes=(), max_iter=30, precision="float64"
    ).fit(X)
    centre = vae.inverse_transform(np.zeros((1, 2)))
    slopes = vae.inverse_transform(np.eye(2)) - centre
    covariance = slopes.T @ slopes + vae.noise_variance_ * np.eye(4)
    normal = torch.distributions.MultivariateNormal(*map(torch.tensor, (centre[0], covariance)))
    exact = normal.log_prob(torch.tensor(X)).mean().item()
    bound, error = metrics.log_likelihood(
        vae, X, n_samples=100, random_state=0, return_std_error=True
    )
    # The ELBO of a linear model is exact to rounding, the other one by draws.
    assert vae.score(X) + 5 * error < bound < exact + 5 * error


def test_53_the_gradient_is_the_slope_of_the_terms_in_float64(X, quick):
    vae = quick(precision="float64").fit(X)
    rng = np.random.default_rng(0)
    y, eps = (torch.tensor(rng.normal(size=size)) for size in [(1, 7, 4), (1, 3, 7, 2)])

    def terms_of(state):
        stack = Stack([vae._fitted.architecture], [state], torch.device("cpu"))
        with torch.inference_mode():
            return stack, *stack.vjp(Batch(y, eps, y[..., :0]), by_draw=False)

    stack, terms, pull = terms_of(vae.state_)
    with torch.inference_mode():
        flat = torch.cat([g.flatten(1) for g in pull(*map(torch.ones_like, terms))], dim=1)
    gradient = stack.state_of(vae._fitted.architecture, vae.state_, flat[0])
    step = 1e-5
    ways = {name: rng.normal(size=array.shape) for name, array in gradient.items()}
    there, back = (
        sum(
            term.sum().item()
            for term in terms_of(
                vae.state_ | {n: vae.state_[n] + sign * step * way for n, way in ways.items()}
            )[1]
        )
        for sign in (1, -1)
    )
    slope = sum((ways[name] * array).sum() for name, array in gradient.items())
    # The square of the step is 1e-10; a difference of such numbers has 1e-16 / 1e-5 of rounding.
    np.testing.assert_allclose((there - back) / (2 * step), slope, rtol=1e-6)
