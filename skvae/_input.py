"""What comes into a model: X as numbers, the weights of its rows, and what both say of columns.

Numbers are codes for categories, and NaN for missing values; features, as many for a category as
it has values, are made of them block by block, by the likelihood.
"""

import functools

import numpy as np
from sklearn.utils import _safe_indexing, check_array, check_consistent_length, column_or_1d
from sklearn.utils.validation import _check_sample_weight, validate_data

from skvae import _arrays, _frames, _tables


def read(estimator, X, likelihood, categories, *, reset, **checks):
    """X as numbers, in any order in memory: codes for categories, and NaN for missing values."""
    checks |= {"ensure_all_finite": "allow-nan", "accept_sparse": "csr"}
    if (categories and _frames.is_table(X)) or _frames.has_objects(X):
        validate_data(estimator, X, reset=reset, skip_check_array=True)
        codes = _tables.encode(X, categories, likelihood)
        return check_array(codes, estimator=estimator, input_name="X", **checks)
    return validate_data(estimator, X, dtype=_frames.float_dtypes(X), reset=reset, **checks)


def read_first(estimator, X, likelihood, categories, rows):
    """What `fit` reads of X: likelihood, rows that count, and the attributes that they decide.

    The likelihood then knows its categories: those of an earlier fit, if there are `categories`.
    """
    reset = categories is None
    if reset:
        categories = _tables.learn_categories(X, likelihood)
    data = read(estimator, X, likelihood, categories, reset=reset, ensure_min_samples=2)
    if rows is not None:
        data = _arrays.Subset(data, rows)
    likelihood = likelihood.with_categories({i: len(c) for i, c in categories.items()})
    return likelihood, data, {**_names_seen(estimator), "_categories": categories}


def describe(data, likelihood, names, weight, held_out, *, may_be_empty=False):
    """Moments of the features of the rows that are trained on, and whether any value is missing.

    `held_out` are the places of the other rows.
    """
    labels = _arrays.Labels(names)
    support = functools.partial(likelihood.check_support, labels=labels)
    labels = labels._replace(places=likelihood.columns_of(data.shape[1]))
    if not len(held_out):
        return _arrays.describe_columns(data, support, labels, weight, may_be_empty=may_be_empty)
    training = np.delete(np.arange(data.shape[0]), held_out)
    own = None if weight is None else weight[training]
    moments = _arrays.describe_columns(
        _arrays.Subset(data, training), support, labels, own, may_be_empty=may_be_empty
    )
    others = _arrays.dense(data[np.sort(held_out)])
    return moments._replace(has_holes=moments.has_holes or bool(np.isnan(others).any()))


def _names_seen(estimator):
    """What validation has set on `estimator`."""
    names = {"n_features_in_", "feature_names_in_"} & vars(estimator).keys()
    return {name: getattr(estimator, name) for name in names}


def count_incomplete(data, X, categories):
    """How many rows of X have missing values; unknown categories, NaN in `data`, are none."""
    if data.dtype.kind != "f":
        return 0
    if hasattr(data, "tocsr"):
        return len(np.unique(data.tocoo().row[np.isnan(data.data)]))
    # The least of some values is NaN if one of them is, and is found faster than each NaN.
    blocks = (b for b in _arrays.slices(data, data.shape[1]) if np.isnan(b.min()))
    n_incomplete = sum(int(np.isnan(block).any(axis=1).sum()) for block in blocks)
    if n_incomplete and categories and _frames.is_table(X):
        n_incomplete = int(_frames.holes(X).any(axis=1).sum())
    return n_incomplete


def take(data, n, seed, likelihood):
    """The features of `n` random rows, all different if there are as many."""
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(data.shape[0], n, replace=n > data.shape[0]))
    return likelihood.check_support(_arrays.dense(data[rows]))


# --- weights ------------------------------------------------------------------------------


def weigh(sample_weight, X):
    """How much each row of X counts, of mean 1 over those above 0; None: all the same."""
    if sample_weight is None:
        return None
    weight = _check_sample_weight(_frames.to_validate(sample_weight), X, dtype=np.float64)
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
    # By a power of 2, which rounds nothing: now no sum overflows.
    weight = np.ldexp(weight, -np.frexp(weight.max())[1])
    return np.count_nonzero(weight) * weight / weight.sum()


def count_first(X, sample_weight, groups, *, as_table):
    """What rows of X count in `fit`: X, their places in it, their weights and their groups.

    Places are None where all rows count, weights where they count the same, groups where there
    are none. Of a table only rows that count are given, since others say nothing of what its
    columns are.
    """
    weight, group = weigh(sample_weight, X), _number_groups(groups, X)
    if weight is None:
        return X, None, None, group
    rows = np.flatnonzero(weight)
    if len(rows) < 2:
        raise ValueError(
            "VAETransformer needs at least two rows. Got n_samples = 1 with a sample_weight "
            "above 0."
        )
    if group is not None:
        group = np.unique(group[rows], return_inverse=True)[1]
    if len(rows) == len(weight):
        rows = None
    else:
        weight = weight[rows]
        if as_table and _frames.is_table(X):
            X, rows = _safe_indexing(X, rows), None
    return X, rows, None if np.ptp(weight) == 0 else weight, group


def _number_groups(groups, X):
    """The number of the group of each row, from 0; None without groups."""
    if groups is None:
        return None
    groups = column_or_1d(_frames.to_validate(groups), dtype=None)
    check_consistent_length(X, groups)
    if any(map(_frames.is_missing, groups.tolist())):
        row = next(i for i, value in enumerate(groups.tolist()) if _frames.is_missing(value))
        raise ValueError(
            f"groups has no value in row {row}. Each row belongs to a group: give a row that "
            "belongs with no other a value of its own."
        )
    return np.unique(groups, return_inverse=True)[1]


def check_target(X, y):
    """Refuse a `y` that looks like rows to validate on, which nothing would look at."""
    if y is None or y is X:
        return
    shapes = [getattr(value, "shape", ()) for value in (X, y)]
    if len(shapes[0]) != 2 or len(shapes[1]) != 2 or shapes[0][1] != shapes[1][1]:
        return
    names = [list(getattr(value, "columns", [])) for value in (X, y)]
    same_names = bool(names[0]) and names[0] == names[1]
    if shapes[0][0] != shapes[1][0] or same_names:
        raise ValueError(
            f"y has {shapes[1][1]} columns, as X has, and {shapes[1][0]} rows: it looks like rows "
            "to validate on, but fit ignores y. Rows to judge the epochs by are held out of X: "
            "see early_stopping, validation_fraction and groups."
        )
