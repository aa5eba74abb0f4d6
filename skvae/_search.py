"""Grid search that trains all its candidates and folds together.

The search trains all models in stacks first, and then lets `GridSearchCV` fit and score. The
parameters of a candidate carry its trained models as one more parameter, and a `_Template` makes
an estimator of them. The `fit` of that estimator chooses a model by the indices of the rows that it
is given. It does not matter when, where and how often scikit-learn clones and fits. All else, such
as scoring and refit, is scikit-learn's.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from numbers import Integral
from typing import Any, Literal, Self

import numpy as np
from sklearn.base import clone, is_classifier
from sklearn.model_selection import GridSearchCV, check_cv
from sklearn.utils import indexable
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metadata_routing import _routing_enabled

from skvae import _callbacks
from skvae._candidates import (
    MODELS,
    Models,
    Training,
    can_stack,
    check_weights,
    name_of,
    of_rows,
    vae_of,
)
from skvae._fit import packing
from skvae._typing import Estimator, Rows, Splitter
from skvae._vae import DOC_LINK


class VAEGridSearchCV(GridSearchCV):
    """`GridSearchCV` that trains all candidates and folds as stacks of models.

    It has the parameters, attributes and results of scikit-learn's `GridSearchCV`, and is two to
    five times faster for models as small as those of a table. Candidates and folds whose tensors
    have one shape are trained at once, with stacked weights. Each model has its own rows, noise,
    `beta`, `beta_warmup`, `learning_rate`, `weight_decay`, `max_iter`, patience and
    `random_state`. Models that differ in `n_components` share a stack. Another value of
    `likelihood`, `network`, `hidden_layer_sizes`, `activation` or `batch_size`, or another number
    of rows, makes another stack. A model that cannot be stacked is fitted by itself.

    Parameters
    ----------
    estimator : VAETransformer or Pipeline
        The estimator to tune. The earlier steps of a Pipeline that ends in a VAETransformer are
        fitted once for each fold and each of their own candidates.

    param_grid : dict or list of dict
        Names of parameters, and the values to try.

    scoring : str, callable, list, tuple or dict, default=None
        As in `GridSearchCV`. None is the estimator's `score`, the mean ELBO.

    n_jobs : int, default=None
        Number of processes that score the trained models, and that fit models which cannot be
        stacked. Stacks use torch's threads for every `n_jobs`.

    refit : bool, str or callable, default=True
        As in `GridSearchCV`. The best candidate is refitted by itself.

    cv : int, cross-validation generator or iterable, default=None
        As in `GridSearchCV`.

    verbose : int, default=0
        As in `GridSearchCV`.

    pre_dispatch : int or str, default="2*n_jobs"
        As in `GridSearchCV`.

    error_score : "raise" or numeric, default=np.nan
        As in `GridSearchCV`: the score of a candidate whose loss is not finite in its first
        epoch.

    return_train_score : bool, default=False
        As in `GridSearchCV`.

    max_stack : int or "auto", default="auto"
        Largest number of models in a stack. "auto" takes as many as scikit-learn's
        `working_memory` (1 GiB) has room for, shared by the stacks that train at once, and at most
        32 on a CPU. On a CUDA device it takes as many as half of its free memory has room for, if
        that is more.

    Attributes
    ----------
    cv_results_, best_estimator_, best_score_, best_params_, best_index_, scorer_, n_splits_,
    refit_time_, multimetric_, n_features_in_, feature_names_in_ :
        As in `GridSearchCV`. The `fit_time` of a model is its share of its stack's.

    See Also
    --------
    sklearn.model_selection.GridSearchCV : The same, one fit after the other.

    Notes
    -----
    A model in a stack takes the same steps, on the same batches and noise, as by itself.
    Sums in another order round differently, and training amplifies that, most where a model
    overfits. In float32, on the diabetes data of scikit-learn, 5 folds, 3 seeds and 6 candidates
    (beta 0.5, 1 and 4; 2 and 4 components), the scores of a fold agree to 1e-6 nats after 20
    epochs, to 0.02 after 150, and to 2.3 after the default 300: half of them to 1e-6 even then,
    and the largest difference is that of beta=0.5. Candidates whose scores are the same, or
    nearly so, may then be ranked in another order. With ``precision="float64"`` they agree to
    1e-6 at the end of a default fit.

    Folds train together if `working_memory` holds the rows of all of them, and one after the other
    otherwise. The weights of all models of these folds are in memory before they are trained, and
    the weights of all models of the search until they are scored.

    Ctrl-C while stacks train ends the search. In a model that is fitted by itself, such as the
    refit, it ends that fit only, which keeps the weights of its last complete epoch. A callback
    that asks to stop stops its stack, whose models are then scored as they are. A model's own
    `verbose` prints nothing in a stack; callbacks of the search, such as scikit-learn's
    `ProgressBar`, see its epochs.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from skvae import VAEGridSearchCV, VAETransformer
    >>> X = load_diabetes().data
    >>> vae = VAETransformer(hidden_layer_sizes=(8,), max_iter=50, random_state=0)
    >>> search = VAEGridSearchCV(vae, {"beta": [1, 4], "n_components": [1, 4]}, cv=3)
    >>> search.fit(X).best_params_
    {'beta': 1, 'n_components': 4}
    """

    __module__ = "skvae"
    _doc_link_module, _doc_link_template = DOC_LINK

    cv_results_: dict[str, Any]
    best_estimator_: Any
    best_score_: float
    best_params_: dict[str, Any]
    best_index_: int
    scorer_: Any
    n_splits_: int
    refit_time_: float
    multimetric_: bool
    feature_names_in_: np.ndarray

    # What a copy of the search trains before scikit-learn scores; None in all other searches.
    _training: Training | None = None

    _parameter_constraints: dict[str, Any] = {
        **GridSearchCV._parameter_constraints,
        "max_stack": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
    }

    def __init__(
        self,
        estimator: Estimator,
        param_grid: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        scoring: str | Callable[..., Any] | Sequence[str] | Mapping[str, Any] | None = None,
        n_jobs: int | None = None,
        refit: bool | str | Callable[..., Any] = True,
        cv: int | Splitter | Iterable[Any] | None = None,
        verbose: int = 0,
        pre_dispatch: int | str = "2*n_jobs",
        error_score: float | Literal["raise"] = np.nan,
        return_train_score: bool = False,
        max_stack: int | Literal["auto"] = "auto",
    ) -> None:
        super().__init__(
            estimator,
            param_grid,
            scoring=scoring,
            n_jobs=n_jobs,
            refit=refit,
            cv=cv,
            verbose=verbose,
            pre_dispatch=pre_dispatch,
            error_score=error_score,
            return_train_score=return_train_score,
        )
        self.max_stack = max_stack

    def fit(self, X: Rows, y: Any = None, **params: Any) -> Self:
        """Train and score all candidates on all folds, then refit the best.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training data.
        y : array-like of shape (n_samples,), default=None
            For the splitter, the scorer and the earlier steps of a Pipeline.
        **params : dict of str -> object
            As in `GridSearchCV`. `groups` go to the splitter and to the `fit` of the
            VAETransformer, which holds out whole groups; if metadata routing is enabled, they go
            to the objects that request them. If `fit` of the estimator gets parameters other than
            `sample_weight` and `groups` of the VAETransformer, each candidate is fitted by itself.

        Returns
        -------
        self : VAEGridSearchCV
            The fitted search.

        Raises
        ------
        ValueError
            If `sample_weight` is zero in all rows that a fold trains on or is scored on. All errors
            of `GridSearchCV` are raised, too.
        """
        self._validate_params()
        if not can_stack(self.estimator):
            return super().fit(X, y, **params)
        X, y = indexable(X, y)
        routed = self._get_routed_params_for_fit(params)
        if not routed.estimator.fit.keys() <= of_rows(self.estimator):
            return super().fit(X, y, **params)
        cv = check_cv(self.cv, y, classifier=is_classifier(self.estimator))
        # The folds are drawn once, so that training and scoring use the same rows.
        splits = list(cv.split(X, y, **routed.splitter.split))
        check_weights(name_of(self.estimator, "sample_weight"), splits, routed)
        # scikit-learn works on a copy of the search, so this search keeps its parameters.
        search = copy.copy(self)
        search._training = Training(self.estimator, self.param_grid, X, y, splits, routed)
        search.estimator, search.cv = _with_template(self.estimator, len(splits)), splits
        super(VAEGridSearchCV, search).fit(X, y, **params)
        del search.estimator.__sklearn_clone__  # `scorer_` may hold this estimator
        results = vars(search).keys() - self.get_params(deep=False).keys()
        self.__dict__.update({name: vars(search)[name] for name in results})
        if "_checked_cv_orig" in results:  # from scikit-learn 1.9 on
            self._checked_cv_orig = cv
        return self

    def _get_routed_params_for_fit(self, params: dict[str, Any]) -> Any:
        """Route as scikit-learn does, and give the groups of the splitter to `fit` as well."""
        if self._training is not None:
            return self._training.routed
        routed = super()._get_routed_params_for_fit(params)
        groups = params.get("groups")
        if groups is not None and not _routing_enabled() and vae_of(self.estimator) is not None:
            routed.estimator.fit[name_of(self.estimator, "groups")] = groups
        return routed

    def _run_search(
        self, evaluate_candidates: Callable[..., Any], *, callback_ctx: Any = None
    ) -> None:
        """Train all candidates on all folds, then let scikit-learn score them."""
        # scikit-learn sends the search to each worker, so it must not hold the models.
        training: Training | None = self.__dict__.pop("_training", None)
        if training is None:
            context = {} if callback_ctx is None else {"callback_ctx": callback_ctx}
            return super()._run_search(evaluate_candidates, **context)
        begin = partial(_callbacks.task, self)
        rounds = training.rounds()
        with begin(callback_ctx, "search", n_subtasks=len(rounds) + 1) as search:
            for folds in rounds:
                jobs = training.prepare(folds)
                stacks = packing.gather(jobs, self.max_stack)
                if self.verbose > 0:
                    print(f"Training {len(jobs)} models, stacks: {len(stacks)}")
                with begin(search, "training", n_subtasks=len(stacks), in_order=False) as parent:
                    training.run(jobs, stacks, partial(_callbacks.watch_stack, self, parent))
            training.warn_of_errors()
            n_fits = training.seconds.size
            with begin(search, "scoring", n_subtasks=n_fits, in_order=False) as scoring:
                context = {} if scoring is None else {"callback_ctx": scoring}
                results = evaluate_candidates(training.trained_candidates(), **context)
        training.tell_times(results)
        results["params"] = training.candidates  # without models, for the user and the refit


# --- estimators of candidates -------------------------------------------------------------


def _with_template(estimator: Estimator, n_folds: int) -> Any:
    """Return a clone of an estimator whose own clone is a `_Template`."""
    cloned: Any = clone(estimator)
    cloned.__sklearn_clone__ = partial(copy.copy, _Template(clone(estimator), n_folds))
    return cloned


class _Template:
    """It stands in for clones of an estimator, until scikit-learn sets the parameters.

    scikit-learn gets the estimator of a candidate by ``clone(estimator).set_params(**parameters)``.
    It clones once for each candidate and fold. The number of the fold is needed only if folds have
    the same training rows, so that they get models of their own.
    """

    def __init__(self, estimator: Any, n_folds: int) -> None:
        self.estimator, self.n_folds = estimator, n_folds
        self.fold = -1  # of the last clone

    def __sklearn_clone__(self) -> Self:
        self.fold = (self.fold + 1) % self.n_folds
        return copy.copy(self)

    def set_params(self, **params: Any) -> Any:
        """Return an estimator with these parameters, whose `fit` takes a trained model."""
        models = params.pop(MODELS, None)
        estimator = clone(self.estimator).set_params(**params)
        estimator.fit = partial(_fit, estimator, models, self.fold)
        return estimator


def _fit(
    estimator: Any,
    models: Models | None,
    fold: int,
    X: Any,
    y: Any = None,
    *,
    rows: np.ndarray,
    **params: Any,
) -> Any:
    """Take the model that was trained on rows of these indices, or train on X."""
    del estimator.fit  # the method of its class comes back
    model = None if models is None else models.find(rows, fold)
    if model is None:
        return estimator.fit(X, y, **params)
    model.give_to(estimator)
    return estimator
