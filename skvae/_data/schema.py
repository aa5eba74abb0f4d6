"""The schema of X: what `fit` learned of its columns; it reads rows as numbers and writes rows.

A category is read as a code, and a missing value as NaN. Later, block by block, the likelihood
makes features of these numbers: a column of categories becomes one feature per category.
"""

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from sklearn.utils import check_array
from sklearn.utils.validation import validate_data

from skvae._backend.tensors import Array
from skvae._data import arrays, codes, containers, words
from skvae._data.description import warn_of_long_numbers
from skvae._data.output import describe_output, give_back, give_back_columns

# Attributes that validation does not need and that may be large.
LARGE = ("state_", "history_", "_progress", "_fitted_model")


@dataclass(frozen=True)
class Schema:
    """The columns of X, as `fit` learned them."""

    # A copy of the estimator without its large attributes. scikit-learn's validation sets the
    # number and names of the columns there in `fit`, and reads them later.
    reader: Any
    categories: dict[int, Any] = field(default_factory=dict)  # of each categorical column
    output: dict[str, Any] = field(default_factory=dict)  # the result of `describe_output`

    @classmethod
    def of(cls, estimator: Any, categories: dict[int, Any], output: dict[str, Any]) -> "Schema":
        """Return the schema of a fitted estimator."""
        reader = object.__new__(type(estimator))
        # A subclass may have attributes of its own, which scikit-learn's validation may ask for.
        kept = {name: v for name, v in vars(estimator).items() if name not in LARGE}
        vars(reader).update(kept)
        return cls(reader, categories, output)

    @classmethod
    def learn(
        cls,
        estimator: Any,
        X: Any,
        likelihood: Any,
        categories: dict[int, Any] | None,
        rows: Array | None,
        as_table: bool,
    ) -> tuple["Schema", Any, Any]:
        """Read the rows of X that `fit` trains on; return the schema, the likelihood and numbers.

        The returned likelihood knows its categories. They are the `categories` of an earlier fit,
        if given. With `as_table`, columns go back to the user in the dtypes that they had.
        """
        reset = categories is None
        if categories is None:
            categories = codes.learn_categories(X, likelihood)
        # Validation sets attributes on a copy, so that a failure leaves the estimator unchanged.
        schema = cls(copy.copy(estimator), categories)
        data = schema.read(X, likelihood, reset=reset, rows=rows, ensure_min_samples=2)
        if reset and containers.as_frame(X) is not None:
            warn_of_long_numbers(X, rows, categories)
        if not reset:  # in training, categories that the first fit has not seen are missing
            for i in categories:
                data[data[:, i] == codes.UNSEEN, i] = np.nan
        if rows is not None:
            data = arrays.Subset(data, rows)
        # A categorical column without any value becomes one feature that is always missing.
        likelihood = likelihood.with_categories({i: max(1, len(c)) for i, c in categories.items()})
        output = describe_output(X, data.dtype, as_table=as_table, categories=categories)
        return replace(schema, output=output), likelihood, data

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes by which a fitted estimator stores the schema."""
        names = {"n_features_in_", "feature_names_in_"} & vars(self.reader).keys()
        return {
            **{name: getattr(self.reader, name) for name in names},
            "_categories": self.categories,
            "_output": self.output,
        }

    def has_names_of(self, estimator: Any) -> bool:
        """Whether the columns are those that an estimator names."""
        names = "n_features_in_", "feature_names_in_"
        pairs = [(getattr(self.reader, n, None), getattr(estimator, n, None)) for n in names]
        return all(own is other for own, other in pairs)

    @property
    def n_columns(self) -> int:
        """Number of columns of X."""
        return self.reader.n_features_in_

    @property
    def labels(self) -> words.Labels:
        """Names of the columns for messages."""
        return words.Labels(getattr(self.reader, "feature_names_in_", None))

    @property
    def dtype_out(self) -> str:
        """The dtype of latent rows, and of decoded numbers before they get their own dtypes."""
        return "float32" if self.output["dtype"] == "float32" else "float64"

    @property
    def gives_tables(self) -> bool:
        """Whether rows go back as columns of several kinds."""
        return "kinds" in self.output or bool(self.categories)

    def read(
        self,
        X: Any,
        likelihood: Any,
        *,
        reset: bool = False,
        accept_far: bool = False,
        rows: Array | None = None,
        **checks: Any,
    ) -> Any:
        """Return X as numbers, in any memory layout: codes for categories, NaN for missing values.

        The code of a category that `fit` has not seen is `codes.UNSEEN`. Infinity raises an error
        that names the column, unless `accept_far`. If `rows` are given, only these are checked.
        """
        finite = False if accept_far else "allow-nan"
        of_array = {"ensure_all_finite": finite, "accept_sparse": "csr", **checks}
        table = (self.categories and containers.is_table(X)) or containers.has_objects(X)
        numbers = X
        try:
            if table:
                validate_data(self.reader, X, reset=reset, skip_check_array=True)
                numbers = codes.encode(X, self.categories, likelihood)
                return check_array(numbers, estimator=self.reader, input_name="X", **of_array)
            with np.errstate(invalid="ignore"):  # the sum of all values may add inf and -inf
                dtypes = containers.float_dtypes(X)
                return validate_data(self.reader, X, dtype=dtypes, reset=reset, **of_array)
        except ValueError as error:
            if accept_far or "infinity" not in str(error):
                raise
            of_array |= {"ensure_all_finite": False}
            data = check_array(numbers, dtype=containers.float_dtypes(numbers), **of_array)
            refuse_infinity(data, containers.names(X), rows)
            if rows is None:
                raise
            return self.read(X, likelihood, reset=reset, accept_far=True, **checks)

    def write(self, numbers: Array, index: Any = None, container: str | None = None) -> Any:
        """Return numbers as values in the container of the data of `fit`, or in another container.

        `index` is for a pandas frame, if there is one.
        """
        if not self.gives_tables:
            return give_back(numbers, self.output, index)
        columns = codes.decode(numbers, self.categories)
        return give_back_columns(columns, self.output, self.categories, index, container)


def refuse_infinity(data: Any, names: Array | None, rows: Array | None = None) -> None:
    """Raise an error if one of these rows holds infinity, and name its column and its row."""
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


def take(data: Any, n: int, seed: int, likelihood: Any) -> Array:
    """Return the features of `n` random rows, all different if there are enough rows."""
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(data.shape[0], n, replace=n > data.shape[0]))
    return likelihood.check_support(arrays.dense(data[rows]))
