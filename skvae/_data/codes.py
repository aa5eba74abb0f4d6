"""Encode a table with columns of several kinds as a matrix of numbers, and decode it.

For the model, a column of categories becomes a column of codes: a code is the index of a value
among the categories. All other columns are numbers. Every missing value of a table (NaN, None, NA,
null) becomes NaN. Decoding gives back the values, the dtypes and the container of `fit`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from skvae._backend.tensors import Array
from skvae._backend.warn import warn
from skvae._data import containers
from skvae._data.words import Labels, rows_in_words

# The code of any category that `fit` has not seen.
UNSEEN = -1.0


def learn_categories(X: Any, likelihood: Any) -> dict[int, Array]:
    """Return the sorted categories of each categorical column; empty if all values are missing."""
    if not containers.is_table(X):
        return {}
    labels, chosen = Labels(containers.names(X)), likelihood.categorical(X.shape[1])
    if not chosen:
        return {}
    columns = enumerate(containers.columns(X))
    return {i: _learn(column, labels.of(i)) for i, column in columns if i in chosen}


def _learn(column: containers.Column, where: str) -> Array:
    categories = containers.own_categories(column)
    if categories is None:
        values = _distinct(containers.items(column), where)
        present = [value for value in values if not containers.is_missing(value)]
        try:
            categories = sorted(present)
        except TypeError:
            kinds = sorted({type(value).__name__ for value in present})
            raise ValueError(
                f"The values in {where} are of the types {', '.join(kinds)}, which cannot "
                "be sorted as categories. Make them strings, say."
            ) from None
    array = np.empty(len(categories), object)
    array[:] = list(categories)
    return array


def _distinct(values: list[Any], where: str) -> set[Any]:
    try:
        return set(values)
    except TypeError:
        kind = next(type(value).__name__ for value in values if value.__hash__ is None)
        raise TypeError(
            f"X has a value of type {kind} in {where}, which cannot be a category. The values of "
            "such an argument must be all strings or numbers."
        ) from None


def encode(X: Any, categories: Mapping[int, Array], likelihood: Any) -> Array:
    """Return X (n, D) as float64: codes for categories, and NaN for missing values.

    The code of a category that `fit` has not seen is UNSEEN; a warning names the category.
    """
    labels, unknown = Labels(containers.names(X)), []
    numbers = np.empty(X.shape)
    handle = likelihood.categorical(X.shape[1])
    for i, column in enumerate(containers.columns(X)):
        where = labels.of(i)
        if i not in categories:
            numbers[:, i] = to_numbers(column, where)
            continue
        values = containers.items(column)
        codes = _code(_distinct(values, where), categories[i], where)
        numbers[:, i] = np.fromiter(map(codes.__getitem__, values), np.float64, len(values))
        strange = numbers[:, i] == UNSEEN
        if strange.any():
            what = f"{values[np.argmax(strange)]!r} in {where}"
            if handle[i].handle_unknown == "error":
                raise ValueError(
                    f"X has the category {what}, which was not in the data of fit. Fit on such "
                    "data, or use Categorical(handle_unknown='warn') to take it as missing."
                )
            unknown.append(_new(values, strange, where, len(categories[i])))
    if unknown:
        warn(
            f"X has categories that were not in the data of fit, taken as missing: "
            f"{', '.join(unknown)}."
        )
    return numbers


def _new(values: list[Any], strange: Array, where: str, n_known: int) -> str:
    """Words for the `strange` values of a column, which `fit` has not seen."""
    own = list(dict.fromkeys(repr(values[row]) for row in np.flatnonzero(strange)))
    more = f" and {len(own) - 5} more" if len(own) > 5 else ""
    alone = all(s or containers.is_missing(v) for s, v in zip(strange, values, strict=True))
    known = ", where X has no other value" if alone else ""
    if not n_known:
        known = ", where the data of fit had no value"
    rows = rows_in_words(np.flatnonzero(strange))
    return f"{', '.join(own[:5])}{more} in {where} ({rows}){known}"


def _code(values: Iterable[Any], categories: Array, where: str) -> dict[Any, float]:
    """Return the code of each value: NaN for missing values, UNSEEN for unknown ones."""
    known = {value: code for code, value in enumerate(categories)}
    strings = {isinstance(category, str) for category in categories}
    codes = {}
    for value in values:
        codes[value] = np.nan if containers.is_missing(value) else known.get(value, UNSEEN)
        if codes[value] == UNSEEN and strings and isinstance(value, str) not in strings:
            raise ValueError(
                f"X has the value {value!r} in {where}, whose categories in fit are such as "
                f"{categories[0]!r}. Give the column the dtype that it had."
            )
    return codes


def to_numbers(column: containers.Column, where: str) -> Array:
    """Return a column as numbers; an error names the first value that is no number."""
    numbers = containers.numbers(column)
    if numbers is not None:
        return numbers
    values = containers.items(column)
    numbers = np.full(len(values), np.nan)
    for row, value in enumerate(values):
        if containers.is_missing(value):
            continue
        if not isinstance(value, containers.NUMBERS):
            if not isinstance(value, str):  # scikit-learn has this message
                raise TypeError(
                    f"X has a value of type {type(value).__name__} in {where}. This argument must "
                    "be a string or a number. Make it a number. For a column of categories, use "
                    "likelihood='auto' or skvae.likelihoods.Columns."
                )
            raise ValueError(
                f"X has the value {value!r} in {where}, which is no number{_reads(value)}. "
                "Make it a number. For a column of categories, use likelihood='auto' or "
                "skvae.likelihoods.Columns."
            )
        numbers[row] = value
    return numbers


def _reads(value: str) -> str:
    """Words for a string that reads as a number; for others an empty string."""
    try:
        float(value)
    except ValueError:
        return ""
    return " but a string. X.astype(float) makes numbers of such strings"


def decode(numbers: Array, categories: Mapping[int, Array]) -> list[Array]:
    """Turn numbers (n, D) with codes for categories into columns of values."""
    return [
        _look_up(categories[i], numbers[:, i]) if i in categories else numbers[:, i]
        for i in range(numbers.shape[1])
    ]


def _look_up(categories: Array, codes: Array) -> Array:
    """Return the category of each code; None for NaN, in a column without values in `fit`."""
    missing = np.isnan(codes)
    if not missing.any():
        return categories[codes.astype(int)]
    values = np.full(len(codes), None)
    values[~missing] = categories[codes[~missing].astype(int)]
    return values
