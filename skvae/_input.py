"""What comes into a model: X as numbers, the weights of its rows, and what both say of columns.

Numbers are codes for categories, and NaN for missing values; features, as many for a category as
it has values, are made of them block by block, by the likelihood.
"""

import functools

import numpy as np
from sklearn.utils import _safe_indexing, check_array
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


def read_first(estimator, X, likelihood, categories, weight):
    """What `fit` reads of X: likelihood, rows, weights, moments of the features, and attributes.

    The likelihood then knows its categories: those of an earlier fit, if there are `categories`.
    """
    reset = categories is None
    if reset:
        categories = _tables.learn_categories(X, likelihood)
    data = read(estimator, X, likelihood, categories, reset=reset, ensure_min_samples=2)
    data, weight = _leave_out(data, weight)
    likelihood = likelihood.with_categories({i: len(c) for i, c in categories.items()})
    labels = _arrays.Labels(getattr(estimator, "feature_names_in_", None))
    places = likelihood.columns_of(data.shape[1])
    support = functools.partial(likelihood.check_support, labels=labels)
    moments = _arrays.describe_columns(data, support, labels._replace(places=places), weight)
    attributes = {**_names_seen(estimator), "_categories": categories}
    return likelihood, data, weight, moments, attributes


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
    weight = _check_sample_weight(
        _frames.to_validate(sample_weight, is_rows=False), X, dtype=np.float64
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
