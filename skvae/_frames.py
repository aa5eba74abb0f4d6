"""Containers: what rows come in, and what they go back in.

Tables come as numpy arrays, lists, torch tensors, pandas or polars DataFrames. They leave as
arrays, or as a frame like that of `fit`, of whose kind plain values are kept.
"""

import importlib
from datetime import date, timedelta

import numpy as np
import torch


def to_validate(X):
    """X as scikit-learn can validate it: tensors leave torch, dates are refused."""
    if isinstance(X, torch.Tensor):
        X = X.detach().cpu()
        return (X.float() if X.dtype == torch.bfloat16 else X).numpy()
    if isinstance(X, list | tuple):
        X = np.asarray(X)
    for column, dtype in enumerate(dtypes(X)):
        if getattr(dtype, "kind", "f") in "mM" or str(dtype).startswith(("Date", "Duration")):
            raise _no_number(f"dtype {dtype} in column {column}")
    if any(getattr(dtype, "kind", "") == "O" for dtype in dtypes(X)):
        for value in np.ravel(X):
            if isinstance(value, np.datetime64 | np.timedelta64 | date | timedelta):
                raise _no_number(repr(value))
    return X


def _no_number(what):
    return ValueError(
        f"VAETransformer expects numbers. Got {what}: turn dates and durations into numbers "
        "first, such as days since a reference."
    )


def dtypes(X):
    """The dtypes of the columns of a frame, or the one of an array."""
    return list(X.dtypes) if hasattr(X, "columns") else [getattr(X, "dtype", None)]


def float_dtypes(X):
    """What `check_array` is to make of X: float32 stays, all else becomes float64.

    Arrays of other numbers stay too, and become float64 block by block, where they are used:
    a file of images takes an eighth of what its floats would. `check_array` does not see that
    the columns of a polars frame are of float32.
    """
    if {str(dtype) for dtype in dtypes(X)} == {"Float32"}:
        return np.float32
    if isinstance(X, np.ndarray) and X.dtype.kind in "iubf":
        return [np.float64, np.float32, X.dtype]
    return [np.float64, np.float32]


def describe(X, dtype):
    """How rows go back to the user: in the dtype and container of the data of `fit`."""
    package = type(X).__module__.partition(".")[0]
    framed = package in ("pandas", "polars") and hasattr(X, "columns")
    return {
        "dtype": "float32" if dtype.name == "float32" else "float64",
        "container": package if framed else None,
        "columns": list(X.columns) if framed else None,
    }


def give_back(X, output, index=None):
    """Rows X as `describe` has said; `index` is that of a pandas frame, if there is one."""
    X = X.astype(output["dtype"], copy=False)
    if output["container"] is None:
        return X
    frames, columns = importlib.import_module(output["container"]), output["columns"]
    if output["container"] == "polars":
        return frames.DataFrame(X, schema=columns)
    if all(isinstance(column, tuple) for column in columns):
        columns = frames.MultiIndex.from_tuples(columns)
    return frames.DataFrame(X, columns=columns, index=index, copy=False)
