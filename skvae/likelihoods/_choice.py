"""Assign likelihoods to the columns of a table: the parts of `Columns`, or the choice of "auto"."""

from typing import Any

import numpy as np
from sklearn.utils._indexing import _get_column_indices

from skvae._backend.part import look_up
from skvae._backend.warn import warn
from skvae._data import containers
from skvae._data.words import Labels, listed
from skvae.likelihoods._base import Likelihood
from skvae.likelihoods._categories import Categorical
from skvae.likelihoods._columns import Columns
from skvae.likelihoods._named import LIKELIHOODS
from skvae.likelihoods._reals import Gaussian
from skvae.likelihoods._unit_interval import Bernoulli

# A column of whole numbers with fewer different values than this may hold categories or counts.
FEW_VALUES = 20


def is_read(likelihood: Any) -> bool:
    """Whether a likelihood reads tables, whose columns may hold other values than numbers."""
    if isinstance(likelihood, str):
        likelihood = LIKELIHOODS.get(likelihood, likelihood)
    return likelihood == "auto" or isinstance(likelihood, Columns | Categorical)


def has_categories(X: Any) -> bool:
    """Whether X is a table with a column that is not numeric."""
    X = containers.to_validate(X)
    return containers.is_table(X) and "O" in containers.kinds(X)


def place(likelihood: Any, X: Any) -> tuple[Any, Any]:
    """Return the likelihood with columns as indices of X, and the same as a user would write it.

    Raises a ValueError if a column is in no part, in two parts or not in X, and a TypeError if a
    likelihood is no value.
    """
    likelihood = look_up("likelihood", likelihood, LIKELIHOODS)
    if isinstance(likelihood, str):  # "auto"
        likelihood = _choose(X) if containers.is_table(X) and X.shape[1] else Gaussian()
    if not isinstance(likelihood, Columns) or not containers.is_table(X):
        return likelihood, likelihood
    parts = _place_parts(likelihood, X)
    names = containers.names(X)
    if names is None:
        return Columns(parts), Columns(parts)
    named = [(part, [str(names[i]) for i in indices]) for part, indices in parts]
    return Columns(parts), Columns(named)


def _place_parts(likelihood: Columns, X: Any) -> list[tuple[Any, tuple[int, ...]]]:
    """Return the parts with their columns as indices; raise an error unless each column has one."""
    owners: dict[int, int] = {}
    parts = []
    for part, columns in likelihood.parts:
        if part not in LIKELIHOODS and isinstance(part, str):
            raise ValueError(
                f"Columns has a part {part!r}, which is no likelihood. Give a value of "
                f"skvae.likelihoods, or one of {sorted(LIKELIHOODS)}."
            )
        indices = _indices(columns, X)
        for i in indices:
            owners[i] = owners.get(i, 0) + 1
        if indices:
            parts.append((LIKELIHOODS.get(part, part), tuple(indices)))
    for i in range(X.shape[1]):
        n_owners = owners.get(i, 0)
        if n_owners != 1:
            where = f"in {n_owners} parts of" if n_owners else "in no part of"
            column = Labels(containers.names(X)).of(i).capitalize()
            raise ValueError(
                f"{column} is {where} {likelihood!r}. Each column belongs to one part: name all "
                "columns, or drop those that the model should leave out."
            )
    return parts


def _indices(columns: Any, X: Any) -> list[int]:
    """Return the indices of columns, which are given in any way of a `ColumnTransformer`."""
    if callable(columns):
        columns = columns(X)
    if isinstance(columns, slice) and not isinstance(columns.start or columns.stop, str):
        return list(range(X.shape[1])[columns])
    columns = list(columns) if isinstance(columns, tuple) else columns
    try:
        found = _get_column_indices(X, columns)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Columns cannot find {columns!r} in X: {error}") from None
    return [int(i) for i in np.atleast_1d(found)]


def _choose(X: Any) -> Likelihood:
    """Choose likelihoods by the kinds of the columns of X."""
    kinds, names = containers.kinds(X), containers.names(X)
    known = {"f": Gaussian(), "b": Bernoulli(), "O": Categorical()}
    few = []
    if not hasattr(X, "toarray"):  # sparse columns are many, and slow to read
        pairs = enumerate(zip(kinds, containers.columns(X), strict=True))
        few = [i for i, (kind, c) in pairs if kind == "i" and 0 < _n_values(c) < FEW_VALUES]
    if few:
        warn(
            f"{listed(map(Labels(names).of, few))}: whole numbers of fewer than {FEW_VALUES} "
            "different values, taken as real values. Use skvae.likelihoods.Columns if they are "
            "categories or counts, or make them floats.",
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


def _n_values(column: containers.Column) -> int:
    """Count the different values of a column, up to FEW_VALUES."""
    found: set[Any] = set()
    for value in containers.items(column):
        if len(found) == FEW_VALUES:
            break
        if not containers.is_missing(value):
            found.add(value)
    return len(found)
