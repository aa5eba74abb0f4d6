"""Containers: read rows from the user's container.

Tables come as numpy arrays, masked or not, lists, torch tensors, or frames of any package that
narwhals knows, such as pandas, polars and pyarrow. `skvae._data.output` gives rows back.
"""

import os
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Set
from datetime import date, timedelta
from decimal import Decimal
from numbers import Integral, Real
from typing import Any, TypeAlias

import narwhals.stable.v2 as nw
import numpy as np
import torch

from skvae._backend.tensors import Array
from skvae._data.words import listed

NUMBERS = Real | Decimal | np.bool_  # types of values that are numbers
Column: TypeAlias = Any  # a series of narwhals or an array


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
    if len(shape) > 2:
        raise ValueError(
            f"X has {len(shape)} dimensions, of shape {tuple(shape)}. Expected 2 dimensions, "
            f"(n_samples, n_features): {_flatten(X, tuple(shape), image_shape, rows)}."
        )
    twice = [(name, n) for name, n in Counter(column_names(X)).items() if n > 1]
    if twice:
        shown = listed(f"{name!r} ({n} columns)" for name, n in twice)
        new = "set_axis(range(X.shape[1]), axis=1)"
        if hasattr(X, "rename_columns"):  # pyarrow
            new = "rename_columns([str(i) for i in range(X.shape[1])])"
        raise ValueError(
            f"X has columns of one name: {shown}. Give each a name of its own, or number them with "
            f"X.{new}."
        )


def _remedy(X: Any) -> str | None:
    """Words for what to pass in place of X; None if X may be a table."""
    if X is None:
        return "pass the rows to be read"
    if isinstance(X, np.ndarray | torch.Tensor) or hasattr(X, "tocsr"):
        return None
    found = _read_by_narwhals(X)
    if isinstance(found, nw.Series) and found.dtype.is_nested():
        if found.dtype == nw.Struct:
            return "pass X.struct.unnest(), of whose columns the fields are the names"
        return "pass np.array(X.to_list())"
    # Arrow's protocol gives names of columns, which an array of the same rows has not.
    if found is None and (hasattr(X, "__arrow_c_stream__") or hasattr(X, "__arrow_c_array__")):
        return "pass pyarrow.table(X)"
    if hasattr(X, "__array__"):
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
    if hasattr(X, "__dataframe__"):
        return "pass pandas.api.interchange.from_dataframe(X)"
    if hasattr(X, "__dlpack__"):
        return "pass np.from_dlpack(X)"
    if hasattr(X, "ngroups"):  # frames of pandas by groups
        return "pass the frame without groups"
    if isinstance(X, Mapping):
        return "pass pandas.DataFrame(X), of whose columns the keys are the names"
    if isinstance(X, Iterator | Set):
        return "pass np.asarray(list(X))"
    if isinstance(X, str | bytes | os.PathLike):
        return "read the file first, with pandas.read_csv or numpy.load, say"
    return None


def _read_by_narwhals(X: Any) -> Any:
    """Return X as a frame or a series of narwhals; None if it is neither."""
    try:
        found = nw.from_native(X, pass_through=True, allow_series=True)
    except nw.exceptions.DuplicateError:  # a frame, whose names have an error of their own
        return X
    return found if isinstance(found, nw.DataFrame | nw.LazyFrame | nw.Series) else None


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


def to_validate(
    X: Any, image_shape: tuple[int, int, int] | None = None, *, is_rows: bool = True
) -> Any:
    """Return X as scikit-learn can validate it: tensors become arrays, and dates raise an error.

    With `is_rows`, `check_rows` checks X, with `image_shape`; without, X may have one value per
    row, such as weights.
    """
    if is_rows:
        check_rows(X, image_shape)
    if hasattr(X, "tocsr"):
        return X.tocsr()  # not every sparse format can give rows
    X = to_plain(X)
    if isinstance(X, list | tuple):
        rows, X = X, np.asarray(X)
        if X.dtype.kind in "US":  # numpy has turned numbers beside strings into strings, too
            X = np.asarray(rows, dtype=object)
    _refuse_dates(X)
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


def _refuse_dates(X: Any) -> None:
    """Raise an error if a table or a series holds dates or durations."""
    dates = np.datetime64 | np.timedelta64 | date | timedelta
    for i, column in _special(X):
        if is_loose(column):
            values = items(column)
            if any(issubclass(type_, dates) for type_ in set(map(type, values))):
                raise _no_number(repr(next(value for value in values if isinstance(value, dates))))
        elif isinstance(column, np.ndarray) or column.dtype in (nw.Date, nw.Datetime, nw.Duration):
            raise _no_number(f"dtype {own_dtype(column)} in column {i}")


def _no_number(what: str) -> ValueError:
    return ValueError(
        f"VAETransformer expects numbers. Got {what}: turn dates and durations into numbers "
        "first, such as days since a reference."
    )


def float_dtypes(X: Any) -> Any:
    """Return the dtypes that `check_array` allows for X: float32 stays, others become float64.

    Arrays of other numbers stay, too, and become float64 block by block when they are used. So a
    file of images takes an eighth of the memory of its floats. A frame of float32 has an answer of
    its own, since `check_array` recognises this dtype in pandas only.
    """
    frame = as_frame(X)
    if frame is not None and all(c.dtype == nw.Float32 for c in frame.iter_columns()):
        return np.float32
    if isinstance(X, np.ndarray) and X.dtype.kind in "iubf":
        return [np.float64, np.float32, X.dtype]
    return [np.float64, np.float32]


# --- columns ------------------------------------------------------------------------------


def as_frame(X: Any) -> nw.DataFrame[Any] | None:
    """Return X as a frame of narwhals; None if X is no frame."""
    if isinstance(X, np.ndarray | torch.Tensor | list | tuple):  # narwhals takes longer to say so
        return None
    frame = nw.from_native(X, pass_through=True)
    return frame if isinstance(frame, nw.DataFrame) else None


def is_table(X: Any) -> bool:
    """Whether X has columns: it is a frame, an array or a sparse matrix of two dimensions."""
    known = isinstance(X, np.ndarray) or hasattr(X, "toarray") or as_frame(X) is not None
    return known and len(X.shape) == 2


def column_names(X: Any) -> list[Any]:
    """Return the names of the columns of a frame, which may repeat; empty for anything else."""
    try:
        frame = as_frame(X)
    except nw.exceptions.DuplicateError:
        return list(getattr(X, "column_names", None) or X.columns)
    return [] if frame is None else list(frame.columns)


def names(X: Any) -> Array | None:
    """Return the names of the columns of X if all are strings, else None."""
    columns = column_names(X)
    is_named = columns and all(isinstance(column, str) for column in columns)
    return np.array(columns, dtype=object) if is_named else None


def index_of(X: Any) -> Any:
    """Return the index of a frame or a series of pandas, or of a package like it; else None."""
    X = nw.from_native(X, pass_through=True, allow_series=True)
    return nw.maybe_get_index(X) if isinstance(X, nw.DataFrame | nw.Series) else None


def columns(X: Any) -> Iterator[Column]:
    """Yield the columns of a table: series of narwhals, or arrays."""
    frame = as_frame(X)
    if frame is not None:
        yield from frame.iter_columns()
    elif hasattr(X, "toarray"):
        yield from (X[:, [i]].toarray().ravel() for i in range(X.shape[1]))
    else:
        yield from X.T


def _special(X: Any) -> list[tuple[int, Column]]:
    """Return the columns of a frame whose dtypes are not for plain numbers, with their indices.

    A series counts as such a column, and so does an array of dates or of any values.
    """
    if isinstance(X, np.ndarray):
        return [(0, X.ravel())] if X.dtype.kind in "mMO" else []
    X = nw.from_native(X, pass_through=True, allow_series=True)
    if not isinstance(X, nw.DataFrame):
        return [(0, X)] if isinstance(X, nw.Series) else []
    dtypes = enumerate(X.schema.values())
    plain = {i for i, d in dtypes if (d.is_numeric() and d != nw.Decimal) or d == nw.Boolean}
    return [(i, X[:, i]) for i in range(X.shape[1]) if i not in plain]


def own_dtype(column: Column) -> Any:
    """Return the dtype that a column has in its own package."""
    values = nw.to_native(column, pass_through=True)
    return values.dtype if hasattr(values, "dtype") else values.type  # of pyarrow


def is_loose(column: Column) -> bool:
    """Whether the dtype of a column allows values of any kind.

    narwhals cannot tell: it takes objects of pandas for strings if the first 100 are strings.
    """
    return str(own_dtype(column)) in ("object", "Object")


def is_decimal(column: Column) -> bool:
    """Whether the dtype of a series is one of decimals, of which narwhals knows one only."""
    return column.dtype == nw.Decimal or str(own_dtype(column)).startswith("decimal")


def _kind_of_dtype(column: Column) -> str:
    """Return the kind of the dtype of a column, or of an array or sparse matrix."""
    dtype = column.dtype
    if isinstance(column, nw.Series) and is_decimal(column):
        return "f"
    if isinstance(column, nw.Series) and dtype != nw.Unknown:
        if dtype.is_integer():
            return "i"
        return "f" if dtype.is_numeric() else "b" if dtype == nw.Boolean else "O"
    # The sparse columns of pandas are unknown to narwhals. Complex numbers count as floats here,
    # since scikit-learn refuses them.
    letter = getattr(own_dtype(column), "kind", "O")
    return {"u": "i", "i": "i", "f": "f", "c": "f", "b": "b"}.get(letter, "O")


def kind(column: Column) -> str:
    """Return the kind of a column in numpy's letters: "f", "i" or "b", and "O" for other values.

    If the dtype allows values of any kind, as for a column with a None, the values decide.
    """
    if not is_loose(column):
        return _kind_of_dtype(column)
    types = {type(value) for value in items(column) if not is_missing(value)}
    for letter, known in {"b": bool | np.bool_, "i": Integral, "f": NUMBERS}.items():
        if types and all(issubclass(type_, known) for type_ in types):
            return letter
    return "O"


def kinds(X: Any) -> list[str]:
    """Return the kind of each column of a table."""
    if str(getattr(X, "dtype", "object")) == "object":  # a frame, or an array of objects
        return [kind(column) for column in columns(X)]
    return [_kind_of_dtype(X)] * X.shape[1]


def has_objects(X: Any) -> bool:
    """Whether X is a table with a column that `check_array` cannot read as numbers."""
    if isinstance(X, np.ndarray):
        return X.ndim == 2 and _kind_of_dtype(X) == "O"
    special = [column for _, column in _special(X)]
    found = any(_kind_of_dtype(c) == "O" or is_decimal(c) for c in special)
    return found and is_table(X)


def own_categories(column: Column) -> list[Any] | None:
    """Return the categories of the dtype of a column, or None if it has none."""
    if not isinstance(column, nw.Series) or column.dtype not in (nw.Categorical, nw.Enum):
        return None
    backend = column.implementation
    if backend.is_polars() and column.dtype == nw.Categorical:
        return None  # it lists the strings of other columns, too
    if backend.is_pandas_like() and not hasattr(column.to_native(), "cat"):
        # A dictionary of pyarrow in a frame of pandas.
        column = nw.from_native(column.to_native().array.__arrow_array__(), series_only=True)
    return [c for c in column.cat.get_categories().to_list() if not is_missing(c)]


def items(column: Column) -> list[Any]:
    """Return the values of a column in a list."""
    return column.to_list() if isinstance(column, nw.Series) else column.tolist()


def numbers(column: Column) -> Array | None:
    """Return a column as float64, NaN where values are missing; None if it is not numeric.

    The result is also None for decimals, since Arrow does not cast them to the nearest float64.
    """
    if _kind_of_dtype(column) == "O" or (isinstance(column, nw.Series) and is_decimal(column)):
        return None
    return column.cast(nw.Float64).to_numpy() if isinstance(column, nw.Series) else column


def long_range(column: Column, rows: Array | None = None) -> tuple[int, int] | None:
    """Return the lowest and the highest number of these rows in a series of 64-bit integers.

    The result is None for other columns, and for columns without a number.
    """
    if not isinstance(column, nw.Series) or column.dtype not in (nw.Int64, nw.UInt64):
        return None
    column = column if rows is None else column[rows]
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
    missing = []
    for column in columns(X):
        found = numbers(column)
        missing.append([*map(is_missing, items(column))] if found is None else np.isnan(found))
    return np.stack(missing, axis=1)


def take_rows(X: Any, rows: Array) -> Any:
    """Return these rows of a table."""
    frame = as_frame(X)
    return X[rows] if frame is None else frame[rows].to_native()
