"""What comes into a model: X as numbers, the weights of its rows, and what both say of columns.

Numbers are codes for categories, and NaN for missing values; features, as many for a category as
it has values, are made of them block by block, by the likelihood.
"""

import functools
import warnings

import numpy as np
from sklearn.utils import _safe_indexing, check_array
from sklearn.utils.validation import _check_sample_weight, validate_data

from skvae import _arrays, _frames, _tables


def read(estimator, X, likelihood, categories, *, reset, accept_far=False, **checks):
    """X as numbers, in any order in memory: codes for categories, and NaN for missing values.

    The code of a category that `fit` has not seen is `_tables.UNSEEN`. Infinity is an error that
    names the column, unless `accept_far`.
    """
    checks |= {"ensure_all_finite": False if accept_far else "allow-nan", "accept_sparse": "csr"}
    table = (categories and _frames.is_table(X)) or _frames.has_objects(X)
    numbers = X
    try:
        if table:
            validate_data(estimator, X, reset=reset, skip_check_array=True)
            numbers = _tables.encode(X, categories, likelihood)
            return check_array(numbers, estimator=estimator, input_name="X", **checks)
        return validate_data(estimator, X, dtype=_frames.float_dtypes(X), reset=reset, **checks)
    except ValueError as error:
        if accept_far or "infinity" not in str(error):
            raise
        where = _find_infinity(numbers, _frames.names(X), {**checks, "ensure_all_finite": False})
        if where is None:
            raise
        raise ValueError(
            f"Input X contains infinity in {where}. Make it NaN if it stands for a missing value, "
            "or a number."
        ) from None


def _find_infinity(X, names, checks):
    """Words for the first column of X, and its first row there, that holds infinity."""
    data = check_array(X, dtype=_frames.float_dtypes(X), **checks)
    for column in range(data.shape[1]):
        infinite = np.isinf(_arrays.dense(data[:, [column]]).ravel())
        if infinite.any():
            return f"{_arrays.Labels(names).of(column)}, row {int(infinite.argmax())}"
    return None


def read_first(estimator, X, likelihood, categories, weight):
    """What `fit` reads of X: likelihood, rows, weights, moments of the features, and attributes.

    The likelihood then knows its categories: those of an earlier fit, if there are `categories`.
    """
    reset = categories is None
    if reset:
        categories = _tables.learn_categories(X, likelihood)
    data = read(estimator, X, likelihood, categories, reset=reset, ensure_min_samples=2)
    if not reset:  # training takes categories that the first fit has not seen as missing
        for i in categories:
            data[data[:, i] == _tables.UNSEEN, i] = np.nan
    data, weight = _leave_out(data, weight)
    # A column of categories that has none is a feature that is always missing.
    likelihood = likelihood.with_categories({i: max(1, len(c)) for i, c in categories.items()})
    labels = _arrays.Labels(getattr(estimator, "feature_names_in_", None))
    places = likelihood.columns_of(data.shape[1])
    support = functools.partial(likelihood.check_support, labels=labels)
    moments = _arrays.describe_columns(data, support, labels._replace(places=places), weight)
    attributes = {**_names_seen(estimator), "_categories": categories}
    if reset:
        n_values = np.zeros(data.shape[1], np.int64)
        n_values[places] = moments.n_values
        resolution = _arrays.resolution(data.dtype)
        attributes["_seen"] = {"n_values": n_values, "resolution": resolution}
        _warn_of_empty(n_values, labels)
        _warn_of_sentinels(data, moments, support, places, labels, categories)
    return likelihood, data, weight, moments, attributes


def _warn_of_empty(n_values, labels):
    """Warn of columns that have no value."""
    empty = np.flatnonzero(n_values == 0)
    if len(empty):
        warnings.warn(
            f"X has no value in {listed(map(labels.of, empty))}: all are missing. The model "
            "leaves such columns out of its density and gives them back as missing. Drop them, or "
            "fit on rows that have values there.",
            stacklevel=8,
        )


def _warn_of_sentinels(data, moments, support, places, labels, categories):
    """Warn of columns in which one value is far beyond all others."""
    suspects = np.where(np.isin(places, list(categories)), np.nan, moments.suspects)
    found = _arrays.find_sentinels(data, suspects, support)
    if found:
        words = [
            f"{value:.10g} in {labels.of(places[feature])} ({n_rows_in_words(n)})"
            for feature, (value, n) in found.items()
        ]
        warnings.warn(
            "X has values that are farther from the others in their column than all of these "
            f"together are from their mean: {listed(words)}. To the model, the others hardly "
            "differ. If the value stands for a missing one, make it NaN; if it is an error, "
            "correct it; if it is real, transform the column, by its logarithm, say.",
            stacklevel=8,
        )


def n_rows_in_words(n):
    """Words for a number of rows."""
    return "1 row" if n == 1 else f"{n} rows"


def listed(words, most=5):
    """The first of some words, and how many more there are."""
    words = list(words)
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def _names_seen(estimator):
    """What validation has set on `estimator`."""
    names = {"n_features_in_", "feature_names_in_"} & vars(estimator).keys()
    return {name: getattr(estimator, name) for name in names}


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


def weigh_first(X, sample_weight, *, as_table):
    """X and how much each row counts in `fit`; of a table, only rows that do count.

    The others say nothing of what its columns are.
    """
    weight = weigh(sample_weight, X)
    if weight is None:
        return X, None
    rows = np.flatnonzero(weight)
    if len(rows) < 2:
        raise ValueError(
            "VAETransformer needs at least two rows. Got n_samples = 1 with a sample_weight "
            "above 0."
        )
    if as_table and len(rows) < len(weight) and _frames.is_table(X):
        return _safe_indexing(X, rows), weight[rows]
    return X, weight


def _leave_out(data, weight):
    """Rows that count, and their weights; None where these are all the same."""
    if weight is None:
        return data, None
    rows = np.flatnonzero(weight)
    if len(rows) < data.shape[0]:
        data, weight = _arrays.Subset(data, rows), weight[rows]
    return data, None if np.ptp(weight) == 0 else weight
