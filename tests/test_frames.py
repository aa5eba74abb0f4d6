"""Containers of rows: what is no table of rows is refused, with what to pass in its place."""

import decimal
import pathlib
import pickle
import re
import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from skvae import VAEImputer
from skvae.likelihoods import Columns, Gaussian
from skvae.networks import Conv

ROWS = np.random.default_rng(0).normal(size=(30, 3))


class AnnData:
    """What a matrix of cells and genes looks like from outside: not the package's own class."""

    def __init__(self):
        self.X, self.shape = ROWS, ROWS.shape

    def to_df(self):
        return pd.DataFrame(self.X)

    def __len__(self):
        return len(self.X)


class Table:
    """A table of another package that pandas can be asked for."""

    shape = ROWS.shape

    def to_pandas(self):
        return pd.DataFrame(ROWS)


TENSORS = torch.utils.data.TensorDataset(torch.tensor(ROWS))
# What is given, the words for it, and what the remedy makes of it.
NO_ROWS = [
    (lambda: {"a": [1.0, 2.0], "b": [3.0, 4.0]}, "X is a dict.*pandas.DataFrame", pd.DataFrame),
    (lambda: pl.DataFrame(ROWS).lazy(), r"X is a LazyFrame.*X\.collect\(\)", lambda X: X.collect()),
    (
        lambda: pl.DataFrame(ROWS).to_struct("X"),
        r"X is a Series.*X\.struct\.unnest\(\)",
        lambda X: X.struct.unnest(),
    ),
    (
        lambda: pl.Series("X", ROWS.tolist()),
        r"X is a Series.*np\.array\(X\.to_list\(\)\)",
        lambda X: np.array(X.to_list()),
    ),
    (
        lambda: pd.DataFrame(ROWS).groupby(0),
        "X is a DataFrameGroupBy.*without groups",
        lambda X: X.obj,
    ),
    (
        lambda: SimpleNamespace(__dlpack__=0, rows=ROWS),
        r"X is a SimpleNamespace.*np\.from_dlpack\(X\)",
        lambda X: X.rows,
    ),
    (AnnData, r"X is an AnnData.*X\.X.*X\.to_df\(\)", lambda X: X.to_df()),
    (Table, r"X is a Table.*X\.to_pandas\(\)", lambda X: X.to_pandas()),
    (lambda: (row for row in ROWS), "X is a generator.*list", lambda X: np.asarray(list(X))),
    (lambda: map(list, ROWS), "X is a map.*list", lambda X: np.asarray(list(X))),
    (lambda: iter(ROWS.tolist()), "X is a list_iterator.*list", lambda X: np.asarray(list(X))),
    (
        lambda: torch.utils.data.DataLoader(TENSORS, batch_size=7),
        r"X is a DataLoader.*torch\.cat\(\[batch\[0\] for batch in X\]\)",
        lambda X: torch.cat([batch[0] for batch in X]),
    ),
    (
        lambda: TENSORS,
        r"X is a TensorDataset.*torch\.stack\(\[row\[0\] for row in X\]\)",
        lambda X: torch.stack([row[0] for row in X]),
    ),
    (lambda: "rows.csv", "X is a str.*read the file", None),
    (lambda: pathlib.PurePosixPath("rows.csv"), "X is a PurePosixPath.*read the file", None),
    (lambda: {1.0, 2.0}, "X is a set.*list", None),
    (lambda: [{"a": 1.0}, {"a": 2.0}], "rows of X are of type dict.*DataFrame", pd.DataFrame),
    (
        lambda: np.array([(1.0, 2.0), (3.0, 5.0)], dtype=[("a", float), ("b", float)]),
        r"structured array with the fields \['a', 'b'\].*pandas.DataFrame",
        pd.DataFrame,
    ),
]


def words(case):
    return case[1].partition(".")[0]


@pytest.mark.parametrize("case", NO_ROWS, ids=words)
@pytest.mark.parametrize("likelihood", [Gaussian(), "auto"], ids=str)
def test_what_is_no_table_is_refused_with_a_remedy_that_works(case, likelihood, quick):
    make, message, remedy = case
    with pytest.raises(TypeError, match=message):
        quick(likelihood=likelihood).fit(make())
    if remedy is not None:
        with warnings.catch_warnings():
            # Two rows are not much to learn from.
            warnings.filterwarnings("ignore", "All 2 components are inactive")
            assert np.isfinite(quick().fit(remedy(make())).state_["location"]).all()


@pytest.mark.parametrize("case", NO_ROWS, ids=words)
def test_inference_and_the_imputer_refuse_what_fit_does(case, quick):
    make, message, _ = case
    vae = quick().fit(ROWS)
    for method in (vae.transform, vae.score_samples, VAEImputer(quick()).fit, VAEImputer().fit):
        with pytest.raises(TypeError, match=message):
            method(make())
    imputer = VAEImputer(quick()).fit(ROWS)
    with pytest.raises(TypeError, match=message):
        imputer.transform(make())


def test_none_is_refused_by_name(quick):
    with pytest.raises(ValueError, match=r"X is None\. Expected an array or a DataFrame"):
        quick().fit(None)


# --- dimensions -------------------------------------------------------------------------------


def images(*shape):
    return np.random.default_rng(0).random((6, *shape))


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor, np.ndarray.tolist])
@pytest.mark.parametrize("shape", [(8, 8), (8, 9, 3)])
def test_images_are_refused_with_the_way_to_flatten_them(kind, shape, quick):
    X = kind(images(*shape))
    message = f"X has {1 + len(shape)} dimensions, of shape {(6, *shape)}. Expected 2 dimensions"
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        quick().fit(X)
    remedy = re.search(r"features\): (.*\)) makes a row of each sample", str(caught.value)).group(1)
    rows = np.asarray(eval(remedy, {"X": X, "np": np}))
    np.testing.assert_array_equal(rows, np.asarray(X).reshape(6, -1))
    with pytest.raises(ValueError, match=re.escape(message)):
        quick().fit(rows).transform(X)


@pytest.mark.parametrize(
    ("shape", "given", "remedy"),
    [
        ((3, 8, 9), (8, 9, 3), "X.transpose(0, 3, 1, 2).reshape(len(X), -1)"),
        ((3, 8, 9), (3, 8, 9), "X.reshape(len(X), -1)"),
        ((1, 8, 9), (8, 9), "X.reshape(len(X), -1)"),
        ((1, 8, 9), (8, 9, 1), "X.reshape(len(X), -1)"),
    ],
)
def test_images_for_convolutions_are_refused_with_the_order_of_the_axes(
    shape, given, remedy, quick
):
    X, network = images(*given), Conv(shape, channels=(2,))
    message = f"Conv expects rows in the order (channels, height, width) = {shape}, which {remedy}"
    with pytest.raises(ValueError, match=re.escape(message)):
        quick(network=network).fit(X)
    axes = (0, 3, 1, 2) if "transpose" in remedy else range(X.ndim)
    rows = X.transpose(axes).reshape(len(X), -1)
    assert quick(network=network).fit(rows).transform(rows).shape == (6, 2)
    with pytest.raises(ValueError, match=re.escape(message)):
        quick(network=network).fit(rows).transform(X)


def test_a_tensor_of_images_is_told_to_permute_its_axes(quick):
    X, network = torch.tensor(images(8, 9, 3)), Conv((3, 8, 9), channels=(2,))
    with pytest.raises(ValueError, match=re.escape("X.permute(0, 3, 1, 2).reshape(len(X), -1)")):
        quick(network=network).fit(X)


def test_nested_lists_of_images_are_told_to_become_an_array(quick):
    X = images(8, 9, 3).tolist()
    remedy = "np.asarray(X).transpose(0, 3, 1, 2).reshape(len(X), -1)"
    with pytest.raises(ValueError, match=re.escape(f"which {remedy} makes")):
        quick(network=Conv((3, 8, 9), channels=(2,))).fit(X)


def test_a_list_of_strings_is_told_to_become_an_array(quick):
    with pytest.raises(ValueError, match=r"2 values.* np\.asarray\(X\)\.reshape\(-1, 1\) is one"):
        quick().fit(["a", "b"])


def test_images_in_another_order_are_told_that_of_the_convolutions(quick):
    message = "(channels, height, width) = (3, 8, 9). Move the axes of X to that order"
    with pytest.raises(ValueError, match=re.escape(message)):
        quick(network=Conv((3, 8, 9), channels=(2,))).fit(images(9, 8, 3))


@pytest.mark.parametrize("X", [np.array(["a", "b", "c"]), np.array([None, "b", "c"])], ids=str)
@pytest.mark.parametrize("likelihood", [Gaussian(), "auto"], ids=str)
def test_one_dimension_of_strings_is_refused_for_its_dimension(X, likelihood, quick):
    with pytest.raises(ValueError, match=r"X has 1 dimension, of 3 values.*X\.reshape\(-1, 1\)"):
        quick(likelihood=likelihood).fit(X)


def test_rows_of_unequal_lengths_are_named(quick):
    message = "unequal lengths: row 0 has 2 values, row 2 has 1"
    with pytest.raises(ValueError, match=message):
        quick().fit([[1.0, 2.0], [3.0, 4.0], [5.0]])


# --- columns ----------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", [Gaussian(), "auto"], ids=str)
def test_columns_of_one_name_are_named_with_a_way_out(likelihood, quick):
    X = pd.DataFrame(ROWS, columns=["a", "b", "a"])
    X.insert(0, "c", np.arange(30.0))
    with pytest.raises(ValueError, match=re.escape("columns of one name: 'a' (2 columns)")):
        quick(likelihood=likelihood).fit(X)
    numbered = X.set_axis(range(X.shape[1]), axis=1)
    vae = quick(likelihood=likelihood).fit(numbered)
    assert list(vae.inverse_transform(vae.transform(numbered)).columns) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="columns of one name"):
        vae.transform(X)


def test_names_of_two_levels_may_repeat_in_each(quick):
    names = pd.MultiIndex.from_tuples([("a", "x"), ("a", "y"), ("b", "x")])
    X = pd.DataFrame(ROWS, columns=names)
    X["c", "z"] = ["u", "v"] * 15
    vae = quick(likelihood="auto").fit(X)
    assert vae.inverse_transform(vae.transform(X)).columns.equals(X.columns)
    X = X.set_axis(names.append(pd.MultiIndex.from_tuples([("a", "x")])), axis=1)
    with pytest.raises(ValueError, match=re.escape("('a', 'x') (2 columns)")):
        quick(likelihood="auto").fit(X)


@pytest.mark.parametrize(
    "values",
    [pd.interval_range(0, 30), pd.period_range("2020", periods=30, freq="D")],
    ids=["Interval", "Period"],
)
def test_values_of_other_types_are_categories_or_refused_by_name(values, quick):
    X = pd.DataFrame(ROWS, columns=list("abc")).assign(d=values)
    kind = type(values[0]).__name__
    message = rf"value of type {kind} in column 3 \('d'\).*categories, use likelihood='auto'"
    with pytest.raises(TypeError, match=message):
        quick().fit(X)
    vae = quick(likelihood="auto").fit(X)
    assert set(vae.sample(20, random_state=0)["d"]) <= set(values)


@pytest.mark.parametrize("dtype", [str, object])
def test_numbers_as_strings_are_refused_as_strings(dtype, quick):
    X = ROWS.round(2).astype(str).astype(dtype)
    message = (
        r"X has the value '0.13' in column 0, which is no number but a string.*astype\(float\)"
    )
    with pytest.raises(ValueError, match=message):
        quick().fit(X)
    quick().fit(X.astype(float))


@pytest.mark.parametrize(
    "values", [["q"] * 30, ["q", "r"] * 15, [*"qrstuvw", None] * 3 + ["q"] * 6]
)
def test_a_column_of_new_categories_alone_is_said_to_be_so(values, quick):
    X = pd.DataFrame({"s": ["x", "y", None] * 10, "n": ROWS[:, 0]})
    vae = quick(likelihood="auto").fit(X)
    shown = ", ".join(repr(value) for value in dict.fromkeys(values) if value)
    if len(set(values)) > 5:
        shown = "'q', 'r', 's', 't', 'u' and 2 more"
    n = sum(value is not None for value in values)
    message = f"taken as missing: {shown} in column 0 ('s') ({n} rows, the first is 0), where X"
    with pytest.warns(UserWarning, match=re.escape(message)):
        vae.score_samples(X.assign(s=values))


@pytest.mark.filterwarnings("ignore:X has values in columns that had no value")
def test_a_column_that_had_no_value_in_fit_is_said_to_be_so(quick):
    X = pd.DataFrame({"s": [None] * 30, "n": ROWS[:, 0], "m": ROWS[:, 1]})
    with pytest.warns(UserWarning, match=r"X has no value in column 0 \('s'\)"):
        vae = quick(likelihood="auto").fit(X)
    message = "'d' in column 0 ('s') (10 rows, the first is 0), where the data of fit had no value."
    with pytest.warns(UserWarning, match=re.escape(message)):
        vae.score_samples(X.assign(s=["d", None, None] * 10))


def test_numbers_among_objects_are_found_after_many_missing_values(quick):
    late = np.array([None] * 150 + [*range(50)], dtype=object)
    X = pd.DataFrame({"a": np.random.default_rng(0).normal(size=200), "late": late})
    vae = quick(likelihood="auto").fit(X)
    assert vae.likelihood_ == Gaussian()
    assert vae.sample(5, random_state=0)["late"].map(type).eq(int).all()


# --- pyarrow ----------------------------------------------------------------------------------


@pytest.fixture
def pyarrow():
    return pytest.importorskip("pyarrow")


@pytest.fixture
def mixed():
    """Columns of each kind that pandas, polars and pyarrow share, with missing values."""
    rng = np.random.default_rng(0)
    columns = {
        "real": rng.normal(size=60).tolist(),
        "whole": rng.integers(-100, 100, 60).tolist(),
        "flag": (rng.random(60) < 0.5).tolist(),
        "word": rng.choice(["u", "v", "w"], 60).tolist(),
        "level": rng.choice(["low", "high"], 60).tolist(),
    }
    for i, values in enumerate(columns.values()):
        values[i] = values[i + 7] = None
    return columns


def as_table(pyarrow, mixed):
    own = {"whole": pyarrow.int16(), "level": pyarrow.dictionary(pyarrow.int8(), pyarrow.string())}
    fields = [(name, own.get(name)) for name in mixed]
    return pyarrow.table({name: pyarrow.array(mixed[name], type_) for name, type_ in fields})


def as_pandas(mixed):
    levels = [level for level in dict.fromkeys(mixed["level"]) if level]  # the order of pyarrow
    dtypes = {"whole": "Int16", "flag": "boolean", "level": pd.CategoricalDtype(levels)}
    return pd.DataFrame(mixed).astype(dtypes)


def test_a_table_of_pyarrow_is_read_as_the_frame_of_pandas_with_its_values(pyarrow, mixed, quick):
    table, frame = as_table(pyarrow, mixed), as_pandas(mixed)
    vae, expected = (quick(likelihood="auto").fit(X) for X in (table, frame))
    assert vae.likelihood_ == expected.likelihood_
    np.testing.assert_array_equal(vae.feature_names_in_, expected.feature_names_in_)
    np.testing.assert_array_equal(vae.transform(table), expected.transform(frame))
    np.testing.assert_array_equal(vae.score_samples(table), vae.score_samples(frame))


def test_rows_come_back_in_the_table_of_pyarrow_that_they_came_in(pyarrow, mixed, quick):
    table = as_table(pyarrow, mixed)
    vae = quick(likelihood="auto").fit(table)
    for back in (vae.sample(20, random_state=0), vae.inverse_transform(vae.transform(table))):
        assert isinstance(back, pyarrow.Table)
        assert back.column_names == table.column_names
        types = dict(zip(back.column_names, map(str, back.schema.types), strict=True))
        assert types.pop("level").startswith("dictionary<values=string")
        assert list(types.values()) == ["double", "int16", "bool", "string"]
        assert set(back["word"].to_pylist()) <= {"u", "v", "w"}
        assert set(back["level"].to_pylist()) <= {"low", "high"}
    again = pickle.loads(pickle.dumps(vae))
    assert again.sample(5, random_state=0).equals(vae.sample(5, random_state=0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_table_of_numbers_is_read_as_their_array(pyarrow, dtype, quick):
    rows = ROWS.astype(dtype)
    table = pyarrow.table(dict(zip("abc", rows.T, strict=True)))
    vae, expected = quick().fit(table), quick().fit(rows)
    latent = vae.transform(table)
    np.testing.assert_array_equal(latent, expected.transform(rows))
    back = vae.inverse_transform(latent)
    assert isinstance(back, pyarrow.Table)
    assert (back.column_names, back["a"].to_numpy().dtype) == (list("abc"), dtype)
    np.testing.assert_array_equal(np.asarray(back), expected.inverse_transform(latent))


def test_messages_name_the_columns_of_a_table_of_pyarrow(pyarrow, quick):
    table = pyarrow.table({"a": ROWS[:, 0], "day": pd.date_range("2020", periods=30)})
    with pytest.raises(ValueError, match=r"Got dtype timestamp.* in column 1"):
        quick().fit(table)
    table = pyarrow.table({"a": ROWS[:, 0], "b": [*ROWS[:29, 1], np.inf]})
    with pytest.raises(ValueError, match=r"infinity in column 1 \('b'\), row 29"):
        quick().fit(table)
    table = pyarrow.table({"a": ROWS[:, 0], "b": ["x", "y"] * 15})
    with pytest.raises(ValueError, match=r"'x' in column 1 \('b'\), which is no number"):
        quick().fit(table)
    table = pyarrow.table([ROWS[:, 0], ROWS[:, 1]], names=["a", "a"])
    with pytest.raises(ValueError, match=r"columns of one name: 'a' \(2 columns\).*rename"):
        quick().fit(table)


def test_weights_and_groups_choose_rows_of_a_table_of_pyarrow(pyarrow, mixed, quick):
    table, weight = as_table(pyarrow, mixed), np.ones(60)
    weight[::3] = 0
    kept = np.flatnonzero(weight)
    vae = quick(likelihood="auto").fit(table, sample_weight=pyarrow.array(weight))
    expected = quick(likelihood="auto").fit(table.take(kept))
    np.testing.assert_array_equal(vae.score_samples(table), expected.score_samples(table))


def test_the_imputer_fills_a_table_of_pyarrow(pyarrow, mixed, quick):
    table = as_table(pyarrow, mixed)
    for imputer in (
        VAEImputer(quick(likelihood="auto")),
        VAEImputer(quick(likelihood="auto"), add_indicator=True),
    ):
        filled = imputer.fit(table).transform(table)
        assert isinstance(filled, pyarrow.Table)
        assert sum(column.null_count for column in filled.columns) == 0
        assert filled.schema.types[:4] == table.schema.types[:4]
        for name in mixed:
            pairs = zip(filled[name].to_pylist(), mixed[name], strict=True)
            assert all(new == old for new, old in pairs if old is not None)
    assert filled.column_names == list(imputer.get_feature_names_out())


def test_a_model_fitted_on_one_frame_reads_those_of_other_packages(pyarrow, mixed, quick):
    frames = as_table(pyarrow, mixed), as_pandas(mixed), pl.DataFrame(mixed)
    vae = quick(likelihood="auto").fit(frames[2])
    scores = [vae.score_samples(frame) for frame in frames]
    np.testing.assert_array_equal(scores[0], scores[2])
    np.testing.assert_array_equal(scores[1], scores[2])


def test_a_dictionary_of_pyarrow_declares_its_categories(pyarrow, quick):
    codes = pyarrow.array([0, 1] * 15, pyarrow.int8())
    words = pyarrow.DictionaryArray.from_arrays(codes, ["x", "y", "unused"])
    vae = quick(likelihood="auto").fit(pyarrow.table({"a": ROWS[:, 0], "b": words}))
    assert vae._categories[1].tolist() == ["x", "y", "unused"]


def test_a_frame_of_pandas_may_have_any_dtype_of_pyarrow(pyarrow, quick):
    decimals = [decimal.Decimal(i).scaleb(-1) for i in range(30)]
    decimals[3] = None
    X = pd.DataFrame(
        {
            "real": ROWS[:, 0],
            "price": pd.array(decimals, pd.ArrowDtype(pyarrow.decimal128(5, 1))),
            "word": pd.array(
                ["x", "y", None] * 10,
                pd.ArrowDtype(pyarrow.dictionary(pyarrow.int8(), pyarrow.string())),
            ),
            "whole": pd.array([*range(29), None], pd.ArrowDtype(pyarrow.int16())),
        }
    )
    vae = quick(likelihood="auto").fit(X)
    assert vae._categories.keys() == {2}
    back = vae.sample(10, random_state=0)
    assert back["price"].dtype == float  # no word makes this dtype of pyarrow
    assert back["whole"].dtype == X["whole"].dtype
    assert set(back["word"]) <= {"x", "y"}
    filled = VAEImputer(quick(likelihood="auto")).fit(X).transform(X)
    assert filled.notna().all().all()
    assert (filled.dtypes == X.dtypes)[["whole", "word"]].all()
    quick().fit(X[["real", "price", "whole"]])


class Stream:
    """A table of a package that narwhals does not know, which shares it by Arrow's protocol."""

    def __init__(self, table):
        self.table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)


@pytest.mark.parametrize("kind", ["RecordBatch", "RecordBatchReader", "StructArray", "Stream"])
@pytest.mark.parametrize("estimator", ["transformer", "imputer"])
def test_a_table_that_only_arrow_knows_is_refused_with_a_remedy_that_works(
    pyarrow, kind, estimator, quick
):
    table = pyarrow.table(dict(zip("abc", ROWS.T, strict=True)))
    (batch,) = table.to_batches()
    make = {
        "RecordBatch": lambda: batch,
        "RecordBatchReader": table.to_reader,
        "StructArray": lambda: pyarrow.StructArray.from_arrays(batch.columns, batch.schema.names),
        "Stream": lambda: Stream(table),
    }[kind]
    own = quick() if estimator == "transformer" else VAEImputer(quick())
    message = rf"X is a {kind}\. Expected .*: pass pyarrow\.table\(X\)\."
    with pytest.raises(TypeError, match=message):
        own.fit(make())
    own.fit(pyarrow.table(make()))
    assert own.feature_names_in_.tolist() == ["a", "b", "c"]
    with pytest.raises(TypeError, match=message):
        own.transform(make())


def of_type(pyarrow, word):
    """A type of pyarrow, and values of it."""
    words, numbers = ["x", "y", "z"] * 14, [1, 2, 4] * 14
    of_dictionary = {
        "ordered": (pyarrow.int8(), pyarrow.string(), True),
        "large": (pyarrow.int64(), pyarrow.large_string(), False),
        "numbers": (pyarrow.int16(), pyarrow.int64(), False),
    }
    if word in of_dictionary:
        index, value, ordered = of_dictionary[word]
        type_ = pyarrow.dictionary(index, value, ordered=ordered)
        return type_, numbers if word == "numbers" else words
    return pyarrow.type_for_alias(word), [w.encode() for w in words] if "binary" in word else words


@pytest.mark.parametrize(
    "word", ["ordered", "large", "numbers", "string", "large_string", "large_binary"]
)
@pytest.mark.parametrize("container", ["pandas", "pyarrow"])
def test_a_column_of_an_arrow_type_comes_back_as_this_type(pyarrow, word, container, quick):
    type_, values = of_type(pyarrow, word)
    values = [None, *values[1:]]
    real = np.random.default_rng(0).normal(size=len(values))
    if container == "pandas":
        own = pd.Series(values, dtype=pd.ArrowDtype(type_))
        X = pd.DataFrame({"real": real, "own": own})
    else:
        X = pyarrow.table({"real": real, "own": pyarrow.array(values, type_)})

    def dtype(frame):
        return frame["own"].dtype if container == "pandas" else frame["own"].type

    vae = quick(likelihood="auto").fit(X)
    vae = pickle.loads(pickle.dumps(vae))
    for back in (vae.sample(5), vae.inverse_transform(vae.transform(X))):
        assert dtype(back) == dtype(X)
        assert set(back["own"].to_pylist() if container == "pyarrow" else back["own"]) <= {
            *values[1:]
        }
    filled = VAEImputer(quick(likelihood="auto")).fit_transform(X)
    assert dtype(filled) == dtype(X)


@pytest.mark.parametrize("kind", ["category", "dictionary"])
def test_numbers_in_a_dtype_of_categories_come_back_as_numbers(pyarrow, kind, quick):
    dictionary = pyarrow.dictionary(pyarrow.int8(), pyarrow.int64())
    dtype = pd.ArrowDtype(dictionary) if kind == "dictionary" else "category"
    values = pd.Series([None, *[1, 2, 4] * 10], dtype=dtype)
    X = pd.DataFrame({"real": np.arange(31.0), "number": values, "word": list("xyz") * 10 + ["x"]})
    parts = [(Gaussian(), ["real", "number"]), ("categorical", ["word"])]
    likelihood = Columns(parts)
    drawn = quick(likelihood=likelihood).fit(X).sample(20, random_state=0)["number"]
    assert drawn.dtype == np.float64
    assert drawn.nunique() == 20
    filled = VAEImputer(quick(likelihood=likelihood)).fit_transform(X)["number"]
    assert filled[1:].tolist() == values[1:].tolist()
    assert filled[0] not in (1, 2, 4)  # as no category is between the others
    assert np.isfinite(filled[0])


@pytest.mark.parametrize("word", ["decimal128", "decimal256"])
@pytest.mark.parametrize("container", ["pandas", "pyarrow", "polars", "object"])
def test_decimals_are_numbers_for_every_likelihood_and_the_imputer(pyarrow, word, container, quick):
    type_ = getattr(pyarrow, word)(10, 2)
    real = np.random.default_rng(0).normal(size=(31, 2)).round(2)
    values = [None, *(decimal.Decimal(str(value)) for value in real[1:, 1])]
    real[0, 1] = np.nan
    if container == "pyarrow":
        X = pyarrow.table({"a": real[:, 0], "b": pyarrow.array(values, type_)})
    elif container == "polars":
        X = pl.DataFrame({"a": real[:, 0], "b": pl.Series(values, dtype=pl.Decimal(10, 2))})
    else:
        dtype = pd.ArrowDtype(type_) if container == "pandas" else object
        X = pd.DataFrame({"a": real[:, 0], "b": pd.Series(values, dtype=dtype)})
    for likelihood in ("auto", Gaussian("per_feature")):
        vae = VAEImputer(quick(likelihood=likelihood))
        expected = VAEImputer(quick(likelihood=Gaussian() if likelihood == "auto" else likelihood))
        filled = np.column_stack([np.asarray(c, float) for c in columns_of(vae.fit_transform(X))])
        np.testing.assert_array_equal(filled, expected.fit_transform(real))


def columns_of(X):
    return X.T if isinstance(X, np.ndarray) else [X[name].to_numpy() for name in ("a", "b")]


@pytest.mark.parametrize("make", [pd.DataFrame, lambda X: pl.DataFrame(X, schema=["0", "1", "2"])])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32])
def test_the_imputer_has_the_dtypes_of_the_transformer(make, dtype, quick):
    rows = (10 * ROWS).astype(dtype)
    filled = VAEImputer(quick()).fit_transform(make(rows))
    assert filled.dtype == (np.float32 if dtype == np.float32 else np.float64)
    tensor = torch.tensor(rows)
    assert VAEImputer(quick()).fit_transform(tensor).dtype == filled.dtype
    np.testing.assert_array_equal(
        quick().fit(tensor).transform(tensor), quick().fit_transform(rows)
    )


def test_the_imputer_reads_a_tensor_of_bfloat16(quick):
    rows = torch.tensor(ROWS).bfloat16()
    np.testing.assert_array_equal(VAEImputer(quick()).fit_transform(rows), rows.float().numpy())


def test_the_imputer_names_the_column_of_a_value_that_is_no_number(quick):
    X = pd.DataFrame({"a": ROWS[:, 0], "b": ["x", "y"] * 15})
    with pytest.raises(ValueError, match=r"'x' in column 1 \('b'\), which is no number\. Make"):
        VAEImputer(quick()).fit(X)
