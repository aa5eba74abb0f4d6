"""Read the weights of rows, and the groups that rows belong to."""

from typing import Any

import numpy as np
from sklearn.utils.validation import _check_sample_weight, _num_samples

from skvae._backend.tensors import Array
from skvae._data import containers


def weigh(sample_weight: Any, X: Any) -> Array | None:
    """Return the weight of each row of X, scaled to a mean of 1 over weights above 0; or None."""
    if sample_weight is None:
        return None
    weight = _check_sample_weight(
        containers.to_validate(sample_weight, is_rows=False), X, dtype=np.float64
    )
    wrong = ~((weight >= 0) & (weight < np.inf))  # NaN, too
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(
            f"sample_weight has the value {weight[row]:.6g} in row {row}. Weights say how much a "
            "row counts, and are finite and at least 0: to leave a row out, make its weight 0."
        )
    if not weight.any():
        raise ValueError(
            "sample_weight is zero in all rows, so that none is left. Make it more than 0 in those "
            "that count."
        )
    # Division by a power of 2 is exact, and keeps sums from overflow.
    weight = np.ldexp(weight, -np.frexp(weight.max())[1])
    return np.count_nonzero(weight) * weight / weight.sum()


def count_first(
    X: Any, sample_weight: Any, groups: Any, *, as_table: bool
) -> tuple[Any, Array | None, Array | None, Array | None]:
    """Find the rows of X that count in `fit`; return X, their indices, weights and groups.

    The indices are None if all rows of the returned X count. The weights are None if all are equal,
    and the groups if there are none. A table loses its rows of weight 0, since they must not decide
    what its columns hold.
    """
    weight, group = weigh(sample_weight, X), _number_groups(groups, X)
    if weight is None:
        return X, None, None, group
    rows: Array | None = np.flatnonzero(weight)
    assert rows is not None
    if len(rows) < 2:
        raise ValueError(
            "VAETransformer needs at least two rows. Got n_samples = 1 with a sample_weight "
            "above 0."
        )
    if group is not None:
        group = _drop_one_group(np.unique(group[rows], return_inverse=True)[1])
    if len(rows) == len(weight):
        rows = None
    else:
        weight = weight[rows]
        if as_table and containers.is_table(X):
            X, rows = containers.take_rows(X, rows), None
    return X, rows, None if np.ptp(weight) == 0 else weight, group


def _number_groups(groups: Any, X: Any) -> Array | None:
    """Return the number of each row's group, from 0; None without groups, or with one group only.

    A single group cannot be held out, so then each row stands for itself.
    """
    if groups is None:
        return None
    labels = _read_labels(groups)
    n_rows = _num_samples(X)
    if len(labels) != n_rows:
        raise ValueError(
            f"groups has {len(labels)} labels, but X has {n_rows} rows. Give one label for each "
            "row."
        )
    if labels.dtype.kind in "mM":  # tolist() may turn these into integers
        missing = np.isnat(labels)
    else:
        missing = np.fromiter(map(containers.is_missing, labels.tolist()), bool, len(labels))
    if missing.any():
        raise ValueError(
            f"groups has no value in row {int(missing.argmax())}. Each row belongs to a group: "
            "give a row that belongs with no other a value of its own."
        )
    return _drop_one_group(_number(labels))


def _drop_one_group(group: Array) -> Array | None:
    """Return the groups; None if there is only one."""
    return group if group.max(initial=0) > 0 else None


def _number(labels: Array) -> Array:
    """Number the labels: the index of each among the different labels, sorted if possible."""
    if labels.dtype != object:
        return np.unique(labels, return_inverse=True)[1]
    values, different = labels.tolist(), dict[Any, None]()
    for row, value in enumerate(values):
        try:
            different[value] = None
        except TypeError:
            raise ValueError(
                f"groups has a label of type {type(value).__name__} in row {row}, which cannot be "
                "compared with others. Make it a number, a string or a tuple."
            ) from None
    try:
        order = sorted(different)
    except (TypeError, ValueError):  # labels of several types keep the order of the rows
        order = list(different)
    numbers = {value: number for number, value in enumerate(order)}
    return np.array([numbers[value] for value in values])


def _read_labels(groups: Any) -> Array:
    """Return groups as an array of one label per row, (n_samples,)."""
    expected = "Expected one label for each row, of shape (n_samples,)"
    if isinstance(groups, str | bytes):
        raise ValueError(
            f"groups is the string {groups!r}. {expected}: pass the column of that name, "
            f"X[{groups!r}], not the name."
        )
    if hasattr(groups, "tocsr"):
        raise ValueError(
            f"groups is a sparse matrix. {expected}: pass groups.toarray().ravel() if it is one "
            "column or one row."
        )
    if isinstance(groups, list | tuple):
        listed = np.empty(len(groups), object)
        for row, label in enumerate(groups):  # one by one, or tuples would become a second axis
            listed[row] = label
        return listed
    labels: Any = np.asarray(containers.to_plain(groups))
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2:
        raise ValueError(
            f"groups has {labels.shape[1]} columns. {expected}: make one label of the values of a "
            "row, as list(map(tuple, groups.tolist())) does of an array, and "
            "groups.groupby(list(groups)).ngroup() of a pandas DataFrame."
        )
    if labels.ndim != 1:
        raise ValueError(
            f"groups is of type {type(groups).__name__} and shape {labels.shape}. {expected}, "
            "such as a list, an array or a column of a DataFrame."
        )
    return labels


def check_target(X: Any, y: Any) -> None:
    """Raise an error if `y` looks like validation rows, since `fit` would ignore them."""
    if y is None or y is X:
        return
    shapes: list[Any] = [getattr(value, "shape", ()) for value in (X, y)]
    if len(shapes[0]) != 2 or len(shapes[1]) != 2 or shapes[0][1] != shapes[1][1]:
        return
    names = [containers.column_names(value) for value in (X, y)]
    same_names = bool(names[0]) and names[0] == names[1]
    if shapes[0][0] != shapes[1][0] or same_names:
        raise ValueError(
            f"y has {shapes[1][1]} columns, as X has, and {shapes[1][0]} rows: it looks like rows "
            "to validate on, but fit ignores y. Rows to judge the epochs by are held out of X: "
            "see early_stopping, validation_fraction and groups."
        )
