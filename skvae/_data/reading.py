"""X as numbers.

Numbers are codes for categories, and NaN for missing values; features, as many for a category as
it has values, are made of them block by block, by the likelihood.
"""

import numpy as np
from sklearn.utils import check_array
from sklearn.utils.validation import validate_data

from skvae._data import arrays, containers, schema, words
from skvae._data.description import warn_of_long_numbers


def read(estimator, X, likelihood, categories, *, reset, accept_far=False, rows=None, **checks):
    """X as numbers, in any order in memory: codes for categories, and NaN for missing values.

    The code of a category that `fit` has not seen is `_tables.UNSEEN`. Infinity is an error that
    names the column, unless `accept_far`, or where it is not in one of these `rows`.
    """
    checks |= {"ensure_all_finite": False if accept_far else "allow-nan", "accept_sparse": "csr"}
    table = (categories and containers.is_table(X)) or containers.has_objects(X)
    numbers = X
    try:
        if table:
            validate_data(estimator, X, reset=reset, skip_check_array=True)
            numbers = schema.encode(X, categories, likelihood)
            return check_array(numbers, estimator=estimator, input_name="X", **checks)
        with np.errstate(invalid="ignore"):  # of the sum of all values, of inf and -inf
            return validate_data(
                estimator, X, dtype=containers.float_dtypes(X), reset=reset, **checks
            )
    except ValueError as error:
        if accept_far or "infinity" not in str(error):
            raise
        checks |= {"ensure_all_finite": False}
        data = check_array(numbers, dtype=containers.float_dtypes(numbers), **checks)
        refuse_infinity(data, containers.names(X), rows)
        if rows is None:
            raise
        return read(estimator, X, likelihood, categories, reset=reset, accept_far=True, **checks)


def refuse_infinity(data, names, rows=None):
    """Raise where one of these rows holds infinity, and name its column and its row."""
    for column in range(data.shape[1]):
        infinite = np.isinf(arrays.dense(data[:, [column]]).ravel())
        if rows is not None:
            infinite[np.delete(np.arange(len(infinite)), rows)] = False
        if infinite.any():
            where = f"{words.Labels(names).of(column)}, row {int(infinite.argmax())}"
            raise ValueError(
                f"Input X contains infinity in {where}. Make it NaN if it stands for a missing "
                "value, or a number."
            ) from None


def read_first(estimator, X, likelihood, categories, rows):
    """What `fit` reads of X: likelihood, rows that count, and the attributes that they decide.

    The likelihood then knows its categories: those of an earlier fit, if there are `categories`.
    """
    reset = categories is None
    if reset:
        categories = schema.learn_categories(X, likelihood)
    data = read(estimator, X, likelihood, categories, reset=reset, rows=rows, ensure_min_samples=2)
    if reset and hasattr(X, "columns"):
        warn_of_long_numbers(X, rows, categories)
    if not reset:  # training takes categories that the first fit has not seen as missing
        for i in categories:
            data[data[:, i] == schema.UNSEEN, i] = np.nan
    if rows is not None:
        data = arrays.Subset(data, rows)
    # A column of categories that has none is a feature that is always missing.
    likelihood = likelihood.with_categories({i: max(1, len(c)) for i, c in categories.items()})
    return likelihood, data, {**_names_seen(estimator), "_categories": categories}


def _names_seen(estimator):
    """What validation has set on `estimator`."""
    names = {"n_features_in_", "feature_names_in_"} & vars(estimator).keys()
    return {name: getattr(estimator, name) for name in names}


def take(data, n, seed, likelihood):
    """The features of `n` random rows, all different if there are as many."""
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(data.shape[0], n, replace=n > data.shape[0]))
    return likelihood.check_support(arrays.dense(data[rows]))
