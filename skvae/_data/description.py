"""Describe the columns of X before training, and warn of suspicious ones."""

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from skvae._backend.tensors import Array
from skvae._backend.warn import warn
from skvae._data import arrays, containers, sentinels, statistics, words
from skvae._data.units import FARTHEST
from skvae._data.words import listed, n_rows_in_words

# Most rows among which copies are looked for, and the least number of different rows that can show
# that a column has real values.
MOST_COMPARED, LEAST_DIFFERENT = 100_000, 20


def describe(
    data: Any,
    likelihood: Any,
    attributes: Mapping[str, Any],
    weight: Array | None,
    held_out: Array,
    *,
    reset: bool,
    partial: bool = False,
    grouped: bool = False,
) -> tuple[statistics.Moments, dict[str, Any]]:
    """Return the moments of the features of the training rows, and facts about the columns.

    `held_out` are the indices of the other rows. All rows decide whether values are missing.
    `reset` says that this is the first data of the model. Then, if a held-out value is out of reach
    of the units of the training rows, its feature gets the moments of all rows, so that the value
    has the effect that it would have in a training row. `partial` says that later blocks follow, so
    the first one must have a value in each column. `grouped` says that rows which belong together
    are held out together.
    """
    labels = words.Labels(attributes.get("feature_names_in_"))
    columns = likelihood.columns_of(data.shape[1])
    support = functools.partial(likelihood.check_support, labels=labels)
    describe_rows = functools.partial(
        statistics.describe_columns, support=support, labels=labels._replace(indices=columns)
    )
    training, others = np.delete(np.arange(data.shape[0]), held_out), np.sort(held_out)
    if not len(held_out):
        moments = describe_rows(data, weight=weight)
    else:
        own_weight = None if weight is None else weight[training]
        moments = describe_rows(arrays.Subset(data, training), weight=own_weight)
        extremes = statistics.find_extremes(arrays.Subset(data, others), support, len(columns))
        moments = moments._replace(suspects=_add_suspects(moments, extremes))
        far = _is_out_of_reach(likelihood, moments, extremes)
        if reset and far.any():
            moments = _replace_where(far, moments, describe_rows(data, weight=weight))
    n_values, n_others = np.zeros((2, data.shape[1]), np.int64)
    n_values[columns] = moments.n_values
    if len(held_out):
        n_others[columns] = ~np.isnan(extremes[0])
    if len(held_out) and not moments.has_holes:
        n_incomplete = arrays.count_incomplete(arrays.Subset(data, others), n_values == 0)
        moments = moments._replace(has_holes=n_incomplete > 0)
    if reset:
        _tell_of_empty(n_values, n_others, labels, partial)
        unresolved = dict.fromkeys(columns[moments.unresolved].tolist())
        _warn_of_unresolved(unresolved, labels, data.dtype)
        _warn_of_sentinels(data, moments, support, columns, labels, attributes["_categories"])
        if not grouped:
            _warn_of_copies(data, held_out)
    return moments, {"n_values": n_values, "resolution": arrays.resolution_of(data.dtype)}


def _is_out_of_reach(
    likelihood: Any, moments: statistics.Moments, extremes: Sequence[Array]
) -> Array:
    """Whether the lowest or the highest value of a feature is too far from its units, (D,)."""
    location, scale = likelihood.units(moments)
    with np.errstate(over="ignore"):  # values such as 1e308 may overflow
        distance = np.fmax(*(np.abs(value - location) for value in extremes))
        return (scale > 0) & (distance > FARTHEST * scale)


def _replace_where(
    chosen: Array, moments: statistics.Moments, others: statistics.Moments
) -> statistics.Moments:
    """Return moments in which the chosen features have the moments of `others`."""
    names = "mean", "std", "n_values", "n_various"
    pairs = {name: (getattr(others, name), getattr(moments, name)) for name in names}
    return moments._replace(**{name: np.where(chosen, *pair) for name, pair in pairs.items()})


def _add_suspects(moments: statistics.Moments, extremes: Sequence[Array]) -> Array:
    """Add suspects among the lowest and highest values of other rows to the suspects of some rows.

    A value is a suspect if it is more than n standard deviations from the mean of n rows: the sum
    of the distances of these rows from their mean is never larger.
    """
    assert moments.suspects is not None
    suspects = moments.suspects.copy()
    for side, (extreme, value) in enumerate(zip((np.fmin, np.fmax), extremes, strict=True)):
        with np.errstate(over="ignore"):  # values such as 1e308 may overflow
            far = np.abs(value - moments.mean) > moments.n_values * moments.std
        far &= moments.std > 0
        suspects[side] = np.where(far, extreme(suspects[side], value), suspects[side])
    return suspects


def _tell_of_empty(n_values: Array, n_others: Array, labels: words.Labels, partial: bool) -> None:
    """Warn of columns without any value; raise an error if later blocks may have values there.

    `n_others` is above 0 for columns that have values in the held-out rows.
    """
    empty = np.flatnonzero(n_values == 0)
    if not len(empty):
        return
    where = " in the rows that are trained on" if n_others[empty].any() else ""
    what = f"X has no value in {listed(map(labels.of, empty))}: all are missing{where}."
    if partial:
        raise ValueError(
            f"{what} The first block of partial_fit decides the units of each column, so the model "
            "could not learn values that later blocks have there. Begin with rows that have "
            "values in each column, or drop the column."
        )
    warn(
        f"{what} The model leaves such columns out of its density and gives them back as missing. "
        "Drop them, or fit on rows that have values there."
    )


def warn_of_long_numbers(X: Any, rows: Array | None, categories: Collection[int]) -> None:
    """Warn of columns of a frame with different whole numbers that float64 rounds to one."""
    columns = []
    for i, column in enumerate(containers.columns(X)):
        ends = None if i in categories else containers.long_range(column, rows)
        if ends is None:
            continue
        size = max(map(abs, ends))
        # If they differ by more than rounding, the moments of the column show it.
        if size > 2**53 and 0 < ends[1] - ends[0] <= 2 * arrays.rounding_of(np.float64) * size:
            columns.append(i)
    _warn_of_unresolved(columns, words.Labels(containers.names(X)), np.float64)


def _warn_of_unresolved(columns: Collection[int], labels: words.Labels, dtype: Any) -> None:
    """Warn of columns that vary, but by so little that they are taken as constant."""
    if columns:
        share = 2 * arrays.resolution_of(dtype)
        warn(
            f"X has values in {listed(map(labels.of, columns))} that differ by less than "
            f"{share:.1g} of their size: the model takes such a column as constant. Subtract an "
            "offset from it, such as its least value, so that the differences count. If they are "
            "rounding, drop the column."
        )


def _warn_of_sentinels(
    data: Any,
    moments: statistics.Moments,
    support: arrays.Support,
    columns: Array,
    labels: words.Labels,
    categories: Collection[int],
) -> None:
    """Warn of columns in which one value is far beyond all others."""
    assert moments.suspects is not None
    suspects = np.where(np.isin(columns, list(categories)), np.nan, moments.suspects)
    found = sentinels.find_sentinels(data, suspects, support)
    if found:
        words = [
            f"{value:.10g} in {labels.of(columns[feature])} ({n_rows_in_words(n)})"
            for feature, (value, n) in found.items()
        ]
        warn(
            "X has values that are farther from the others in their column than all of these "
            f"together are from their mean: {listed(words)}. To the model, the others hardly "
            "differ. If the value stands for a missing one, make it NaN; if it is an error, "
            "correct it; if it is real, transform the column, by its logarithm, say."
        )


def _warn_of_copies(data: Any, held_out: Array) -> None:
    """Warn if most held-out rows are copies of training rows, and not by chance."""
    sparse = hasattr(getattr(data, "X", data), "tocsr")
    if not len(held_out) or data.shape[0] > MOST_COMPARED or data.dtype.kind != "f" or sparse:
        return
    blocks = map(np.ascontiguousarray, arrays.slices(data, data.shape[1]))
    # Keys of 8 bytes take little memory, however long the rows are.
    keys = np.array([hash(row.tobytes()) for block in blocks for row in block])
    n_copies = int(np.isin(keys[held_out], np.delete(keys, held_out)).sum())
    if n_copies > len(held_out) / 2 and _is_real(data[np.unique(keys, return_index=True)[1]]):
        warn(
            f"{n_copies} of the {len(held_out)} rows held out are copies of rows that are trained "
            "on. A model that learns rows by heart looks good by them, and is bad for new rows. "
            "Give copies of a row the same label in groups, such as the number of the row they "
            "were drawn from: np.unique(X, axis=0, return_inverse=True)[1] finds it in an array "
            "without missing values. Or give each row once, with sample_weight for how often it "
            "comes."
        )


def _is_real(rows: Array) -> bool:
    """Whether a column of real values has a different value in almost every one of these rows.

    Rows of whole numbers, categories or few levels may be equal by chance. The same is true if only
    one column varies.
    """
    ordered = np.sort(rows, axis=0)
    with np.errstate(invalid="ignore"):  # NaN in float16
        n_values = 1 + (ordered[1:] > ordered[:-1]).sum(axis=0)
        fractional = (np.isfinite(rows) & (rows != np.rint(rows))).mean(axis=0) > 0.5
    own = n_values >= max(LEAST_DIFFERENT, 0.9 * len(rows))
    return bool((own & fractional).any() and (n_values > 1).sum() > 1)
