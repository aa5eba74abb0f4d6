"""Containers: read rows from the user's container, and give rows back in it.

Tables come as numpy arrays, masked or not, lists, torch tensors, pandas or polars DataFrames. They
leave as arrays, or as a frame like the one of `fit`. A fitted estimator keeps plain values that
describe this frame.
"""

import importlib
import os
from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence, Set
from datetime import date, timedelta
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch

from skvae._backend.tensors import Array

NUMBERS = Real | Decimal | np.bool_  # types of values that are numbers
LOOSE = ("object", "Object")  # dtypes for values of any kind, in pandas and numpy, and in polars


def check_rows(X: Any, image_shape: tuple[int, int, int] | None = None) -> None:
    """Raise an error if X is no table of rows, and say what to pass in its place.

    `image_shape` is the (channels, height, width) of a `Conv`, whose rows are such images.
    """
    remedy, rows = _remedy(X), "X"
    if remedy is not None:
        article = "an" if type(X).__name__[0] in "AEIOaeio" else "a"
        what = "None" if X is None else f"{article} {type(X).__name__}"
        error = ValueError if X is None else TypeError  # as in scikit-learn
        raise error(
            f"X is {what}. Expected an array or a DataFrame of shape (n_samples, n_features): "
            f"{remedy}."
        )
    if isinstance(X, list | tuple) and len(X):
        if isinstance(X[0], Mapping):
            raise TypeError(
                f"The rows of X are of type {type(X[0]).__name__}. Expected an array or a "
                "DataFrame of shape (n_samples, n_features): pass pandas.DataFrame(X)."
            )
        lengths = [len(row) if isinstance(row, list | tuple | np.ndarray) else -1 for row in X]
        row = next((i for i, length in enumerate(lengths) if length != lengths[0]), None)
        if row is not None and -1 not in lengths:
            raise ValueError(
                f"The rows of X have unequal lengths: row 0 has {lengths[0]} values, row {row} "
                f"has {lengths[row]}. Give all rows the same number of values, with NaN where "
                "one is missing."
            )
        X, rows = np.asarray(X), "np.asarray(X)"
    shape = getattr(X, "shape", ())
    if isinstance(X, np.ndarray) and X.dtype.names is not None:
        raise TypeError(
            f"X is a structured array with the fields {list(X.dtype.names)}. Expected an array or "
            "a DataFrame of shape (n_samples, n_features): pass pandas.DataFrame(X)."
        )
    if isinstance(X, np.ndarray) and X.ndim == 1 and X.dtype.kind in "USO":
        raise ValueError(
            f"X has 1 dimension, of {len(X)} values. Expected 2 dimensions, (n_samples, "
            f"n_features): {rows}.reshape(-1, 1) is one feature of many samples, "
            f"{rows}.reshape(1, -1) one sample."
        )
    if len(shape) > 2 and not hasattr(X, "columns"):
        raise ValueError(
            f"X has {len(shape)} dimensions, of shape {tuple(shape)}. Expected 2 dimensions, "
            f"(n_samples, n_features): {_flatten(X, tuple(shape), image_shape, rows)}."
        )
    if hasattr(X, "iloc") and hasattr(X, "columns") and not X.columns.is_unique:
        twice = [(name, n) for name, n in Counter(X.columns).items() if n > 1]
        words = [f"{name!r} ({n} columns)" for name, n in twice[:5]]
        more = f" and {len(twice) - 5} more" if len(twice) > 5 else ""
        raise ValueError(
            f"X has columns of one name: {', '.join(words)}{more}. Give each a name of its own, "
            "or number them with X.set_axis(range(X.shape[1]), axis=1)."
        )


def _remedy(X: Any) -> str | None:
    """Words for what to pass in place of X; None if X may be a table."""
    if X is None:
        return "pass the rows to be read"
    if isinstance(X, np.ndarray | torch.Tensor) or hasattr(X, "__array__") or hasattr(X, "tocsr"):
        return None
    if isinstance(X, torch.utils.data.DataLoader):
        return "concatenate its batches, as torch.cat([batch[0] for batch in X]) does"
    if isinstance(X, torch.utils.data.Dataset):
        return "stack its rows, as torch.stack([row[0] for row in X]) does"
    if hasattr(X, "to_df") and hasattr(X, "X"):  # AnnData
        return "pass its matrix X.X, or the frame X.to_df()"
    if hasattr(X, "collect") and not hasattr(X, "shape"):  # polars.LazyFrame
        return "pass X.collect()"
    if hasattr(X, "to_pandas"):
        return "pass X.to_pandas()"
    if isinstance(X, Mapping):
        return "pass pandas.DataFrame(X), of whose columns the keys are the names"
    if isinstance(X, Iterator | Set):
        return "pass np.asarray(list(X))"
    if isinstance(X, str | bytes | os.PathLike):
        return "read the file first, with pandas.read_csv or numpy.load, say"
    return None


def _flatten(
    X: Any, shape: tuple[int, ...], image_shape: tuple[int, int, int] | None, name: str
) -> str:
    """Words for how to make rows of the array `name`, whose samples have several dimensions."""
    if image_shape is None:
        return f"{name}.reshape(len(X), -1) makes a row of each sample"
    channels, height, width = image_shape
    order = f"Conv expects rows in the order (channels, height, width) = {image_shape}"
    if shape[1:] == (height, width, channels) and channels > 1:
        move = "permute" if isinstance(X, torch.Tensor) else "transpose"
        moved = f"{name}.{move}(0, 3, 1, 2)"
        return f"{order}, which {moved}.reshape(len(X), -1) makes of these images"
    if shape[1:] in (image_shape, (height, width), (height, width, channels)):
        return f"{order}, which {name}.reshape(len(X), -1) makes of these images"
    return f"{order}. Move the axes of X to that order, and then take {name}.reshape(len(X), -1)"


def to_validate(X: Any, *, is_rows: bool = True) -> Any:
    """Return X as scikit-learn can validate it: tensors become arrays, and dates raise an error.

    With `is_rows`, X must be a table of rows; without, X may have one value per row, such as
    weights.
    """
    if is_rows:
        check_rows(X)
    if hasattr(X, "tocsr"):
        return X.tocsr()  # not every sparse format can give rows
    X = to_plain(X)
    if isinstance(X, list | tuple):
        rows, X = X, np.asarray(X)
        if X.dtype.kind in "US":  # numpy has turned numbers beside strings into strings, too
            X = np.asarray(rows, dtype=object)
    for column, dtype in enumerate(dtypes(X)):
        if getattr(dtype, "kind", "f") in "mM" or str(dtype).startswith(("Date", "Duration")):
            raise _no_number(f"dtype {dtype} in column {column}")
    dates = np.datetime64 | np.timedelta64 | date | timedelta
    for column, dtype in enumerate(dtypes(X)):
        if str(dtype) in LOOSE:
            values = items(X, column) if hasattr(X, "columns") else np.ravel(X).tolist()
            if any(issubclass(type_, dates) for type_ in set(map(type, values))):
                raise _no_number(repr(next(v for v in values if isinstance(v, dates))))
    return X


def to_plain(X: Any) -> Any:
    """Turn a tensor or a masked array into a plain array, with NaN for masked values."""
    if isinstance(X, torch.Tensor):
        X = X.detach().cpu()
        return (X.float() if X.dtype == torch.bfloat16 else X).numpy()
    if isinstance(X, np.ma.MaskedArray):
        if X.mask.any():  # masked values are missing
            room = {"f": X.dtype, "i": np.float64, "u": np.float64, "b": np.float64}
            as_float: Any = X.astype(room.get(X.dtype.kind, object))
            X = as_float.filled(np.nan)
        return np.asarray(X)
    return X


def _no_number(what: str) -> ValueError:
    return ValueError(
        f"VAETransformer expects numbers. Got {what}: turn dates and durations into numbers "
        "first, such as days since a reference."
    )


def dtypes(X: Any) -> list[Any]:
    """Return the dtypes of the columns of a frame, or the single dtype of an array, in a list."""
    return list(X.dtypes) if hasattr(X, "columns") else [getattr(X, "dtype", None)]


def float_dtypes(X: Any) -> Any:
    """Return the dtypes that `check_array` allows for X: float32 stays, others become float64.

    Arrays of other numbers stay, too, and become float64 block by block when they are used. So a
    file of images takes an eighth of the memory of its floats. A polars frame of float32 has an
    answer of its own, since `check_array` does not recognise its dtype.
    """
    if {str(dtype) for dtype in dtypes(X)} == {"Float32"}:
        return np.float32
    if isinstance(X, np.ndarray) and X.dtype.kind in "iubf":
        return [np.float64, np.float32, X.dtype]
    return [np.float64, np.float32]


# --- columns ------------------------------------------------------------------------------


def names(X: Any) -> Array | None:
    """Return the names of the columns of X if all are strings, else None."""
    columns = list(getattr(X, "columns", []))
    is_named = columns and all(isinstance(column, str) for column in columns)
    return np.array(columns, dtype=object) if is_named else None


def _column(X: Any, i: int) -> Any:
    if hasattr(X, "iloc"):
        return X.iloc[:, i]
    if hasattr(X, "toarray"):
        return X[:, [i]].toarray().ravel()
    return X[:, i]


def kind(X: Any, i: int) -> str:
    """Return the kind of column i in numpy's letters: "f", "i" or "b", and "O" for other values.

    If the dtype allows values of any kind, as for a column with a None, the values decide.
    """
    dtype = _column(X, i).dtype if hasattr(X, "columns") else X.dtype
    if str(dtype) in LOOSE:
        types = {type(value) for value in items(X, i) if not is_missing(value)}
        for word, known in {"b": bool | np.bool_, "i": Integral, "f": NUMBERS}.items():
            if types and all(issubclass(type_, known) for type_ in types):
                return word
        return "O"
    return _kind_of(dtype)


def _kind_of(dtype: Any) -> str:
    if hasattr(dtype, "is_numeric"):  # polars
        if dtype.is_integer():
            return "i"
        return "f" if dtype.is_numeric() else "b" if str(dtype) == "Boolean" else "O"
    # Complex numbers count as floats here, since scikit-learn refuses them.
    return {"u": "i", "i": "i", "f": "f", "c": "f", "b": "b"}.get(getattr(dtype, "kind", "O"), "O")


def is_table(X: Any) -> bool:
    """Whether X has columns: it is a frame, an array or a sparse matrix of two dimensions."""
    known = hasattr(X, "columns") or hasattr(X, "toarray") or isinstance(X, np.ndarray)
    return known and len(getattr(X, "shape", ())) == 2


def has_objects(X: Any) -> bool:
    """Whether X is a table with a column whose dtype is not numeric."""
    return is_table(X) and any(_kind_of(dtype) == "O" for dtype in dtypes(X))


def own_categories(X: Any, i: int) -> list[Any] | None:
    """Return the categories of the dtype of column i, or None if it has none."""
    dtype = getattr(_column(X, i), "dtype", None)
    categories = getattr(dtype, "categories", None)
    # The Categorical of polars lists the strings of other columns, too.
    if categories is None or str(dtype).startswith("Categorical"):
        return None
    return list(categories)


def items(X: Any, i: int) -> list[Any]:
    """Return the values of column i in a list."""
    column = _column(X, i)
    return column.tolist() if hasattr(column, "tolist") else column.to_list()


def numbers(X: Any, i: int) -> Array | None:
    """Return column i as float64, NaN where values are missing; None if it is not numeric."""
    column = _column(X, i)
    if _kind_of(column.dtype) == "O":
        return None
    if hasattr(column, "is_null"):  # polars
        return column.cast(float).to_numpy()
    if hasattr(X, "iloc"):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    return column


def long_range(X: Any, i: int, rows: Array | None = None) -> tuple[int, int] | None:
    """Return the lowest and the highest number of these rows in a column of 64-bit integers.

    The result is None for other columns, and for columns without a number.
    """
    column = _column(X, i)
    if str(column.dtype).lower() not in ("int64", "uint64"):
        return None
    if rows is not None:
        column = column.iloc[rows] if hasattr(X, "iloc") else column[rows]
    low, high = column.min(), column.max()
    return None if is_missing(low) else (int(low), int(high))


def is_missing(value: Any) -> bool:
    """Whether a value of a column is missing: NaN, None, NA."""
    try:
        return value is None or not bool(value == value)
    except (TypeError, ValueError):  # pandas.NA has no truth value; an array has several
        return isinstance(value, Hashable)


def holes(X: Any) -> Array:
    """Whether each value of X is missing, (n, D)."""
    columns = []
    for i in range(X.shape[1]):
        column = numbers(X, i)
        columns.append([*map(is_missing, items(X, i))] if column is None else np.isnan(column))
    return np.stack(columns, axis=1)


# --- there and back -----------------------------------------------------------------------


def describe(
    X: Any, dtype: np.dtype[Any], *, as_table: bool = False, categories: Collection[int] = ()
) -> dict[str, Any]:
    """Describe how rows go back to the user: in the dtype and container of the data of `fit`.

    With `as_table` each column goes back in the dtype that it had. An array goes back in its dtype,
    too, if all of its columns are `categories`.
    """
    packages = (kind.__module__.partition(".")[0] for kind in type(X).__mro__)
    package = next((name for name in packages if name in ("pandas", "polars")), None)
    framed = package is not None and hasattr(X, "columns")
    output = {
        "dtype": "float32" if dtype.name == "float32" else "float64",
        "container": package if framed else None,
        "columns": list(X.columns) if framed else None,
    }
    own = getattr(X, "dtype", None)
    if as_table and (framed or getattr(own, "kind", "f") in "OUS"):
        known: list[Any] = dtypes(X) if framed else [np.dtype(object)] * X.shape[1]
        # Drawn and expected rows are dense.
        known = [d.subtype if str(d).startswith("Sparse") else d for d in known]
        output["dtype"] = "object"
        output["kinds"] = [kind(X, i) for i in range(X.shape[1])]
        output["dtypes"] = list(map(str, known))
        output["ordered"] = [bool(getattr(d, "ordered", False)) for d in known]
    elif categories and len(categories) == X.shape[1]:
        output["dtype"] = str(own)
    return output


def give_back(X: Array, output: Mapping[str, Any], index: Any = None) -> Any:
    """Return rows X as `output` of `describe` says; `index` is for a pandas frame, if any."""
    X = X.astype(output["dtype"], copy=False)
    if output["container"] is None:
        return X
    frames, columns = importlib.import_module(output["container"]), output["columns"]
    if output["container"] == "polars":
        return frames.DataFrame(X, schema=columns)
    return frames.DataFrame(X, columns=_index(frames, columns), index=index, copy=False)


def give_back_columns(
    columns: list[Array],
    output: Mapping[str, Any],
    categories: Mapping[int, Any],
    index: Any = None,
    container: str | None = None,
) -> Any:
    """Do as `give_back`, for columns that may hold categories, in the dtypes of `fit`."""
    dtypes: list[str] = output.get("dtypes", [])
    if "kinds" in output:
        known_kinds = enumerate(zip(columns, output["kinds"], dtypes, strict=True))
        columns = [c if i in categories else _rounded(c, *own) for i, (c, *own) in known_kinds]
    if output["container"] is None:
        return np.stack([column.astype(output["dtype"]) for column in columns], axis=1)
    container = container or output["container"]
    frames = importlib.import_module(container)
    settings = zip(columns, dtypes, output["ordered"], strict=True)
    own = container == output["container"]
    series: dict[str, Any] = {}
    for i, setting in enumerate(settings):
        column: Any = setting[0]
        dtype: Any = setting[1]
        ordered, known = setting[2], categories.get(i, ())
        if container == "pandas" and own and dtype == "category":
            column = frames.Categorical(column, categories=known, ordered=ordered)
        if own and dtype in LOOSE:
            column, dtype = column.tolist(), object if container == "pandas" else frames.Object
        elif not own or dtype == "category" or dtype.startswith("Decimal"):
            dtype = None
        elif container == "polars":
            name = dtype.partition("(")[0]
            dtype = frames.Enum(list(known)) if name == "Enum" else getattr(frames, name, None)
            missing = column.dtype.kind == "f" and np.isnan(column).any()
            column = [None if missing and value != value else value for value in column.tolist()]
        series[str(i)] = (
            frames.Series(str(i), column, dtype=dtype)
            if container == "polars"
            else frames.Series(column, dtype=dtype)
        )
    result = frames.DataFrame(series)
    if container == "polars":
        result.columns = list(map(str, output["columns"]))
        return result
    result.columns = _index(frames, output["columns"])
    return result if index is None else result.set_axis(index, axis=0)


def fill(X: Any, filled: Any, holes: Array) -> Any:
    """Return X with the values of `filled` in its `holes`; all other values stay as they are.

    The result has the container of `filled`. If X has this container, too, a column keeps its dtype
    if the dtype can hold the filled values.
    """
    if not hasattr(filled, "columns"):
        columns = [_fill(X, filled, i, holes[:, i]) for i in range(X.shape[1])]
        result = np.empty(X.shape, filled.dtype)
        for i, column in enumerate(columns):
            result[:, i] = column
        return result
    is_pandas = hasattr(filled, "iloc")
    same = hasattr(X, "columns") and hasattr(X, "iloc") == is_pandas
    result = filled.copy() if is_pandas else filled
    for i in range(X.shape[1]):
        before: Any = _column(X, i) if same else None
        column = before
        if not same or holes[:, i].any():
            wanted = [before.dtype] if same else []
            wanted += [_column(filled, i).dtype]
            column = _make(filled, i, _fill(X, filled, i, holes[:, i]), wanted)
        if is_pandas:
            result.isetitem(i, column)
        else:
            result = result.with_columns(column.alias(filled.columns[i]))
    return result


def _fill(X: Any, filled: Any, i: int, holes: Array) -> list[Any]:
    """Return the values of column i of X; filled values become bools or integers, as the others."""
    what, values, new = kind(X, i), items(X, i), items(filled, i)
    for row in np.flatnonzero(holes):
        value: Any = new[row]
        if isinstance(value, Real | np.bool_) and what in "bi":
            value = bool(float(value) >= 0.5) if what == "b" else round(float(value))
        values[row] = value
    return values


def _make(frame: Any, i: int, values: list[Any], dtypes: Sequence[Any]) -> Any:
    """Make a column of these values, in the first of these dtypes that holds them all."""
    series = type(_column(frame, i))
    for dtype in dtypes:
        known = getattr(dtype, "categories", None)
        if (known is not None and not set(values) <= set(known)) or str(dtype) == "Null":
            continue
        try:
            if hasattr(frame, "iloc"):
                return series(values, index=frame.index, dtype=object).astype(dtype)
            return series(values, dtype=dtype, strict=True)
        except (TypeError, ValueError, OverflowError, ArithmeticError):
            continue
    return (
        series(values, index=frame.index)
        if hasattr(frame, "iloc")
        else series(values, strict=False)
    )


def replace(X: Any, i: int, value: Any) -> Any:
    """Return rows X with this value in all of column i."""
    if hasattr(X, "hstack"):  # polars
        series = type(_column(X, i))
        return X.with_columns(series(X.columns[i], [value] * len(X)))
    if hasattr(X, "iloc"):
        X = X.copy()
        X.isetitem(i, value)
    else:
        X[:, i] = value
    return X


def take(X: Any, where: Array) -> Any:
    """Return the columns of X that are marked in `where`."""
    if hasattr(X, "hstack"):  # polars
        return X[:, np.flatnonzero(where).tolist()]
    return X.iloc[:, np.flatnonzero(where)] if hasattr(X, "iloc") else X[:, where]


def append(X: Any, more: Array, names: Array) -> Any:
    """Rows X with more columns; `names` are those of all columns, if X is a frame."""
    if not hasattr(X, "columns"):
        return np.hstack([X, more.astype(X.dtype)])
    added = dict(zip(names[X.shape[1] :], more.T, strict=True))
    if hasattr(X, "hstack"):  # polars
        return X.with_columns(**added)
    if not all(isinstance(column, str) for column in X.columns):
        X = X.set_axis(names[: X.shape[1]], axis=1)
    return X.assign(**added)


def _rounded(column: Array, kind: str, dtype: str) -> Array:
    """Numbers as whole ones or bools, where the column had such, or values at all."""
    if kind in "bi" and np.isnan(column).all():
        return column
    if kind == "b":
        return column >= 0.5
    if kind != "i":
        return column
    bits = int("".join(filter(str.isdigit, dtype.partition("[")[0])) or 64)
    unsigned = dtype.lower().startswith("u")
    low, high = (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    # The largest float64 below the highest number is the last that fits.
    high = min(float(high), np.nextafter(float(high + 1), 0.0))
    return np.clip(np.rint(column), low, high).astype(np.uint64 if unsigned else np.int64)


def _index(pandas: Any, columns: Sequence[Any]) -> Any:
    if all(isinstance(column, tuple) for column in columns):
        return pandas.MultiIndex.from_tuples(columns)
    return columns
