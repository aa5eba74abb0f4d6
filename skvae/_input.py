"""What comes into a model: X as numbers, the weights of its rows, and what both say of columns.

Numbers are codes for categories, and NaN for missing values; features, as many for a category as
it has values, are made of them block by block, by the likelihood.
"""

import functools
import warnings

import numpy as np
from sklearn.utils import _safe_indexing, check_array
from sklearn.utils.validation import _check_sample_weight, _num_samples, validate_data

from skvae import _arrays, _frames, _tables

# Rows of which it is looked up whether some are copies of others, and the least number of different
# rows by which a column may be said to be of real values.
MOST_COMPARED, LEAST_DIFFERENT = 100_000, 20


def read(estimator, X, likelihood, categories, *, reset, accept_far=False, rows=None, **checks):
    """X as numbers, in any order in memory: codes for categories, and NaN for missing values.

    The code of a category that `fit` has not seen is `_tables.UNSEEN`. Infinity is an error that
    names the column, unless `accept_far`, or where it is not in one of these `rows`.
    """
    checks |= {"ensure_all_finite": False if accept_far else "allow-nan", "accept_sparse": "csr"}
    table = (categories and _frames.is_table(X)) or _frames.has_objects(X)
    numbers = X
    try:
        if table:
            validate_data(estimator, X, reset=reset, skip_check_array=True)
            numbers = _tables.encode(X, categories, likelihood)
            return check_array(numbers, estimator=estimator, input_name="X", **checks)
        with np.errstate(invalid="ignore"):  # of the sum of all values, of inf and -inf
            return validate_data(estimator, X, dtype=_frames.float_dtypes(X), reset=reset, **checks)
    except ValueError as error:
        if accept_far or "infinity" not in str(error):
            raise
        checks |= {"ensure_all_finite": False}
        data = check_array(numbers, dtype=_frames.float_dtypes(numbers), **checks)
        refuse_infinity(data, _frames.names(X), rows)
        if rows is None:
            raise
        return read(estimator, X, likelihood, categories, reset=reset, accept_far=True, **checks)


def refuse_infinity(data, names, rows=None):
    """Raise where one of these rows holds infinity, and name its column and its row."""
    for column in range(data.shape[1]):
        infinite = np.isinf(_arrays.dense(data[:, [column]]).ravel())
        if rows is not None:
            infinite[np.delete(np.arange(len(infinite)), rows)] = False
        if infinite.any():
            where = f"{_arrays.Labels(names).of(column)}, row {int(infinite.argmax())}"
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
        categories = _tables.learn_categories(X, likelihood)
    data = read(estimator, X, likelihood, categories, reset=reset, rows=rows, ensure_min_samples=2)
    if reset and hasattr(X, "columns"):
        _warn_of_long_numbers(X, rows, categories)
    if not reset:  # training takes categories that the first fit has not seen as missing
        for i in categories:
            data[data[:, i] == _tables.UNSEEN, i] = np.nan
    if rows is not None:
        data = _arrays.Subset(data, rows)
    # A column of categories that has none is a feature that is always missing.
    likelihood = likelihood.with_categories({i: max(1, len(c)) for i, c in categories.items()})
    return likelihood, data, {**_names_seen(estimator), "_categories": categories}


def describe(
    data, likelihood, attributes, weight, held_out, *, reset, partial=False, grouped=False
):
    """Moments of the features of the rows that are trained on, and what to know of the columns.

    `held_out` are the places of the other rows. Whether values are missing is asked of all rows.
    Where a held-out value is out of reach of the units of the rows trained on, `reset` gives its
    feature the moments of all rows: the value then does what it would do in a row trained on.
    `partial`: later blocks follow, so the first one, which `reset` says this is, must have a value
    in each column. `grouped`: rows that belong together are held out together.
    """
    labels = _arrays.Labels(attributes.get("feature_names_in_"))
    places = likelihood.columns_of(data.shape[1])
    support = functools.partial(likelihood.check_support, labels=labels)
    describe_rows = functools.partial(
        _arrays.describe_columns, support=support, labels=labels._replace(places=places)
    )
    training, others = np.delete(np.arange(data.shape[0]), held_out), np.sort(held_out)
    if not len(held_out):
        moments = describe_rows(data, weight=weight)
    else:
        own_weight = None if weight is None else weight[training]
        moments = describe_rows(_arrays.Subset(data, training), weight=own_weight)
        extremes = _arrays.find_extremes(_arrays.Subset(data, others), support, len(places))
        moments = moments._replace(suspects=_add_suspects(moments, extremes))
        far = _is_out_of_reach(likelihood, moments, extremes)
        if reset and far.any():
            moments = _replace_where(far, moments, describe_rows(data, weight=weight))
    n_values, n_others = np.zeros((2, data.shape[1]), np.int64)
    n_values[places] = moments.n_values
    if len(held_out):
        n_others[places] = ~np.isnan(extremes[0])
    if len(held_out) and not moments.has_holes:
        n_incomplete = count_incomplete(_arrays.Subset(data, others), n_values == 0)
        moments = moments._replace(has_holes=n_incomplete > 0)
    if reset:
        _tell_of_empty(n_values, n_others, labels, partial)
        unresolved = dict.fromkeys(places[moments.unresolved].tolist())
        _warn_of_unresolved(unresolved, labels, data.dtype, 7)
        _warn_of_sentinels(data, moments, support, places, labels, attributes["_categories"])
        if not grouped:
            _warn_of_copies(data, held_out)
    return moments, {"n_values": n_values, "resolution": _arrays.resolution_of(data.dtype)}


def _is_out_of_reach(likelihood, moments, extremes):
    """Whether the lowest or the highest value of a feature is too far from its units, (D,)."""
    location, scale = likelihood.units(moments)
    with np.errstate(over="ignore"):  # of values such as 1e308
        distance = np.fmax(*(np.abs(value - location) for value in extremes))
        return (scale > 0) & (distance > _arrays.FARTHEST * scale)


def _replace_where(chosen, moments, others):
    """Moments of which the chosen features have those of `others`."""
    names = "mean", "std", "n_values", "n_various"
    pairs = {name: (getattr(others, name), getattr(moments, name)) for name in names}
    return moments._replace(**{name: np.where(chosen, *pair) for name, pair in pairs.items()})


def _add_suspects(moments, extremes):
    """The suspects of some rows, and those among the lowest and highest values of others.

    A value may be far beyond all of n others where it is more than n of their standard deviations
    from their mean: the sum of their distances is at most as large.
    """
    suspects = moments.suspects.copy()
    for side, (extreme, value) in enumerate(zip((np.fmin, np.fmax), extremes, strict=True)):
        with np.errstate(over="ignore"):  # of values such as 1e308
            far = np.abs(value - moments.mean) > moments.n_values * moments.std
        far &= moments.std > 0
        suspects[side] = np.where(far, extreme(suspects[side], value), suspects[side])
    return suspects


def _tell_of_empty(n_values, n_others, labels, partial):
    """Warn of columns that have no value; refuse them where later blocks may have values there.

    `n_others` is above 0 where the rows that are held out have values.
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
    warnings.warn(
        f"{what} The model leaves such columns out of its density and gives them back as missing. "
        "Drop them, or fit on rows that have values there.",
        stacklevel=7,
    )


def _warn_of_long_numbers(X, rows, categories):
    """Warn of columns of a frame whose different whole numbers are one as float64."""
    columns = []
    for i in range(X.shape[1]):
        ends = None if i in categories else _frames.long_range(X, i, rows)
        size = 0 if ends is None else max(map(abs, ends))
        # Where more is left than rounding, the moments of the columns tell.
        if size > 2**53 and 0 < ends[1] - ends[0] <= 2 * _arrays.rounding_of(np.float64) * size:
            columns.append(i)
    _warn_of_unresolved(columns, _arrays.Labels(_frames.names(X)), np.float64, 9)


def _warn_of_unresolved(columns, labels, dtype, stacklevel):
    """Warn of columns that vary, but by so little that they are taken as constant."""
    if columns:
        share = 2 * _arrays.resolution_of(dtype)
        warnings.warn(
            f"X has values in {listed(map(labels.of, columns))} that differ by less than "
            f"{share:.1g} of their size: the model takes such a column as constant. Subtract an "
            "offset from it, such as its least value, so that the differences count. If they are "
            "rounding, drop the column.",
            stacklevel=stacklevel,
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
            stacklevel=7,
        )


def n_rows_in_words(n):
    """Words for a number of rows."""
    return "1 row" if n == 1 else f"{n} rows"


def _warn_of_copies(data, held_out):
    """Warn where most rows held out are copies of rows trained on, and not by chance."""
    sparse = hasattr(getattr(data, "X", data), "tocsr")
    if not len(held_out) or data.shape[0] > MOST_COMPARED or data.dtype.kind != "f" or sparse:
        return
    blocks = map(np.ascontiguousarray, _arrays.slices(data, data.shape[1]))
    # Keys of 8 bytes take little memory, however long the rows are.
    keys = np.array([hash(row.tobytes()) for block in blocks for row in block])
    n_copies = int(np.isin(keys[held_out], np.delete(keys, held_out)).sum())
    if n_copies > len(held_out) / 2 and _is_real(data[np.unique(keys, return_index=True)[1]]):
        warnings.warn(
            f"{n_copies} of the {len(held_out)} rows held out are copies of rows that are trained "
            "on. A model that learns rows by heart looks good by them, and is bad for new rows. "
            "Give copies of a row the same label in groups, such as the number of the row they "
            "were drawn from: np.unique(X, axis=0, return_inverse=True)[1] finds it in an array "
            "without missing values. Or give each row once, with sample_weight for how often it "
            "comes.",
            stacklevel=7,
        )


def _is_real(rows):
    """Whether a column has a value of its own for each of these different rows.

    Whole numbers, categories and few levels in any units have not, and rows of such are equal by
    chance. Nor does a column that varies alone tell chance from copies.
    """
    ordered = np.sort(rows, axis=0)
    with np.errstate(invalid="ignore"):  # NaN in float16
        n_values = 1 + (ordered[1:] > ordered[:-1]).sum(axis=0)
        fractional = (np.isfinite(rows) & (rows != np.rint(rows))).mean(axis=0) > 0.5
    own = n_values >= max(LEAST_DIFFERENT, 0.9 * len(rows))
    return bool((own & fractional).any() and (n_values > 1).sum() > 1)


def listed(words, most=5):
    """The first of some words, and how many more there are."""
    words = list(words)
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def _names_seen(estimator):
    """What validation has set on `estimator`."""
    names = {"n_features_in_", "feature_names_in_"} & vars(estimator).keys()
    return {name: getattr(estimator, name) for name in names}


def count_incomplete(data, empty):
    """How many rows have missing values, in columns other than those that are `empty` in fit."""
    if data.dtype.kind != "f":
        return 0
    if hasattr(data, "tocsr"):
        entries = data.tocoo()
        return len(np.unique(entries.row[np.isnan(entries.data) & ~empty[entries.col]]))
    # The least of some values is NaN if one of them is, and is found faster than each NaN.
    blocks = (b for b in _arrays.slices(data, data.shape[1]) if np.isnan(b.min()))
    return sum(int(np.isnan(block[:, ~empty]).any(axis=1).sum()) for block in blocks)


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
        group = _drop_one_group(np.unique(group[rows], return_inverse=True)[1])
    if len(rows) == len(weight):
        rows = None
    else:
        weight = weight[rows]
        if as_table and _frames.is_table(X):
            X, rows = _safe_indexing(X, rows), None
    return X, rows, None if np.ptp(weight) == 0 else weight, group


def _number_groups(groups, X):
    """The number of the group of each row, from 0; None without groups, or with one group only.

    With one group each row stands for itself, since no group can be held out.
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
    if labels.dtype.kind in "mM":  # whose list may hold integers
        missing = np.isnat(labels)
    else:
        missing = np.fromiter(map(_frames.is_missing, labels.tolist()), bool, len(labels))
    if missing.any():
        raise ValueError(
            f"groups has no value in row {int(missing.argmax())}. Each row belongs to a group: "
            "give a row that belongs with no other a value of its own."
        )
    return _drop_one_group(_number(labels))


def _drop_one_group(group):
    """The groups; None if there is only one."""
    return group if group.max(initial=0) > 0 else None


def _number(labels):
    """The place of each label among the different ones, in their order if they have one."""
    if labels.dtype != object:
        return np.unique(labels, return_inverse=True)[1]
    values, different = labels.tolist(), {}
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
    except (TypeError, ValueError):  # labels of several types have no order but that of the rows
        order = list(different)
    numbers = {value: number for number, value in enumerate(order)}
    return np.array([numbers[value] for value in values])


def _read_labels(groups):
    """Groups as an array of one label a row, (n_samples,)."""
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
        labels = np.empty(len(groups), object)
        for row, label in enumerate(groups):  # all at once, tuples would become a second axis
            labels[row] = label
        return labels
    labels = np.asarray(_frames.to_plain(groups))
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
