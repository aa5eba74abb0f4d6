"""Read rows of X as arrays: some of them, or all in blocks, from dense or sparse data."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from skvae._backend.tensors import Array

READ_AT_ONCE = 1 << 20


class Subset:
    """Some rows of X. A row is copied only when it is read, since X may be a memory map."""

    def __init__(self, X: Array, rows: Array) -> None:
        self.X, self.rows, self.dtype = X, rows, X.dtype
        self.shape = len(rows), X.shape[1]

    def __getitem__(self, rows: Any) -> Array:
        return self.X[self.rows[rows]]


def slices(X: Array, n_features: int) -> Iterator[Array]:
    """Yield `X` in dense blocks of rows; a block gives about a million values of the features."""
    n_rows = max(1, READ_AT_ONCE // n_features)
    for start in range(0, X.shape[0], n_rows):
        yield dense(X[start : start + n_rows])


def dense(rows: Any) -> Array:
    """Return rows of X, which may be sparse, as a dense array."""
    return rows.toarray() if hasattr(rows, "toarray") else rows


def float_blocks(X: Array, n_features: int) -> Iterator[Array]:
    """Yield `X` in blocks of rows, as float64."""
    for block in slices(X, n_features):
        # A contiguous block is summed in one order, which does not depend on the layout of X.
        yield np.ascontiguousarray(block, dtype=np.float64)


# Moves values that are outside of a likelihood's support only by rounding into the support.
Support = Callable[[Array], Array]


def resolution_of(dtype: Any) -> float:
    """Relative difference below which numbers are equal up to rounding, of the dtype or of sums."""
    dtype = np.dtype(dtype)
    epsilon = np.finfo(dtype).eps if dtype.kind == "f" else 0.0
    return float(max(2 * epsilon, 64 * np.finfo(np.float64).eps))


def rounding_of(dtype: Any) -> float:
    """Half of the relative difference that rounding of a sum in this dtype may make."""
    epsilon = np.finfo(dtype if np.dtype(dtype).kind == "f" else np.float64).eps
    return float(min(4 * epsilon, resolution_of(dtype) / 2))


def count_incomplete(data: Any, empty: Array) -> int:
    """Count the rows with missing values, without the columns that are `empty` in fit."""
    if data.dtype.kind != "f":
        return 0
    if hasattr(data, "tocsr"):
        entries = data.tocoo()
        return len(np.unique(entries.row[np.isnan(entries.data) & ~empty[entries.col]]))
    # The minimum of a block is NaN if any value is, and is faster than a search for every NaN.
    blocks = (b for b in slices(data, data.shape[1]) if np.isnan(b.min()))
    return sum(int(np.isnan(block[:, ~empty]).any(axis=1).sum()) for block in blocks)
