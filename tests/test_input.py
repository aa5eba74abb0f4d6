"""X: what `fit` learns of its columns, in which forms it is read, and which are refused."""

import inspect
import pickle
import tracemalloc
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from scipy.sparse import csr_array
from sklearn import config_context
from sklearn.base import clone

from skvae import VAEImputer, VAETransformer
from skvae._data import arrays, description
from skvae._fit.preparation import prepare
from skvae.likelihoods import Gaussian
from skvae.networks import MLP


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


@pytest.mark.parametrize("match", ["that differ by less", "are copies"])
@pytest.mark.parametrize("container", [np.asarray, pd.DataFrame])
def test_a_warning_points_at_the_line_that_called_fit(container, match):
    vae = VAETransformer(1, max_iter=1, random_state=0)
    X = container(narrow("int64") if match == "that differ by less" else drawn_again()[0])
    with pytest.warns(UserWarning, match=match) as caught:
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


# --- X of the wrong kind is refused -----------------------------------------------------------

OUTPUTS = {
    "transform": lambda vae, X: vae.transform(X),
    "encode": lambda vae, X: np.hstack(vae.encode(X)),
    "inverse_transform": lambda vae, X: vae.inverse_transform(vae.transform(X)),
    "score_samples": lambda vae, X: vae.score_samples(X),
}
READ_AGAIN = ["transform", "encode", "sample_posterior", "score_samples", "score"]
every_method = pytest.mark.parametrize("method", ["fit", *READ_AGAIN])
every_method_after_fit = pytest.mark.parametrize("method", READ_AGAIN)


def assert_same_state(left, right):
    assert left.state_.keys() == right.state_.keys()
    for name, array in left.state_.items():
        np.testing.assert_array_equal(array, right.state_[name])


def framed(X):
    return pd.DataFrame(X, columns=list("abcd"))


def put(value):
    """Function that puts a value in row 3, column 2."""

    def spoil(X):
        X = X.astype(type(value)) if isinstance(value, complex) else X.copy()
        X[3, 2] = value
        return X

    return spoil


def dates(X):
    return np.full(X.shape, np.datetime64("2020-01-01", "D"))


def objects(X, value):
    return np.array([[value, 1.0, 2.0, 3.0]] * len(X), dtype=object)


NO_DATA = [
    pytest.param(put(np.inf), ValueError, "Input X contains infinity", id="infinity"),
    pytest.param(put(-np.inf), ValueError, "Input X contains infinity", id="minus infinity"),
    pytest.param(
        # Infinity in the words of the message, since that is what it is as float64.
        lambda X: put(np.longdouble("1e400"))(X.astype(np.longdouble)),
        ValueError,
        "contains infinity|X has the value inf in column 2",
        id="beyond float64",
    ),
    pytest.param(put(1j), ValueError, "Complex data not supported", id="complex"),
    pytest.param(lambda X: X[0], ValueError, "Expected 2D array, got 1D array", id="1-D"),
    pytest.param(
        lambda X: pd.Series(X[0]),
        ValueError,
        "Expected a 2-dimensional container",
        id="series of pandas",
    ),
    pytest.param(lambda X: X[None], ValueError, "X has 3 dimensions, of shape", id="3-D"),
    pytest.param(lambda X: 3.0, ValueError, "got scalar array", id="scalar"),
    pytest.param(lambda X: None, ValueError, "X is None", id="None"),
    pytest.param(lambda X: X[:0], ValueError, r"Found array with 0 sample\(s\)", id="0 rows"),
    pytest.param(
        lambda X: X[:, :0], ValueError, r"Found array with 0 feature\(s\)", id="0 columns"
    ),
    # Strings may be categories: the message says of which value, and with which likelihood.
    pytest.param(
        lambda X: [["a", "b", "c", "d"]] * 3,
        ValueError,
        "X has the value 'a' in column 0, which is no number.*likelihood='auto'",
        id="strings",
    ),
    pytest.param(
        lambda X: X.astype(str),
        ValueError,
        "in column 0, which is no number",
        id="numbers as strings",
    ),
    pytest.param(
        lambda X: objects(X, {}),
        TypeError,
        r"X has a value of type dict in column 0\. .* argument must be a string or a number",
        id="dicts",
    ),
    pytest.param(lambda X: [[1, 2, 3, 4], [1, 2]], ValueError, "unequal lengths", id="ragged"),
    pytest.param(dates, ValueError, r"Got dtype datetime64\[D\] in column 0", id="dates"),
    pytest.param(
        lambda X: list(map(list, dates(X))),
        ValueError,
        r"Got dtype datetime64\[D\] in column 0",
        id="list of dates",
    ),
    pytest.param(
        lambda X: objects(X, np.datetime64("2020-01-01")),
        ValueError,
        r"expects numbers. Got .*2020-01-01",
        id="dates among objects",
    ),
    pytest.param(
        lambda X: np.full(X.shape, np.timedelta64(3, "s")),
        ValueError,
        r"Got dtype timedelta64\[s\] in column 0",
        id="durations",
    ),
    pytest.param(
        lambda X: framed(X).assign(c=pd.Timestamp("2020-01-01")),
        ValueError,
        r"Got dtype datetime64\[.*\] in column 2",
        id="column of dates",
    ),
    pytest.param(
        lambda X: framed(X).assign(c=pd.Timestamp("2020-01-01", tz="UTC")),
        ValueError,
        r"Got dtype datetime64\[.*\] in column 2",
        id="column of dates with time zone",
    ),
    pytest.param(
        lambda X: pl.DataFrame(X, schema=list("abcd")).with_columns(
            pl.lit("2020-01-01").str.to_date().alias("c")
        ),
        ValueError,
        "Got dtype Date in column 2",
        id="column of dates in polars",
    ),
    pytest.param(
        lambda X: framed(X).assign(c="x"),
        ValueError,
        r"X has the value 'x' in column 2 \('c'\), which is no number",
        id="column of strings",
    ),
    pytest.param(
        lambda X: pd.DataFrame(X, columns=["a", "b", 0, 1]),
        TypeError,
        "Feature names are only supported if all input features have string names",
        id="names of two types",
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


@every_method_after_fit
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda frame: frame[list("bacd")], id="another order"),
        pytest.param(lambda frame: frame.drop(columns="b"), id="a column less"),
        pytest.param(lambda frame: frame.assign(e=0.0), id="a column more"),
        pytest.param(lambda frame: frame.rename(columns={"b": "B"}), id="another name"),
    ],
)
def test_columns_of_other_names_are_refused(X, quick, method, change):
    vae = quick().fit(framed(X))
    with pytest.raises(ValueError, match="feature names should match those that were passed"):
        getattr(vae, method)(change(framed(X)))


@pytest.mark.parametrize(
    ("before", "now", "match"),
    [
        pytest.param(framed, np.asarray, "X does not have valid feature names", id="in fit"),
        pytest.param(np.asarray, framed, "X has feature names, but VAET", id="after fit"),
    ],
)
def test_names_on_one_side_only_are_a_warning_and_change_nothing(X, quick, before, now, match):
    vae = quick().fit(before(X))
    expected = vae.transform(before(X))
    with pytest.warns(UserWarning, match=match) as caught:
        np.testing.assert_array_equal(vae.transform(now(X)), expected)
    assert len(caught) == 1


@pytest.mark.parametrize("method", [*READ_AGAIN, "partial_fit", "fit of a warm start"])
def test_another_number_of_columns_is_refused(X, quick, method):
    vae = quick(warm_start=True).fit(X)
    with pytest.raises(ValueError, match="X has 2 features, but VAETransformer is expecting 4"):
        getattr(vae, method.split()[0])(X[:, :2])


def test_one_row_is_too_few_to_fit(X, quick):
    with pytest.raises(ValueError, match=r"Found array with 1 sample\(s\).*minimum of 2"):
        quick().fit(X[:1])


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        pytest.param(lambda Z: Z[:, :1], "X has 1 columns.*n_components=2", id="too few"),
        pytest.param(lambda Z: np.hstack([Z, Z]), "X has 4 columns.*n_components=2", id="too many"),
        # Rows of latent features have no missing values.
        pytest.param(lambda Z: np.where(Z.max() == Z, np.nan, Z), "Input X contains NaN", id="NaN"),
        pytest.param(
            lambda Z: np.where(Z.max() == Z, np.inf, Z), "Input X contains inf", id="infinity"
        ),
        pytest.param(lambda Z: Z[0], "Expected 2D array, got 1D array", id="1-D"),
        pytest.param(dates, "Got dtype datetime64", id="dates"),
        pytest.param(lambda Z: Z + 1e30, "X has the value 1e\\+30.*Latent rows", id="too far"),
        pytest.param(
            lambda Z: Z + np.longdouble("1e400"),
            "the value inf|contains inf",
            id="beyond float64",
        ),
    ],
)
def test_inverse_transform_refuses_what_transform_never_gave(X, quick, spoil, match):
    vae = quick().fit(X)
    with pytest.raises(ValueError, match=match):
        vae.inverse_transform(spoil(vae.transform(X)))


@every_method
def test_infinity_is_found_and_nan_is_missing_under_assume_finite(X, quick, method):
    missing = put(np.nan)(X)
    expected = quick().fit(missing).score_samples(missing)
    vae = quick().fit(X)
    with config_context(assume_finite=True):
        if method.startswith("score"):
            assert_minus_infinity(vae, method, put(np.inf)(X))
        else:
            with pytest.raises(ValueError, match="column 2"):
                getattr(vae, method)(put(np.inf)(X))
        np.testing.assert_array_equal(vae.fit(missing).score_samples(missing), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -1e30])
def test_latent_rows_are_checked_under_assume_finite(X, quick, value):
    vae = quick().fit(X)
    Z = vae.transform(X)
    Z[1, 0] = value
    match = f"X has the value {value:.6g}. Latent rows".replace("+", r"\+")
    with config_context(assume_finite=True), pytest.raises(ValueError, match=match):
        vae.inverse_transform(Z)


# --- X in any form is read --------------------------------------------------------------------


@pytest.fixture
def whole():
    """Whole numbers from 0 to 7, which every dtype holds exactly."""
    return np.random.default_rng(0).integers(0, 8, size=(60, 4)).astype(np.float64)


def read_only(X):
    X = X.copy()
    X.flags.writeable = False
    return X


FORMS = [
    pytest.param(read_only, id="read-only"),
    pytest.param(np.asfortranarray, id="F-order"),
    pytest.param(lambda X: X[::-1, ::-1].copy()[::-1, ::-1], id="negative strides"),
    pytest.param(lambda X: np.repeat(X, 2, axis=0)[::2], id="every second row"),
    pytest.param(lambda X: X.astype(">f8"), id="big-endian"),
    pytest.param(lambda X: X.astype(np.float16), id="float16"),
    pytest.param(lambda X: X.astype(np.float32), id="float32"),
    pytest.param(lambda X: X.astype(np.longdouble), id="longdouble"),
    pytest.param(lambda X: X.astype(np.uint8), id="uint8"),
    pytest.param(lambda X: X.astype(np.int64), id="int64"),
    pytest.param(lambda X: X.tolist(), id="list"),
    pytest.param(lambda X: X.astype(object), id="object"),
    pytest.param(np.ma.masked_array, id="masked array without a mask"),
    pytest.param(lambda X: np.ma.masked_array(X, X > 99), id="masked array"),
    pytest.param(lambda X: framed(X.astype(int)), id="pandas of ints"),
    pytest.param(lambda X: framed(X).convert_dtypes(), id="pandas with its own dtypes"),
    pytest.param(lambda X: pl.DataFrame(X, schema=list("abcd")), id="polars"),
    pytest.param(torch.tensor, id="tensor"),
    pytest.param(lambda X: torch.tensor(X, dtype=torch.float32), id="tensor of float32"),
    pytest.param(lambda X: torch.tensor(X, dtype=torch.bfloat16), id="tensor of bfloat16"),
    pytest.param(lambda X: torch.tensor(X, dtype=torch.float16), id="tensor of float16"),
    pytest.param(lambda X: torch.tensor(X, dtype=torch.int32), id="tensor of ints"),
    pytest.param(lambda X: torch.tensor(X, requires_grad=True), id="tensor with gradient"),
    pytest.param(lambda X: torch.tensor(X, requires_grad=True) * 1.0, id="result of a computation"),
]


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_a_row_whose_stride_is_negative_is_read_as_any(X, quick, likelihood):
    X = (X > 0).astype(float) if likelihood == "bernoulli" else X
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
def test_masked_values_are_missing(whole, quick, dtype):
    mask = np.random.default_rng(0).random(whole.shape) < 0.2
    masked = np.ma.masked_array(whole.astype(dtype), mask)
    holes = np.where(mask, np.nan, whole).astype(np.float32 if dtype == np.float32 else float)
    vae, expected = quick().fit(masked), quick().fit(holes)
    assert_same_state(vae, expected)
    np.testing.assert_array_equal(vae.transform(masked), expected.transform(holes))
    assert (masked.mask == mask).all()
    assert (masked.data == whole).all()


def test_booleans_are_zeros_and_ones(whole, quick):
    for likelihood in ("gaussian", "bernoulli"):
        vae = quick(likelihood=likelihood)
        assert_same_state(clone(vae).fit(whole > 3), clone(vae).fit((whole > 3) * 1.0))


@pytest.mark.parametrize("dtype", [np.float16, np.longdouble, np.uint8])
def test_counts_and_latent_rows_of_any_dtype_are_the_same_numbers(whole, quick, dtype):
    vae = quick(likelihood="poisson").fit(whole.astype(dtype))
    assert_same_state(vae, quick(likelihood="poisson").fit(whole))
    Z = np.rint(vae.transform(whole) + 2)
    np.testing.assert_array_equal(vae.inverse_transform(Z.astype(dtype)), vae.inverse_transform(Z))
    with pytest.raises(ValueError, match=r"expects counts, whole numbers from 0 to 1e\+10"):
        vae.fit(whole / np.array([1, 1, 1, 2], np.float16))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_read_only_memory_map_is_accepted(whole, quick, tmp_path, dtype):
    whole = whole.astype(dtype)
    np.save(tmp_path / "X.npy", whole)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    vae = quick().fit(mapped)
    assert_same_state(vae, quick().fit(whole))
    np.testing.assert_array_equal(vae.score_samples(mapped), vae.score_samples(whole))
    np.testing.assert_array_equal(mapped, whole)


def test_tensors_keep_float32_and_come_back_as_arrays(whole, quick):
    for dtype, expected in [(torch.float32, "float32"), (torch.bfloat16, "float32")]:
        tensor = torch.tensor(whole, dtype=dtype)
        vae = quick().fit(tensor)
        Z = vae.transform(tensor)
        assert type(Z) is np.ndarray
        assert Z.dtype == expected
        back = vae.inverse_transform(torch.tensor(Z, requires_grad=True))
        np.testing.assert_array_equal(back, vae.inverse_transform(Z))


def test_a_memory_map_larger_than_working_memory_is_read_in_parts(quick, tmp_path):
    shape = 200_000, 100
    large = np.lib.format.open_memmap(tmp_path / "X.npy", "w+", dtype=np.float32, shape=shape)
    for part in np.split(large, 10):
        part[:] = np.random.default_rng(0).random(part.shape, dtype=np.float32)
    X = np.load(tmp_path / "X.npy", mmap_mode="r")
    network = MLP(linear=False)  # without factor analysis, which has costs of its own
    vae = quick(n_components=1, network=network, max_iter=1, n_score_draws=1, batch_size=4096)
    with config_context(working_memory=1):
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
