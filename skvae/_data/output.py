"""Output: give rows back in the container of the data of `fit`, and fill holes of a table.

A fitted estimator keeps plain values that describe the container, so that files can hold them. They
name a package that narwhals knows, the columns, and the dtype of each column.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
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

    For pandas and pyarrow this is the word of the package, since narwhals has one name for "int64"
    and "Int64", and one for all dictionaries.
    """
    if not isinstance(column, nw.Series):
        return "object"
    backend, dtype = column.implementation, containers.own_dtype(column)
    if not (backend.is_pandas_like() or backend.is_pyarrow()):
        return str(column.dtype)
    word = str(getattr(dtype, "subtype", dtype) if str(dtype).startswith("Sparse") else dtype)
    first = [value for value in column.head(1).to_list() if not containers.is_missing(value)]
    try:
        made = _dtype_of(word, backend, first, False)
        _make_series(first, made, backend)
    except (TypeError, ValueError, NotImplementedError):
        return None
    return None if made is None else word


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
        known = list(enumerate(zip(columns, output["kinds"], words, strict=True)))
        columns = [c if i in categories else _rounded(c, *own) for i, (c, *own) in known]
        # A column of categories may have been read as numbers, which are no categories.
        words = [None if i not in categories and k == "O" else w for i, (_, k, w) in known]
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
    if word != "object" and (backend.is_pandas_like() or (word is None and column.dtype != object)):
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
    if backend.is_pandas_like():
        package = backend.to_native_namespace()
        if word == "category":
            return package.CategoricalDtype(categories, ordered)
        if not word.endswith("[pyarrow]"):
            return word
        of_arrow = _type_of_arrow(word.removesuffix("[pyarrow]"))
        return None if of_arrow is None else package.ArrowDtype(of_arrow)
    name = word.partition("(")[0]
    if backend.is_pyarrow() and not hasattr(nw, name):  # an older file has the word of narwhals
        return _type_of_arrow(word)
    return nw.Enum(list(categories)) if name == "Enum" else getattr(nw, name, None)


def _type_of_arrow(word: str) -> Any:
    """Return the type of pyarrow that has this word; None for types with other parameters."""
    import pyarrow

    dictionary = re.fullmatch(r"dictionary<values=(.+), indices=(\w+), ordered=([01])>", word)
    try:
        if dictionary is None:
            return pyarrow.type_for_alias(word)
        values, indices = map(pyarrow.type_for_alias, dictionary.groups()[:2])
    except ValueError:
        return None
    return pyarrow.dictionary(indices, values, ordered=dictionary[3] == "1")


def _make_series(values: Any, dtype: Any, backend: Any, index: Any = None) -> Any:
    """Make a series in its own package, of a dtype of this package or else of narwhals."""
    if backend.is_pandas_like():
        return backend.to_native_namespace().Series(values, dtype=dtype, index=index)
    if backend.is_pyarrow():
        package = backend.to_native_namespace()
        if isinstance(dtype, package.DataType):
            return package.chunked_array([package.array(values, dtype)])
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


def fill(X: Any, filled: Any, holes: Array, empty: Array, wanted: Array) -> list[Any]:
    """Return the `wanted` columns of X, with their `holes` filled.

    A hole gets the value of `filled`, or 0 in an `empty` column. All other values stay as they are.
    The columns are for `join`, in the container of `filled`. If
    X has this container, too, a column keeps its dtype if the dtype can hold the filled values.
    """
    index, pairs = (
        containers.index_of(filled),
        zip(containers.columns(X), containers.columns(filled), strict=True),
    )
    return [_fill(*c, holes[:, i], bool(empty[i]), index) for i, c in enumerate(pairs) if wanted[i]]


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
    if letter == "f":  # filled values are floats, and the sum of a decimal and a float is an error
        values = [float(value) if isinstance(value, Decimal) else value for value in values]
    if backend is None:
        return values
    for column in [before] * same + [after] * (not empty):
        known, own = containers.own_categories(column), containers.own_dtype(column)
        if (known is not None and not set(values) <= set(known)) or containers.is_decimal(column):
            continue
        try:
            if backend.is_pandas_like():
                return _make_series(values, object, backend, index).astype(own)
            if backend.is_pyarrow() or column.dtype != nw.Unknown:
                return _make_series(values, own if backend.is_pyarrow() else column.dtype, backend)
        except (TypeError, ValueError, OverflowError, ArithmeticError, NotImplementedError):
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
