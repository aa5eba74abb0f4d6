"""Types that the public signatures share."""

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import _fit_context

__all__ = ["Estimator", "Groups", "Path", "RandomState", "Rows", "Splitter", "fit_context"]


class SparseRows(Protocol):
    """A sparse matrix or array of scipy."""

    def tocsr(self, copy: bool = False) -> Any:
        """Itself, by rows."""
        ...


class Estimator(Protocol):
    """A VAETransformer, or a Pipeline or a search that ends in one."""

    def get_params(self, deep: bool = True) -> Any:
        """Parameters by name."""
        ...


class Splitter(Protocol):
    """A cross-validation generator."""

    def split(self, *args: Any, **kwargs: Any) -> Any:
        """Rows to train on and rows to test on, of each fold."""
        ...


Rows: TypeAlias = ArrayLike | SparseRows  # a DataFrame is array-like
Groups: TypeAlias = ArrayLike | Sequence[Any]  # labels of any kind, dates and tuples too
RandomState: TypeAlias = int | np.random.RandomState | None
Path: TypeAlias = str | PathLike[str]

Method = TypeVar("Method", bound=Callable[..., Any])


def fit_context(*, prefer_skip_nested_validation: bool) -> Callable[[Method], Method]:
    """scikit-learn's `_fit_context`, which has no types: a method keeps its own."""
    context: Callable[[Method], Method] = _fit_context(
        prefer_skip_nested_validation=prefer_skip_nested_validation
    )
    return context
