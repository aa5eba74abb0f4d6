"""Output: give rows back in the container of the data of `fit`, and fill holes of a table.

A fitted estimator keeps plain values that describe the container, so that files can hold them. They
name a package that narwhals knows, the columns, and the dtype of each column.
"""

from collections.abc import Collection, Mapping, Sequence
from numbers import Real
from typing import Any

import narwhals.stable.v2 as nw
import numpy as np

from skvae._backend.tensors import Array
from skvae._data import containers


def describe_output(
    X: Any, dtype: np.dtype[Any], *, as_table: bool = False, categories: Collection[int] = ()
) -> dict[str, Any]:
    """Describe how rows go back to the user: in the dtype and container of the data of `fit`.

    With `as_table` each column goes back in the dtype that it had. An array goes back in its dtype,
    too, if all of its columns are `categories`. All values are plain, so files can hold them.
    """
    frame = containers.as_frame(X)
    backend = nw.Implementation.UNKNOWN if frame is None else frame.implementation
    framed = frame is not None and backend is not nw.Implementation.UNKNOWN
    output = {
        "dtype": "float32" if dtype.name == "float32" else "float64",
        "container": backend.value if framed else None,
        "columns": containers.column_names(X) if framed else None,
    }
    own = getattr(X, "dtype", None)
    if as_table and (framed or getattr(own, "kind", "f") in "OUS"):
        known = list(containers.columns(X))
        output["dtype"] = "object"
        output["kinds"] = list(map(containers.kind, known))
        output["dtypes"] = list(map(_word_for, known))
        output["ordered"] = [
            bool(getattr(containers.own_dtype(c), "ordered", False)) for c in known
        ]
    elif categories and len(categories) == X.shape[1]:
        output["dtype"] = str(own)
    return output


def _word_for(column: containers.Column) -> str | None:
    """Return the word from which `_dtype_of` makes the dtype of a column; None if it makes none.

    For pandas this is its own word, since narwhals has one name for "int64" and "Int64".
    """
    if not isinstance(column, nw.Series):
        return "object"
    if not column.implementation.is_pandas_like():
        return str(column.dtype)
    dtype = containers.own_dtype(column)
    word = str(getattr(dtype, "subtype", dtype) if str(dtype).startswith("Sparse") else dtype)
    try:
        column.implementation.to_native_namespace().Series([], dtype=word)
    except (TypeError, ValueError, NotImplementedError):
        return None
    return word


def give_back(X: Array, output: Mapping[str, Any], index: Any = None) -> Any:
    """Return rows X as `describe_output` describes; `index` is for a pandas frame, if any."""
    X = X.astype(output["dtype"], copy=False)
    if output["container"] is None:
        return X
    return _make_frame(X, output["columns"], _backend(output["container"]), index)


def give_back_columns(
    columns: list[Array],
    output: Mapping[str, Any],
    categories: Mapping[int, Any],
    index: Any = None,
    container: str | None = None,
) -> Any:
    """Do as `give_back`, for columns that may hold categories, in the dtypes of `fit`."""
    words: list[str | None] = output.get("dtypes", [])
    if "kinds" in output:
        known = enumerate(zip(columns, output["kinds"], words, strict=True))
        columns = [c if i in categories else _rounded(c, *own) for i, (c, *own) in known]
    if output["container"] is None:
        return np.stack([column.astype(output["dtype"]) for column in columns], axis=1)
    backend = _backend(container or output["container"])
    if backend is not _backend(output["container"]):
        words = [None] * len(columns)
    series = []
    for i, (values, word) in enumerate(zip(columns, words, strict=True)):
        dtype = _dtype_of(word, backend, categories.get(i, ()), output["ordered"][i])
        series.append(_make_series(_plain(values, word, backend), dtype, backend, index))
    return _make_frame(series, output["columns"], backend, index)


def _plain(column: Array, word: str | None, backend: Any) -> Any:
    """Return the values of a column as `_make_series` takes them, for the word of a dtype."""
    if word is None or (word != "object" and backend.is_pandas_like()):
        return column
    has_holes = column.dtype.kind == "f" and np.isnan(column).any()
    has_holes = has_holes and not backend.is_pandas_like()
    return [None if has_holes and v != v else v for v in column.tolist()]


def _backend(container: Any) -> Any:
    return nw.Implementation.from_backend(container)


def _dtype_of(word: str | None, backend: Any, categories: Collection[Any], ordered: bool) -> Any:
    """Return the dtype of a word of `_word_for`; None leaves it to the values."""
    if word is None or word.startswith(("Decimal", "Unknown")):
        return None
    if not backend.is_pandas_like():
        name = word.partition("(")[0]
        return nw.Enum(list(categories)) if name == "Enum" else getattr(nw, name, None)
    if word != "category":
        return word
    return backend.to_native_namespace().CategoricalDtype(categories, ordered)


def _make_series(values: Any, dtype: Any, backend: Any, index: Any = None) -> Any:
    """Make a series in its own package, of a dtype of pandas or else of narwhals."""
    if backend.is_pandas_like():
        return backend.to_native_namespace().Series(values, dtype=dtype, index=index)
    if dtype != nw.Categorical:
        return nw.new_series("", values, dtype, backend=backend).to_native()
    # Only a cast makes categories in pyarrow.
    series = nw.new_series("", values, None, backend=backend)
    return (series.cast(dtype) if series.dtype == nw.String else series).to_native()


def _make_frame(data: Any, names: Sequence[Any], backend: Any, index: Any = None) -> Any:
    """Make a frame of an array (n, D), or of D series of its own package."""
    by_name = isinstance(data, list)
    if backend.is_pandas_like():
        # narwhals makes no index, and only strings as names.
        frames = backend.to_native_namespace()
        is_multi = names and all(isinstance(name, tuple) for name in names)
        columns = frames.MultiIndex.from_tuples(names) if is_multi else names
        series = {str(i): column for i, column in enumerate(data)} if by_name else data
        frame = frames.DataFrame(series, index=index, copy=by_name)
        return frame.set_axis(columns, axis=1)
    texts = list(map(str, names))
    if by_name:
        return nw.from_dict(dict(zip(texts, data, strict=True)), backend=backend).to_native()
    return nw.from_numpy(data, texts, backend=backend).to_native()


def fill(X: Any, filled: Any, holes: Array, empty: Array) -> list[Any]:
    """Return the columns of X with the values of `filled` in their `holes`, or 0 if `empty`.

    All other values stay as they are. The columns are for `join`, in the container of `filled`. If
    X has this container, too, a column keeps its dtype if the dtype can hold the filled values.
    """
    index, pairs = (
        containers.index_of(filled),
        zip(containers.columns(X), containers.columns(filled), strict=True),
    )
    return [_fill(*c, holes[:, i], bool(empty[i]), index) for i, c in enumerate(pairs)]


def _fill(
    before: containers.Column, after: containers.Column, holes: Array, empty: bool, index: Any
) -> Any:
    backend = getattr(after, "implementation", None)
    same = backend is not None and getattr(before, "implementation", None) is backend
    if same and not holes.any():
        return before.to_native()
    # In a frame of another package, an empty column gets plain zeros.
    letter = "O" if empty and backend is not None and not same else containers.kind(before)
    values = containers.items(before)
    new = [0] * len(values) if empty else containers.items(after)
    for row in np.flatnonzero(holes):
        value: Any = new[row]
        # Filled values become bools or integers, as the others.
        if isinstance(value, Real | np.bool_) and letter in "bi":
            value = bool(float(value) >= 0.5) if letter == "b" else round(float(value))
        values[row] = value
    if backend is None:
        return values
    for column in [before] * same + [after] * (not empty):
        known, dtype = containers.own_categories(column), column.dtype
        if known is not None and not set(values) <= set(known):
            continue
        try:
            if backend.is_pandas_like():
                return _make_series(values, object, backend, index).astype(
                    containers.own_dtype(column)
                )
            if dtype != nw.Unknown:
                return _make_series(values, dtype, backend)
        except (TypeError, ValueError, OverflowError, ArithmeticError):
            continue
    return _make_series(values, None, backend, index)


def join(columns: Sequence[Any], names: Sequence[Any], like: Any) -> Any:
    """Make a table of columns of `fill`, and of arrays, in the container of the table `like`."""
    frame = containers.as_frame(like)
    if frame is None:
        result = np.empty((like.shape[0], len(columns)), like.dtype)
        for i, column in enumerate(columns):
            result[:, i] = column
        return result
    backend, index = frame.implementation, containers.index_of(like)
    series = [
        _make_series(column, None, backend, index) if isinstance(column, np.ndarray) else column
        for column in columns
    ]
    return _make_frame(series, names, backend, index)


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
