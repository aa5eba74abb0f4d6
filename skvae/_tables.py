"""Tables of columns of many kinds: as a matrix of numbers, and back.

A column of categories is a column of codes, places among its categories, on the way to the model;
all others are numbers. NaN is a missing value, whichever way a table says that: NaN, None, NA,
null. What is drawn or expected goes back to the values, the dtypes and the container of `fit`.
"""

import warnings

import numpy as np
from sklearn.utils._indexing import _get_column_indices

from skvae import _frames
from skvae._arrays import Labels
from skvae.likelihoods import LIKELIHOODS, Bernoulli, Categorical, Columns, Gaussian

# Different values below which a column of whole numbers may be something else.
FEW_VALUES = 20
# The code of a category that `fit` has not seen.
UNSEEN = -1.0


def is_read(likelihood):
    """Whether a likelihood reads a table, whose columns may be no numbers."""
    if isinstance(likelihood, str):
        likelihood = LIKELIHOODS.get(likelihood, likelihood)
    return likelihood == "auto" or isinstance(likelihood, Columns | Categorical)


def has_categories(X):
    """Whether X is a table with a column that is no number."""
    X = _frames.to_validate(X)
    return _frames.is_table(X) and "O" in {_frames.kind(X, i) for i in range(X.shape[1])}


# --- which likelihood for which column ----------------------------------------------------


def place(likelihood, X):
    """The likelihood of the columns of X by their positions; and as a user would write it.

    Raises a ValueError where columns are in no part or in two, or are none of X, and a TypeError
    where a likelihood is no value.
    """
    try:
        likelihood = LIKELIHOODS.get(likelihood, likelihood)
    except TypeError as error:
        raise TypeError(
            f"A likelihood has to be a value, which has a hash. Got {likelihood!r} ({error}): make "
            "its class a frozen dataclass, @dataclass(frozen=True), with fields such as numbers, "
            "strings and tuples."
        ) from None
    if isinstance(likelihood, str):  # "auto"
        likelihood = _choose(X) if _frames.is_table(X) and X.shape[1] else Gaussian()
    if not isinstance(likelihood, Columns) or not _frames.is_table(X):
        return likelihood, likelihood
    names, owners, parts = _frames.names(X), {}, []
    for part, columns in likelihood.parts:
        if part not in LIKELIHOODS and isinstance(part, str):
            raise ValueError(
                f"Columns has a part {part!r}, which is no likelihood. Give a value of "
                f"skvae.likelihoods, or one of {sorted(LIKELIHOODS)}."
            )
        positions = _positions(columns, X)
        for position in positions:
            owners.setdefault(position, []).append(part)
        if positions:
            parts.append((LIKELIHOODS.get(part, part), tuple(positions)))
    for position in range(X.shape[1]):
        own = owners.get(position, [])
        if len(own) != 1:
            what = f"in {len(own)} parts of" if own else "in no part of"
            raise ValueError(
                f"{Labels(names).of(position).capitalize()} is {what} {likelihood!r}. Each column "
                "belongs to one: name all columns, or drop those that are not to be modelled."
            )
    if names is None:
        return Columns(parts), Columns(parts)
    named = [(part, [str(names[i]) for i in positions]) for part, positions in parts]
    return Columns(parts), Columns(named)


def _positions(columns, X):
    """Positions of columns that are given as a `ColumnTransformer` takes them."""
    if callable(columns):
        columns = columns(X)
    if isinstance(columns, slice) and not isinstance(columns.start or columns.stop, str):
        return list(range(X.shape[1])[columns])
    columns = list(columns) if isinstance(columns, tuple) else columns
    try:
        found = _get_column_indices(X, columns)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Columns cannot find {columns!r} in X: {error}") from None
    return [int(position) for position in np.atleast_1d(found)]


def _choose(X):
    """Likelihoods by the kinds of the columns of X."""
    if hasattr(X, "columns") or str(X.dtype) in _frames.LOOSE:
        kinds = [_frames.kind(X, i) for i in range(X.shape[1])]
    else:  # as _frames.kind says of one dtype
        kinds = [_frames.kind(X, 0)] * X.shape[1]
    names = _frames.names(X)
    known = {"f": Gaussian(), "b": Bernoulli(), "O": Categorical()}
    few = []
    if not hasattr(X, "toarray"):  # whose columns are long to read, and many
        whole = [i for i, kind in enumerate(kinds) if kind == "i"]
        few = [i for i in whole if 0 < _n_values(X, i) < FEW_VALUES]
    if few:
        shown = ", ".join(map(Labels(names).of, few[:5]))
        more = f" and {len(few) - 5} more" if len(few) > 5 else ""
        warnings.warn(
            f"{shown}{more}: whole numbers of fewer than {FEW_VALUES} different values, taken as "
            "real values. Say with skvae.likelihoods.Columns if they are categories or counts, or "
            "make them floats.",
            stacklevel=8,
        )
    kinds = [kind.replace("i", "f") for kind in kinds]
    if len(set(kinds)) == 1:
        return known[kinds[0]]
    parts = []
    for kind, likelihood in known.items():
        own = [i for i, other in enumerate(kinds) if other == kind]
        if own:
            parts.append((likelihood, own))
    return Columns(parts)


def _n_values(X, i):
    """Different values of a column, or enough of them."""
    found = set()
    for value in _frames.items(X, i):
        if len(found) == FEW_VALUES:
            break
        if not _frames.is_missing(value):
            found.add(value)
    return len(found)


# --- categories and their codes -----------------------------------------------------------


def learn_categories(X, likelihood):
    """The categories of each column of X that is of such, sorted; none where all are missing."""
    if not _frames.is_table(X):
        return {}
    return {i: _learn(X, i, Labels(_frames.names(X))) for i in likelihood.categorical(X.shape[1])}


def _learn(X, i, labels):
    categories = _frames.own_categories(X, i)
    if categories is None:
        values = _distinct(_frames.items(X, i), labels.of(i))
        present = [value for value in values if not _frames.is_missing(value)]
        try:
            categories = sorted(present)
        except TypeError:
            kinds = sorted({type(value).__name__ for value in present})
            raise ValueError(
                f"The values in {labels.of(i)} are of the types {', '.join(kinds)}, which cannot "
                "be sorted as categories. Make them strings, say."
            ) from None
    array = np.empty(len(categories), object)
    array[:] = list(categories)
    return array


def _distinct(values, where):
    try:
        return set(values)
    except TypeError:
        kind = next(type(value).__name__ for value in values if value.__hash__ is None)
        raise TypeError(
            f"X has a value of type {kind} in {where}, which cannot be a category. The values of "
            "such an argument must be all strings or numbers."
        ) from None


def encode(X, categories, likelihood):
    """X (n, D) as float64: codes for categories, and NaN for what is missing.

    The code of a category that `fit` has not seen is UNSEEN; a warning names it.
    """
    labels, unknown = Labels(_frames.names(X)), []
    numbers = np.empty(X.shape)
    handle = likelihood.categorical(X.shape[1])
    for i in range(X.shape[1]):
        if i not in categories:
            numbers[:, i] = to_numbers(X, i, labels)
            continue
        values = _frames.items(X, i)
        codes = _code(_distinct(values, labels.of(i)), categories[i], labels.of(i))
        numbers[:, i] = np.fromiter(map(codes.__getitem__, values), np.float64, len(values))
        strange = numbers[:, i] == UNSEEN
        if strange.any():
            what = f"{values[np.argmax(strange)]!r} in {labels.of(i)}"
            if handle[i].handle_unknown == "error":
                raise ValueError(
                    f"X has the category {what}, which was not in the data of fit. Fit on such "
                    "data, or use Categorical(handle_unknown='warn') to take it as missing."
                )
            unknown.append(_new(values, strange, labels.of(i), len(categories[i])))
    if unknown:
        warnings.warn(
            f"X has categories that were not in the data of fit, taken as missing: "
            f"{', '.join(unknown)}.",
            stacklevel=5,
        )
    return numbers


def _new(values, strange, where, n_known):
    """Words for the values of a column that are none of the `n_known` categories of `fit`."""
    own = list(dict.fromkeys(repr(values[row]) for row in np.flatnonzero(strange)))
    more = f" and {len(own) - 5} more" if len(own) > 5 else ""
    alone = all(s or _frames.is_missing(v) for s, v in zip(strange, values, strict=True))
    known = ", where X has no other value" if alone else ""
    if not n_known:
        known = ", where the data of fit had no value"
    rows = rows_in_words(np.flatnonzero(strange))
    return f"{', '.join(own[:5])}{more} in {where} ({rows}){known}"


def rows_in_words(rows):
    """Words for these rows, in their order: how many there are, and the first."""
    return f"1 row: {rows[0]}" if len(rows) == 1 else f"{len(rows)} rows, the first is {rows[0]}"


def _code(values, categories, where):
    """The code of each of these values: NaN for those that are missing, UNSEEN for unknown ones."""
    known = {value: code for code, value in enumerate(categories)}
    strings = {isinstance(category, str) for category in categories}
    codes = {}
    for value in values:
        codes[value] = np.nan if _frames.is_missing(value) else known.get(value, UNSEEN)
        if codes[value] == UNSEEN and strings and isinstance(value, str) not in strings:
            raise ValueError(
                f"X has the value {value!r} in {where}, whose categories in fit are such as "
                f"{categories[0]!r}. Give the column the dtype that it had."
            )
    return codes


def to_numbers(X, i, labels):
    """A column of numbers, or an error that names the value that is none."""
    numbers = _frames.numbers(X, i)
    if numbers is not None:
        return numbers
    values = _frames.items(X, i)
    numbers = np.full(len(values), np.nan)
    for row, value in enumerate(values):
        if _frames.is_missing(value):
            continue
        if not isinstance(value, _frames.NUMBERS):
            if not isinstance(value, str):  # as scikit-learn says it
                raise TypeError(
                    f"X has a value of type {type(value).__name__} in {labels.of(i)}: a value of "
                    "this argument must be a string or a number. Make it a number; categories are "
                    "for likelihood='auto' or skvae.likelihoods.Columns."
                )
            raise ValueError(
                f"X has the value {value!r} in {labels.of(i)}, which is no number{_reads(value)}. "
                "Give numbers there; categories are for likelihood='auto' or "
                "skvae.likelihoods.Columns."
            )
        numbers[row] = value
    return numbers


def _reads(value):
    """Words for a string that reads as a number, else none."""
    try:
        float(value)
    except ValueError:
        return ""
    return " but a string, of which X.astype(float) makes one"


def decode(numbers, categories):
    """Columns of values, of numbers (n, D) with codes for categories."""
    return [
        _look_up(categories[i], numbers[:, i]) if i in categories else numbers[:, i]
        for i in range(numbers.shape[1])
    ]


def _look_up(categories, codes):
    """The category of each code; None where that is NaN: the column had no value in `fit`."""
    missing = np.isnan(codes)
    if not missing.any():
        return categories[codes.astype(int)]
    values = np.full(len(codes), None)
    values[~missing] = categories[codes[~missing].astype(int)]
    return values
