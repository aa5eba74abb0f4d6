"""Missing values filled in from what a model says of them.

What is missing, x_m, has the density p(x_m|x_o) = E[p(x_m|z)] over p(z|x_o), given what is there.
Draws z of the posterior q(z|x_o) with weights p(x_o, z) / q(z|x_o), divided by their sum, stand for
p(z|x_o): the weighted mean of E[x_m|z] is the imputation (Mattei & Frellsen, MIWAE, 2019,
arXiv:1812.02633, eq. 11), and one z chosen by its weight, and x_m drawn from p(x_m|z), a draw of it
(eq. 12).
"""

import copy
from numbers import Integral
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import scipy.sparse
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.utils import check_array
from sklearn.utils._param_validation import Interval
from sklearn.utils._set_output import _get_output_config
from sklearn.utils.validation import (
    _check_feature_names_in,
    check_is_fitted,
    check_random_state,
    validate_data,
)

from skvae._backend import blocks, devices
from skvae._backend.tensors import to_tensor
from skvae._backend.warn import warn
from skvae._data import codes, containers, schema, weighting, words
from skvae._typing import Groups, RandomState, Rows, fit_context
from skvae._vae import DOC_LINK, VAETransformer
from skvae.likelihoods import Gaussian, _choice

if TYPE_CHECKING:
    from sklearn.impute import MissingIndicator

# Every model is trained on the rows and on copies of them of which further values are hidden, up to
# half of a row's. An encoder that has seen one pattern of holes in each row remembers rows, and one
# that has seen complete rows cannot tell a missing value from the mean of its column.
N_COPIES, MOST_HIDDEN = 4, 0.5
# Of the model that estimator=None is, besides its likelihood and seed. On digits the copies took
# 6 % off the error, and a noise of each column, where one of each value excuses errors, another
# 8 %; five draws (MIWAE) a little. All rows are trained on, to the last epoch.
DEFAULT = {
    "n_components": 16,
    "n_importance_samples": 5,
    "early_stopping": False,
    "max_iter": 200,
}


class VAEImputer(TransformerMixin, BaseEstimator):
    """Fill in missing values by a `VAETransformer`.

    An imputer as scikit-learn's are: values that are there stay what they are. Of a table with
    columns of several kinds, such as categories, it gives back a table.

    Parameters
    ----------
    estimator : VAETransformer or None, default=None
        The model of the columns. It is fitted to X and to four copies of X in which further
        values are hidden, at random, up to half of a row's: it learns to tell what is missing from
        what is there, also where X has no holes. The estimator's own `random_state` decides which
        values are hidden. None is ``VAETransformer(16, likelihood=Gaussian("per_feature"),
        n_importance_samples=5, early_stopping=False, max_iter=200, random_state=random_state)``,
        with ``likelihood="auto"`` for a table with columns that are no numbers.

    missing_values : int, float or nan, default=np.nan
        What stands for a missing value in X.

    n_draws : int, default=64
        Draws of z for each row that has missing values.

    sample_posterior : bool, default=False
        Whether to draw missing values, for multiple imputation: several imputers that differ in
        `random_state` alone then differ as much as the model is unsure. A row's draws depend on
        its place in X. Else each is the value to expect, the same at every call.

    add_indicator : bool, default=False
        Whether to add columns that say which values were missing, as `MissingIndicator` does.

    keep_empty_features : bool, default=False
        Whether columns without any value in `fit`, which a warning names, are given back, their
        missing values filled in with 0, or left out.

    random_state : int, RandomState instance or None, default=None
        Decides the draws of `sample_posterior`, and the fit of the model that None is.

    Attributes
    ----------
    estimator_ : VAETransformer
        The fitted model: of the columns that have values, and where its likelihood reads tables,
        as "auto" does, of all columns.

    indicator_ : MissingIndicator or None
        What adds columns, where `add_indicator` asks for it.

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
        """Fit the model to what is there of X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows, with or without missing values: others are hidden in copies of the rows.
        y : Ignored
            Present for the API's sake. One that looks like rows to validate on is refused.
        sample_weight : float or array-like of shape (n_samples,), default=None
            How much each row counts, as in `VAETransformer.fit`. Of an array, infinity is refused
            in rows of weight 0, too.
        groups : array-like of shape (n_samples,), default=None
            Which rows belong together, as in `VAETransformer.fit`: where the model holds out rows,
            a group is held out whole. The copies of a row always are.

        Returns
        -------
        self : VAEImputer
            The fitted imputer.
        """
        fitted = copy.copy(self)  # so that a failure leaves self alone
        weighting.check_target(X, y)
        fitted._fit(X, sample_weight=sample_weight, groups=groups)
        vars(self).pop("feature_names_in_", None)
        vars(self).update(vars(fitted))
        return self

    def _fit(self, X, **of_rows):
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
                "Input X has only missing values. VAEImputer needs some to learn from."
            )
        if empty.any():
            labels = words.Labels(getattr(self, "feature_names_in_", None))
            what = "fills them with 0" if self.keep_empty_features else "leaves them out"
            warn(
                f"X has no value in {words.listed(map(labels.of, np.flatnonzero(empty)))}: all "
                f"are missing. VAEImputer {what}, as keep_empty_features="
                f"{self.keep_empty_features} says. Drop such columns, or fit on rows that have "
                "values there."
            )
        self.estimator_ = self._fit_model(estimator, X[:, ~empty], of_rows)
        self._end_fit(X, empty)

    def _fit_table(self, estimator, X, of_rows):
        if not containers.is_missing(self.missing_values):
            raise ValueError(
                f"missing_values={self.missing_values!r} is for numbers of one likelihood. Make "
                "missing values NaN, None or NA in a table whose columns are of several kinds."
            )
        validate_data(self, X, skip_check_array=True)
        self.estimator_ = self._fit_model(estimator, X, of_rows)
        X = self.estimator_._fitted.read(X)
        self._end_fit(X, np.isnan(X).all(axis=0))

    def _fit_model(self, estimator, X, of_rows):
        seed = int(check_random_state(estimator.random_state).randint(np.iinfo(np.int32).max))
        rng = np.random.default_rng(seed)
        return estimator._fit_changed(X, lambda data: _hide(data, rng), **of_rows)

    def _end_fit(self, X, empty):
        self.indicator_ = None
        if self.add_indicator:
            from sklearn.impute import MissingIndicator  # with half of scikit-learn behind it

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
            Without columns that had no value in `fit`, and with those of the indicator. A
            DataFrame where one with columns of several kinds was fitted.
        """
        check_is_fitted(self)
        if self.estimator_._fitted.schema.gives_tables:
            return self._transform_table(X)
        X = self._read(X, reset=False)
        if not self.estimator_._fitted.knows_holes:  # in a file of an earlier version
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

    def _transform_table(self, X):
        X = containers.to_validate(X)
        validate_data(self, X, reset=False, skip_check_array=True)
        fitted, container = self.estimator_._fitted, _get_output_config("transform", self)["dense"]
        numbers = np.array(fitted.read(X))
        # A category that `fit` has not seen is no hole, though the model doesn't see it.
        for i in fitted.schema.categories:
            numbers[numbers[:, i] == codes.UNSEEN, i] = np.nan
        own = None if container == "default" else container
        filled = fitted.schema.write(self._fill(numbers), getattr(X, "index", None), own)
        holes = containers.holes(X)
        for i in np.flatnonzero(self._empty).tolist():
            filled = containers.replace(filled, i, 0)
        filled = containers.fill(X, filled, holes)
        if not self.keep_empty_features and self._empty.any():
            filled = containers.take(filled, ~self._empty)
        if self.indicator_ is None:
            return filled
        added = self.indicator_.transform(np.where(holes, np.nan, 0.0))
        return containers.append(filled, added, self.get_feature_names_out())

    def _read(self, X, reset):
        containers.check_rows(X)
        marked = self.missing_values
        is_nan = containers.is_missing(marked)
        how = {"dtype": [np.float64, np.float32], "copy": True}
        try:
            finite = "allow-nan" if is_nan else True
            X = validate_data(self, X, reset=reset, ensure_all_finite=finite, **how)
        except ValueError as error:
            if "infinity" in str(error):
                numbers = check_array(X, ensure_all_finite=False, **how)
                schema.refuse_infinity(numbers, containers.names(X))
            raise
        if not is_nan:
            X[marked == X] = np.nan
        return X

    def _fill(self, X):
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

    def _expect(self, fitted, block):
        """Return a function that computes expected rows, by the fixed draws of the score."""
        noise = fitted.score_noise(self.n_draws)

        def expect(model, rows):
            batch = block(model, rows)
            eps = to_tensor(noise, model.varies.device)
            largest, total, mean = torch.tensor(-torch.inf), 0.0, 0.0
            for some in eps.split(blocks.draws_at_once(len(batch.y), model.width)):
                z, log_weight = model.weigh(batch._replace(eps=some))
                before, largest = largest, torch.maximum(largest, log_weight.max(0).values)
                weight, shrink = (log_weight - largest).exp(), (before - largest).exp()
                total = shrink * total + weight.sum(0)
                own = (weight.unsqueeze(-1) * model.decode_mean(z)).sum(0)
                mean = shrink.unsqueeze(-1) * mean + own
            return [fitted.restore(model, mean / total.unsqueeze(-1))]

        return expect

    def _draw(self, fitted, block):
        """Return a function that draws rows, by draws of z chosen by their weights."""
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        dtype = fitted.dtype

        def draw(model, rows):
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
        """The names of the columns that `transform` gives back.

        Parameters
        ----------
        input_features : array-like of str or None, default=None
            Names of the features, those of `fit` if there are any.

        Returns
        -------
        names : ndarray of str
            The features that are kept, and those of the indicator.
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


def _hide(X, rng):
    """Rows X and copies of them without some of their values; and which row each is a copy of.

    X holds a code for a category, so that the whole value is hidden.
    """
    copies = [X]
    for _ in range(N_COPIES):
        hidden = rng.random(X.shape) < rng.uniform(0, MOST_HIDDEN, (len(X), 1))
        copies.append(np.where(hidden, np.nan, X))
    return np.concatenate(copies), np.tile(np.arange(len(X)), N_COPIES + 1)
