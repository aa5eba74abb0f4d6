"""Imputation: a model fills in missing values.

Given the observed part x_o of a row, its missing part x_m has the density E[p(x_m|z)] under
p(z|x_o). Self-normalised importance sampling replaces p(z|x_o): z is drawn from q(z|x_o) and has
the weight p(x_o, z) / q(z|x_o), divided by the sum of the weights. The imputation is the weighted
mean of E[x_m|z] (Mattei & Frellsen, MIWAE, 2019, arXiv:1812.02633, eq. 11). A draw of x_m chooses
one z by its weight and draws x_m from p(x_m|z) (eq. 12).
"""

import copy
from collections.abc import Callable
from numbers import Integral
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import scipy.sparse
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.utils._param_validation import Interval
from sklearn.utils._set_output import _get_output_config
from sklearn.utils.validation import (
    _check_feature_names_in,
    check_is_fitted,
    check_random_state,
    validate_data,
)

from skvae._backend import blocks, devices
from skvae._backend.tensors import Array, to_tensor
from skvae._backend.warn import warn
from skvae._data import codes, containers, output, schema, weighting, words
from skvae._inference.fitted import FittedModel
from skvae._inference.unseen import Blocks
from skvae._model.vae import VAE
from skvae._typing import Groups, RandomState, Rows, fit_context
from skvae._vae import DOC_LINK, VAETransformer
from skvae.likelihoods import Gaussian, _choice

if TYPE_CHECKING:
    from sklearn.impute import MissingIndicator

# Every model is trained on the rows and on copies of them, in which up to half of the values of a
# row are hidden. An encoder that was trained on one pattern of missing values per row learns the
# rows by heart. An encoder that was trained on complete rows cannot tell a missing value from the
# mean of its column.
N_COPIES, MOST_HIDDEN = 4, 0.5
# Parameters of the default model, besides its likelihood and seed. On digits the copies took 6 %
# off the error. One noise variance per column took off another 8 %, since a noise variance per
# value excuses errors. Five draws (MIWAE) took off a little. The model trains on all rows, to the
# last epoch.
DEFAULT: dict[str, Any] = {
    "n_components": 16,
    "n_importance_samples": 5,
    "early_stopping": False,
    "max_iter": 200,
}


class VAEImputer(TransformerMixin, BaseEstimator):
    """Fill in missing values with a `VAETransformer`.

    It works like the imputers of scikit-learn: it leaves the other values as they are. For a table
    with columns of several kinds, such as categories, it returns a table.

    Parameters
    ----------
    estimator : VAETransformer or None, default=None
        The model of the columns. It is fitted to X and to four copies of X, in which up to half of
        the values of a row are hidden at random. So the model learns to predict missing values from
        the others, even if X has no missing values. The `random_state` of the estimator decides
        which values are hidden. None stands for ``VAETransformer(16,
        likelihood=Gaussian("per_feature"), n_importance_samples=5, early_stopping=False,
        max_iter=200, random_state=random_state)``, with ``likelihood="auto"`` for a table with
        columns that are not numeric.

    missing_values : int, float or nan, default=np.nan
        The value that marks a missing value in X.

    n_draws : int, default=64
        Number of draws of z for each row that has missing values.

    sample_posterior : bool, default=False
        Whether to draw missing values, for multiple imputation. Several imputers that differ only
        in `random_state` then show how uncertain the model is. The draws of a row depend on its
        index in X. If False, a missing value becomes its expected value, the same at every call.

    add_indicator : bool, default=False
        Whether to add columns that mark missing values, as `MissingIndicator` does.

    keep_empty_features : bool, default=False
        Whether to keep columns that have no value in `fit`, with 0 for their missing values. If
        False, they are left out. A warning names them.

    random_state : int, RandomState instance or None, default=None
        Decides the draws of `sample_posterior`, and the fit of the default model.

    Attributes
    ----------
    estimator_ : VAETransformer
        The fitted model of the columns that have values. If its likelihood reads tables, as "auto"
        does, it is the model of all columns.

    indicator_ : MissingIndicator or None
        The transformer that makes the columns of `add_indicator`.

    n_features_in_ : int
        Number of features seen during `fit`.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features. Only where X had names that are strings.

    See Also
    --------
    sklearn.impute.IterativeImputer : A regression for each column on all others.
    sklearn.impute.KNNImputer : Means of the nearest rows.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from skvae import VAEImputer, VAETransformer
    >>> X = load_iris().data
    >>> X[::7, 2] = np.nan
    >>> vae = VAETransformer(2, max_iter=20, random_state=0)  # to be quick
    >>> filled = VAEImputer(vae).fit_transform(X)
    >>> bool(np.isfinite(filled).all())
    True
    """

    # A name for pickles, skops and links that survives when files move.
    __module__ = "skvae"
    _doc_link_module, _doc_link_template = DOC_LINK

    estimator_: VAETransformer
    indicator_: "MissingIndicator | None"
    n_features_in_: int
    feature_names_in_: np.ndarray

    _parameter_constraints: dict[str, Any] = {
        "estimator": [VAETransformer, None],
        "missing_values": "no_validation",
        "n_draws": [Interval(Integral, 1, None, closed="left")],
        "sample_posterior": ["boolean"],
        "add_indicator": ["boolean"],
        "keep_empty_features": ["boolean"],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        estimator: VAETransformer | None = None,
        *,
        missing_values: float = np.nan,
        n_draws: int = 64,
        sample_posterior: bool = False,
        add_indicator: bool = False,
        keep_empty_features: bool = False,
        random_state: RandomState = None,
    ) -> None:
        self.estimator = estimator
        self.missing_values = missing_values
        self.n_draws = n_draws
        self.sample_posterior = sample_posterior
        self.add_indicator = add_indicator
        self.keep_empty_features = keep_empty_features
        self.random_state = random_state

    @fit_context(prefer_skip_nested_validation=False)
    def fit(
        self,
        X: Rows,
        y: Any = None,
        sample_weight: ArrayLike | None = None,
        groups: Groups | None = None,
    ) -> Self:
        """Fit the model to the values of X that are not missing.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, with or without missing values. `fit` hides further values in copies of the rows.
        y : Ignored
            Present for the API's sake. A `y` that looks like validation rows raises an error.
        sample_weight : float or array-like of shape (n_samples,), default=None
            How much each row counts, as in `VAETransformer.fit`. If X is an array, infinity raises
            an error even in rows of weight 0.
        groups : array-like of shape (n_samples,), default=None
            Labels of rows that belong together, as in `VAETransformer.fit`. If the model holds out
            rows, it holds out whole groups. The copies of a row are always held out together.

        Returns
        -------
        self : VAEImputer
            The fitted imputer.
        """
        fitted = copy.copy(self)  # a failure leaves self unchanged
        weighting.check_target(X, y)
        fitted._fit(X, sample_weight=sample_weight, groups=groups)
        self.__dict__.pop("feature_names_in_", None)
        self.__dict__.update(fitted.__dict__)
        return self

    def _fit(self, X: Any, **of_rows: Any) -> None:
        """Fit to X; `of_rows` are the weights and groups of the rows."""
        containers.check_rows(X)
        if self.estimator is None:
            likelihood = "auto" if _choice.has_categories(X) else Gaussian("per_feature")
            estimator = VAETransformer(
                likelihood=likelihood, random_state=self.random_state, **DEFAULT
            )
        else:
            estimator = clone(self.estimator)
        if _choice.is_read(estimator.likelihood) and not scipy.sparse.issparse(X):
            self._fit_table(estimator, X, of_rows)
            return
        X = self._read(X, reset=True)
        empty = np.isnan(X).all(axis=0)
        if empty.all():
            raise ValueError(
                "Input X has only missing values. VAEImputer needs some values to learn from: fit "
                "on rows that have values."
            )
        if empty.any():
            labels = words.Labels(getattr(self, "feature_names_in_", None))
            columns = words.listed(map(labels.of, np.flatnonzero(empty).tolist()))
            what = "fills them with 0" if self.keep_empty_features else "leaves them out"
            warn(
                f"X has no value in {columns}: all are missing. VAEImputer {what}, since "
                f"keep_empty_features={self.keep_empty_features}. Drop such columns, or fit on "
                "rows that have values there.",
            )
        self.estimator_ = self._fit_model(estimator, X[:, ~empty], of_rows)
        self._end_fit(X, empty)

    def _fit_table(self, estimator: VAETransformer, X: Any, of_rows: dict[str, Any]) -> None:
        """Fit to a table, in which the model reads all columns."""
        if not containers.is_missing(self.missing_values):
            raise ValueError(
                f"missing_values={self.missing_values!r} is for numbers of one likelihood. Make "
                "missing values NaN, None or NA in a table whose columns are of several kinds."
            )
        validate_data(self, X, skip_check_array=True)
        self.estimator_ = self._fit_model(estimator, X, of_rows)
        X = self.estimator_._fitted.read(X)
        self._end_fit(X, np.isnan(X).all(axis=0))

    def _fit_model(
        self, estimator: VAETransformer, X: Any, of_rows: dict[str, Any]
    ) -> VAETransformer:
        """Fit the estimator to the rows of X and to copies in which further values are hidden."""
        seed = int(check_random_state(estimator.random_state).randint(np.iinfo(np.int32).max))
        rng = np.random.default_rng(seed)
        return estimator._fit_changed(X, lambda data: _hide(data, rng), **of_rows)

    def _end_fit(self, X: Array, empty: Array) -> None:
        """Set the attributes that do not belong to the model; `empty` marks columns."""
        self.indicator_ = None
        if self.add_indicator:
            from sklearn.impute import MissingIndicator  # imports half of scikit-learn

            self.indicator_ = MissingIndicator(error_on_new=False).fit(X)
        self._empty = empty

    def transform(self, X: Rows) -> Any:
        """Fill in the missing values of X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows with missing values.

        Returns
        -------
        X_filled : ndarray or DataFrame of shape (n_samples, n_features_out)
            The rows without missing values. Columns that had no value in `fit` are left out unless
            `keep_empty_features` is True, and columns of the indicator are added. It is a DataFrame
            if `fit` got one with columns of several kinds.
        """
        check_is_fitted(self)
        if self.estimator_._fitted.schema.gives_tables:
            return self._transform_table(X)
        X = self._read(X, reset=False)
        if not self.estimator_._fitted.knows_holes:  # a file of an earlier version
            n_incomplete = int(np.isnan(X[:, ~self._empty]).any(axis=1).sum())
            self.estimator_._fitted.warn_of_holes(n_incomplete, len(X))
        added = [] if self.indicator_ is None else [self.indicator_.transform(X)]
        holes = np.isnan(X)
        if self.estimator_.n_features_in_ == X.shape[1]:
            filled = self._fill(X)
        else:
            filled = X
            filled[:, ~self._empty] = self._fill(X[:, ~self._empty])
        filled[holes & self._empty] = 0.0
        if not self.keep_empty_features:
            filled = filled[:, ~self._empty]
        return np.hstack([filled, *added]) if added else filled

    def _transform_table(self, X: Any) -> Any:
        """Fill in the missing values of a table."""
        X = containers.to_validate(X)
        validate_data(self, X, reset=False, skip_check_array=True)
        fitted, container = self.estimator_._fitted, _get_output_config("transform", self)["dense"]
        numbers = np.array(fitted.read(X))
        # The model takes a category that `fit` has not seen as missing. The table keeps it.
        for i in fitted.schema.categories:
            numbers[numbers[:, i] == codes.UNSEEN, i] = np.nan
        own = None if container == "default" else container
        filled = fitted.schema.write(self._fill(numbers), containers.index_of(X), own)
        holes, wanted = containers.holes(X), ~self._empty | self.keep_empty_features
        columns = output.fill(X, filled, holes, self._empty, wanted)
        names = containers.column_names(filled)
        names = [names[i] for i in np.flatnonzero(wanted)] if names else names
        if self.indicator_ is not None:
            columns += list(self.indicator_.transform(np.where(holes, np.nan, 0.0)).T)
            names = list(self.get_feature_names_out())
        return output.join(columns, names, filled)

    def _read(self, X: Any, reset: bool) -> Array:
        """Return a copy of X as numbers, with NaN for missing values."""
        marked = self.missing_values
        is_nan = containers.is_missing(marked)
        reader = copy.copy(self)  # a failure leaves self unchanged
        X = schema.Schema(reader).read(
            containers.to_validate(X),
            Gaussian(),
            reset=reset,
            accept_sparse=False,
            ensure_all_finite="allow-nan" if is_nan else True,
        )
        self.__dict__.update(reader.__dict__)
        X = np.array(X, np.float32 if X.dtype == np.float32 else np.float64)
        if not is_nan:
            X[marked == X] = np.nan
        return X

    def _fill(self, X: Array) -> Array:
        """Fill in NaN in numbers X, in place; return X."""
        fitted, missing = self.estimator_._fitted, np.isnan(X)
        wanted = ~self._empty if X.shape[1] == len(self._empty) else slice(None)
        rows = np.flatnonzero(missing[:, wanted].any(axis=1))
        if not len(rows):
            return X
        data, filled = X[rows], np.empty((len(rows), X.shape[1]))
        fill = self._draw if self.sample_posterior else self._expect
        block = fitted.blocks(data, row_of=rows)
        fitted.map_rows(fill(fitted, block), filled, n_draws=self.n_draws, whole_blocks=True)
        block.warn()
        X[rows] = np.where(missing[rows], filled, data)
        return X

    def _expect(self, fitted: FittedModel, block: Blocks) -> Callable[[VAE, slice], list[Array]]:
        """Return a function that computes expected rows, with the fixed draws of the score."""
        noise = fitted.score_noise(self.n_draws)

        def expect(model: VAE, rows: slice) -> list[Array]:
            batch = block(model, rows)
            eps = to_tensor(noise, model.varies.device)
            # Weights are relative to the largest weight so far, so that no exponential overflows.
            largest = torch.tensor(-torch.inf)
            total: Any = 0.0
            mean: Any = 0.0
            for some in eps.split(blocks.draws_at_once(len(batch.y), model.width)):
                z, log_weight = model.weigh(batch._replace(eps=some))
                before, largest = largest, torch.maximum(largest, log_weight.max(0).values)
                weight, shrink = (log_weight - largest).exp(), (before - largest).exp()
                total = shrink * total + weight.sum(0)
                own = (weight.unsqueeze(-1) * model.decode_mean(z)).sum(0)
                mean = shrink.unsqueeze(-1) * mean + own
            return [fitted.restore(model, mean / total.unsqueeze(-1))]

        return expect

    def _draw(self, fitted: FittedModel, block: Blocks) -> Callable[[VAE, slice], list[Array]]:
        """Return a function that draws rows: it chooses a draw of z by its weight, then draws x."""
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        dtype = fitted.dtype

        def draw(model: VAE, rows: slice) -> list[Array]:
            batch, device = block(model, rows), model.varies.device
            # Each block has its own generator, so no draw depends on threads or other blocks.
            rng = np.random.default_rng([seed, rows.start])
            generator = devices.generator(int(rng.integers(2**32)))
            n_rows = len(batch.y)
            shape = self.n_draws, n_rows, fitted.n_components
            eps = to_tensor(rng.standard_normal(shape, dtype), device)
            uniform = to_tensor(rng.random(n_rows, dtype), device)
            z, log_weight = model.weigh(batch._replace(eps=eps))
            shares = log_weight.softmax(0).cumsum(0)
            chosen = (shares < uniform * shares[-1]).sum(0)
            own = z[chosen, torch.arange(n_rows, device=device)]
            return [fitted.restore(model, model.decode_sample(own, generator), drawn=True)]

        return draw

    def get_feature_names_out(self, input_features: ArrayLike | None = None) -> np.ndarray:
        """Return the names of the columns that `transform` returns.

        Parameters
        ----------
        input_features : array-like of str or None, default=None
            Names of the features. If `fit` got names, they must be the same.

        Returns
        -------
        names : ndarray of str
            Names of the features that are kept, then of the columns of the indicator.
        """
        check_is_fitted(self, "estimator_")
        names = _check_feature_names_in(self, input_features)
        kept = names if self.keep_empty_features else names[~self._empty]
        if self.indicator_ is None:
            return kept
        return np.concatenate([kept, self.indicator_.get_feature_names_out(names)])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _hide(X: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return X and copies with hidden values, and for each row the index of its original in X.

    X has one column for a category, its code, so the category is hidden as a whole.
    """
    copies = [X]
    for _ in range(N_COPIES):
        hidden = rng.random(X.shape) < rng.uniform(0, MOST_HIDDEN, (len(X), 1))
        copies.append(np.where(hidden, np.nan, X))
    return np.concatenate(copies), np.tile(np.arange(len(X)), N_COPIES + 1)
