"""Compute moments of columns of any magnitude, in blocks of rows."""

from typing import Any, NamedTuple

import numpy as np

from skvae._backend.tensors import Array
from skvae._data import arrays
from skvae._data.arrays import (
    Support,
    dense,
    float_blocks,
    resolution_of,
    rounding_of,
)
from skvae._data.sentinels import stand_out
from skvae._data.words import UNNAMED, Labels


class Moments(NamedTuple):
    """The facts about the columns that a likelihood needs: arrays of shape (n_features,)."""

    mean: Array  # float64; the constant itself where the column is constant
    std: Array  # float64; 0 where the column is constant
    has_holes: bool = False  # whether values are missing, in a column that has some
    n_values: Array | None = None  # rows in which the column has a value; None: all
    # The lowest and the highest value, (2, n_features), if it is so far from the mean that it may
    # stand for a missing value; NaN otherwise.
    suspects: Array | None = None
    # Rows with another value than the one that more than half of the rows have; None: not known.
    n_various: Array | None = None
    # Whether the column is taken as constant, although its values differ by more than rounding, or
    # are different whole numbers that float64 rounds to one; None: not known.
    unresolved: Array | None = None

    @property
    def is_empty(self) -> Array:
        """Whether the column has no value at all, (n_features,); its mean is then 1."""
        return np.zeros(len(self.mean), bool) if self.n_values is None else self.n_values == 0


# Most rows of the sample that shows which value more than half of the rows may have.
MEDIAN_ROWS = 10_000


def find_extremes(X: Any, support: Support, n_features: int) -> tuple[Array, Array]:
    """Return the lowest and the highest value of each feature, (D,), read in blocks.

    They are NaN for a feature without values. As float64, a longdouble may become infinity.
    """
    low = high = np.full(n_features, np.nan)
    for block in map(support, arrays.slices(X, n_features)):
        low = np.fmin(low, np.fmin.reduce(block, axis=0))
        high = np.fmax(high, np.fmax.reduce(block, axis=0))
    with np.errstate(over="ignore"):
        return np.asarray(low, np.float64), np.asarray(high, np.float64)


def describe_columns(
    X: Any,
    support: Support = lambda block: block,
    labels: Labels = UNNAMED,
    weight: Array | None = None,
) -> Moments:
    """Compute mean and standard deviation of each column, of any magnitude, in blocks of rows.

    The columns are the features that `support` makes of X; `labels` names them. NaN are missing
    values. A column is constant if its range is below the `resolution_of` X. `weight` (n_samples,),
    above 0, is how much each row counts.

    A column without any value gets a mean of 1, which every likelihood supports, and a standard
    deviation of 0.
    """
    n_features = X.shape[1] if labels.indices is None else len(labels.indices)
    low, high = find_extremes(X, support, n_features)
    empty, infinite = np.isnan(low), np.isinf(low) | np.isinf(high)
    if empty.all():
        raise ValueError(
            "Input X has only missing values. A model needs some values to learn from."
        )
    low, high = np.where(empty, 1.0, low), np.where(empty, 1.0, high)
    if infinite.any():  # possible under assume_finite=True, or after the cast to float64
        raise ValueError(f"Input X contains infinity in {labels.of(int(np.argmax(infinite)))}.")
    # Halves are taken first, since the range of the largest floats overflows.
    centre, radius = low / 2 + high / 2, high / 2 - low / 2
    size = np.maximum(abs(low), abs(high))
    constant = radius <= resolution_of(X.dtype) * size
    # Values are moved to [-1, 1], so that their squares do not overflow or vanish.
    unit = np.where(constant, 1.0, radius)
    total = square = n_there = np.zeros(n_features)
    plain_total = plain_square = np.zeros(n_features)  # without weights
    n_values, n_equal = np.zeros(n_features, np.int64), np.zeros((2, n_features), np.int64)
    # If more than half of the rows have one value, it is the median.
    common, n_common = _find_common(X, support, n_features), np.zeros(n_features, np.int64)
    start, has_holes = 0, False
    for block in map(support, float_blocks(X, n_features)):
        if np.isnan(common[~empty]).any():  # the sample had no value of a rarely filled column
            common = np.where(np.isnan(common), _median(block[:MEDIAN_ROWS]), common)
        n_common += (block == common).sum(axis=0)
        moved = (block - centre) / unit
        there = ~np.isnan(moved)
        has_holes = has_holes or not (there | empty).all()
        n_values += there.sum(axis=0)
        n_equal += [(block == low).sum(axis=0), (block == high).sum(axis=0)]
        moved[~there] = 0.0
        counted = moved
        if weight is not None:
            plain_total = plain_total + moved.sum(axis=0)
            plain_square = plain_square + np.einsum("nd,nd->d", moved, moved)
            own = weight[start : start + len(block), None]
            counted, there = own * moved, own * there
        n_there = n_there + there.sum(axis=0)
        total = total + counted.sum(axis=0)
        square = square + np.einsum("nd,nd->d", moved, counted)
        start += len(block)
    n_there = np.where(empty, 1.0, n_there)
    mean = total / n_there
    std = unit * np.sqrt(np.maximum(square / n_there - mean**2, 0.0))
    if weight is None:
        plain_total, plain_square = total, square
    suspects = np.stack([low, high])
    suspects[:, constant] = np.nan
    suspects[~stand_out(plain_total, plain_square, n_values, n_equal)] = np.nan
    centre = np.where(constant, low, centre + unit * mean)
    std = np.where(constant, 0.0, std)
    unresolved = constant & (radius > rounding_of(X.dtype) * size)
    unresolved |= _is_one_as_float(X, support, constant & (size > 2**53))
    return Moments(centre, std, has_holes, n_values, suspects, n_values - n_common, unresolved)


def _is_one_as_float(X: Array, support: Support, chosen: Array) -> Array:
    """Whether a `chosen` feature has different whole numbers that float64 rounds to one, (D,)."""
    differs = np.zeros(len(chosen), bool)
    if X.dtype.kind not in "iu" or not chosen.any():
        return differs
    first = support(dense(X[:1]))
    for block in map(support, arrays.slices(X, len(chosen))):
        differs |= (block != first).any(axis=0)
    return chosen & differs


def _find_common(X: Array, support: Support, n_features: int) -> Array:
    """Return the lower median of each feature in a sample of rows, (D,); NaN without values.

    The sample is one random row of each stretch of neighbouring rows. The first rows would be a bad
    sample of a sorted table, and every 24th row of a table that repeats itself after 24 rows.
    """
    n = min(X.shape[0], MEDIAN_ROWS, max(1, arrays.READ_AT_ONCE // n_features))
    stretches = np.arange(n + 1) * X.shape[0] // n
    rows = np.random.default_rng(0).integers(stretches[:-1], stretches[1:])
    return _median(support(np.asarray(dense(X[rows]), dtype=np.float64)))


def _median(rows: Array) -> Array:
    """Return the lower median of the values of each column, (D,); NaN without values."""
    ordered = np.sort(rows, axis=0)  # NaN last
    last = (~np.isnan(ordered)).sum(axis=0) - 1
    return np.take_along_axis(ordered, np.maximum(last, 0)[None] // 2, axis=0)[0]
