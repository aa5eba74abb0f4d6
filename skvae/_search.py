"""Grid search that trains all its candidates and folds together.

The search trains all models in stacks first, and then lets `GridSearchCV` fit and score. Two kinds
of objects stand in for others there. A `_Candidate` stands in for the estimator. The parameters of
a candidate include its `_Models`, and `fit` of the `_Candidate` chooses one of them by the indices
of the rows that it is given. It does not matter when, where and how often scikit-learn clones and
fits. A `_Scorer` stands in for each scorer, and passes it the estimator itself. All else, such as
results and refit, is scikit-learn's.
"""

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import product
from numbers import Integral
from typing import Any, Literal, NamedTuple, Self

import joblib
import numpy as np
from sklearn import get_config
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.model_selection import GridSearchCV, ParameterGrid, check_cv
from sklearn.pipeline import Pipeline
from sklearn.utils import _safe_indexing, get_tags, indexable
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metadata_routing import _routing_enabled
from sklearn.utils.metaestimators import _safe_split
from sklearn.utils.validation import _check_method_params

from skvae import _callbacks
from skvae._backend.warn import warn
from skvae._fit import packing, report
from skvae._fit.job import Job, Trained
from skvae._fit.preparation import Outcome, n_varying, prepare
from skvae._model.member import Plan
from skvae._typing import Estimator, Rows, Splitter
from skvae._vae import DOC_LINK, VAETransformer

# The name of the parameter by which a candidate carries its models. No step of a Pipeline and no
# parameter has such a name, since it is no identifier.
MODELS = "trained models"


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
    _training: "_Training | None" = None

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
        if not _can_stack(self.estimator):
            return super().fit(X, y, **params)
        scorers, _ = self._get_scorers()
        X, y = indexable(X, y)
        routed = self._get_routed_params_for_fit(_check_method_params(X, params))
        if not routed.estimator.fit.keys() <= _of_rows(self.estimator):
            return super().fit(X, y, **params)
        # The folds are drawn once, so that training and scoring use the same rows.
        cv = check_cv(self.cv, y, classifier=is_classifier(self.estimator))
        splits = list(cv.split(X, y, **routed.splitter.split))
        _check_weights(_name_of(self.estimator, "sample_weight"), splits, routed)
        training = _Training(self.estimator, self.param_grid, X, y, splits, routed)
        scorer = getattr(scorers, "_scorers", scorers)  # by name, if there are several metrics
        # scikit-learn works on a copy of the search, so this search keeps its parameters.
        search = copy.copy(self)
        search.estimator, search.cv, search._training = _Candidate(self.estimator), splits, training
        search.scoring = (
            {name: _Scorer(each) for name, each in scorer.items()}
            if isinstance(scorer, dict)
            else _Scorer(scorer)
        )
        super(VAEGridSearchCV, search).fit(X, y, **params)
        search.scorer_ = scorer
        training.tell_times(search.cv_results_)
        self._take_results(search, cv)
        return self

    def _take_results(self, search: Self, cv: Any) -> None:
        """Take the results of a copy of this search, with the estimator and `cv` of this one."""
        results = {**vars(search)}
        for name in {"_training", *self.get_params(deep=False)}:
            results.pop(name, None)
        if self.refit:
            results["best_estimator_"] = best = search.best_estimator_.estimator
            if hasattr(best, "feature_names_in_"):
                results["feature_names_in_"] = best.feature_names_in_
        if "_checked_cv_orig" in results:  # scikit-learn >= 1.9; the copy has the rows of all folds
            results["_checked_cv_orig"] = cv
        self.__dict__.update(results)

    def _get_routed_params_for_fit(self, params: dict[str, Any]) -> Any:
        """Route as scikit-learn does, and give the groups of the splitter to `fit` as well."""
        if self._training is not None:
            return self._training.routed
        routed = super()._get_routed_params_for_fit(params)
        groups = params.get("groups")
        if groups is not None and not _routing_enabled() and _is_vae(self.estimator):
            routed.estimator.fit[_name_of(self.estimator, "groups")] = groups
        return routed

    def _run_search(
        self, evaluate_candidates: Callable[..., Any], *, callback_ctx: Any = None
    ) -> None:
        """Train all candidates on all folds, then let scikit-learn score them."""
        # scikit-learn sends the search to each worker, so it must not hold the models.
        training, self._training = self._training, None
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
            candidates = training.trained_candidates()
            n_fits = len(candidates) * self.n_splits_
            with begin(search, "scoring", n_subtasks=n_fits, in_order=False) as scoring:
                context = {} if scoring is None else {"callback_ctx": scoring}
                evaluate_candidates(candidates, **context)

    def _format_results(
        self, candidate_params: Sequence[dict[str, Any]], *args: Any, **more: Any
    ) -> dict[str, Any]:
        """Format as scikit-learn does, without the models that candidates carry."""
        plain = [
            {name: value for name, value in params.items() if name != MODELS}
            for params in candidate_params
        ]
        results: dict[str, Any] = super()._format_results(plain, *args, **more)
        return results


# --- stand-ins while scikit-learn fits and scores -----------------------------------------


class _Candidate(_callbacks.CallbackSupportMixin, BaseEstimator):
    """An estimator whose `fit` takes a trained model in place of training, if there is one.

    Parameters other than the models are those of the estimator.
    """

    def __init__(self, estimator: Any, models: "_Models | None" = None) -> None:
        self.estimator = estimator
        self.models = models

    def set_params(self, **params: Any) -> Self:
        self.models = params.pop(MODELS, None)
        self.estimator.set_params(**params)
        return self

    def fit(self, X: Any, y: Any = None, *, rows: np.ndarray, **params: Any) -> Self:
        """Take the model that was trained on rows of these indices, or train on X."""
        model = None if self.models is None else self.models.find(rows)
        if model is not None:
            model.give_to(self.estimator)
        else:
            with _callbacks.lent(self, self.estimator):
                self.estimator.fit(X, y, **params)
        return self

    def __sklearn_tags__(self) -> Any:
        return get_tags(self.estimator)


class _Scorer:
    """A scorer of a `_Candidate`: it passes the estimator to the scorer of the search."""

    def __init__(self, scorer: Callable[..., Any]) -> None:
        self.scorer = scorer

    def __call__(self, candidate: _Candidate, *args: Any, **params: Any) -> Any:
        return self.scorer(candidate.estimator, *args, **params)

    def __getattr__(self, name: str) -> Any:
        """Return what scikit-learn asks of a scorer, such as the metadata that it requests."""
        if name.startswith("__") or name == "scorer":  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.scorer, name)


class _Model(NamedTuple):
    """A trained model, and all that an estimator needs to become it."""

    steps: list[tuple[str, Any]]  # the steps before the last, fitted
    attributes: dict[str, Any]  # of the VAETransformer
    trained: Trained
    plan: Plan
    n_varying: int  # columns that are not constant in the rows trained on

    def give_to(self, estimator: Any) -> None:
        """Make a fitted estimator; warn, or raise an error, as its own `fit` would."""
        report.check_outcome(self.trained, self.plan, self.n_varying)
        _last_step(estimator)._become(self.attributes)
        if isinstance(estimator, Pipeline):
            estimator.steps = [*self.steps, estimator.steps[-1]]


class _Models:
    """The trained models of a candidate, by the indices of the rows that they were trained on."""

    def __init__(self) -> None:
        self._by_rows: dict[str, _Model] = {}

    def add(self, rows: np.ndarray, model: _Model) -> None:
        self._by_rows[_hash(rows)] = model

    def find(self, rows: np.ndarray) -> _Model | None:
        return self._by_rows.get(_hash(rows))

    def __len__(self) -> int:
        return len(self._by_rows)

    def __repr__(self) -> str:
        """Return their number, which scikit-learn prints if `verbose` is above 1."""
        return str(len(self))

    def __sklearn_clone__(self) -> Self:
        return self  # scikit-learn clones the parameters of a candidate for each fold


# --- training -----------------------------------------------------------------------------


class _Prepared(NamedTuple):
    """A candidate on a fold, before training."""

    steps: list[tuple[str, Any]]  # the steps before the last, fitted
    plan: Plan
    n_varying: int
    describe: Outcome  # makes attributes of a record and a state

    def finish(self, trained: Trained) -> _Model:
        attributes = self.describe(trained.record, trained.state)
        return _Model(self.steps, attributes, trained, self.plan, self.n_varying)


class _Fold:
    """The training rows of a fold; results that several candidates share are computed once."""

    def __init__(self, estimator: Any, X: Any, y: Any, params: Mapping[str, Any], rows: Any):
        self.X, self.y = _safe_split(estimator, X, y, rows)
        self.params = _check_method_params(X, params, rows)  # of `fit`
        self._seen: dict[str, Any] = {}

    def transform(self, pipeline: Any, params: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        """Fit the steps before the last; return the rows after them, the steps, and a memo.

        `params` are the parameters of these steps that the search sets. An error is raised again
        for each candidate.
        """
        key = _hash(params)
        if key not in self._seen:
            try:
                self._seen[key] = self._transform(pipeline)
            except Exception as error:
                self._seen[key] = error
        if isinstance(self._seen[key], Exception):
            raise ValueError("An earlier step failed.") from self._seen[key]
        X, steps, memo = self._seen[key]
        return X, steps, memo

    def _transform(self, pipeline: Any) -> tuple[Any, Any, Any]:
        if not isinstance(pipeline, Pipeline) or len(pipeline) == 1:
            return self.X, [], {}
        first = pipeline[:-1]
        return first.fit_transform(self.X, self.y), first.steps, {}


class _Training:
    """The training of all candidates of a search on all its folds.

    The number of a model is that of its candidate times the number of folds, plus that of its fold.
    """

    def __init__(
        self, estimator: Any, param_grid: Any, X: Any, y: Any, splits: Sequence[Any], routed: Any
    ) -> None:
        self.estimator, self.X, self.y = estimator, X, y
        self.candidates: list[dict[str, Any]] = list(ParameterGrid(param_grid))
        index = np.arange(X.shape[0] if hasattr(X, "shape") else len(X))
        self.rows = [_safe_indexing(index, train) for train, _ in splits]
        self.params = dict(routed.estimator.fit)
        # The `fit` of a `_Candidate` gets the indices of its rows like any metadata of rows.
        routed.estimator.fit["rows"] = index
        self.routed = routed
        self.models = [_Models() for _ in self.candidates]
        self.seconds = np.full((len(self.candidates), len(splits)), np.nan)
        self.prepared: dict[int, _Prepared] = {}
        self.errors: dict[int, Exception] = {}

    def rounds(self) -> list[range]:
        """Return groups of folds that train together: as many as `working_memory` holds, or one."""
        room = get_config()["working_memory"] * 2**20
        n_bytes = 8 * max(1, math.prod(getattr(self.X, "shape", np.shape(self.X))))
        at_once, folds = max(1, int(room // n_bytes)), range(len(self.rows))
        return [folds[first : first + at_once] for first in folds[::at_once]]

    def prepare(self, folds: Iterable[int]) -> dict[int, Job]:
        """Return the jobs of candidates on these folds, by number.

        Candidates without a job are fitted by themselves.
        """
        hashes = [_hash(rows) for rows in self.rows]
        shared: dict[int, _Fold] = {}
        jobs: dict[int, Job] = {}
        for (candidate, params), fold in product(enumerate(self.candidates), folds):
            number = candidate * len(self.rows) + fold
            if hashes.count(hashes[fold]) > 1:  # the rows do not tell such folds apart
                continue
            try:
                if fold not in shared:
                    data = self.estimator, self.X, self.y, self.params
                    shared[fold] = _Fold(*data, self.rows[fold])
                jobs[number], self.prepared[number] = self._prepare(params, shared[fold])
            except (TypeError, ValueError):  # the candidate's own `fit` raises it again
                continue
            except Exception as error:
                self.errors[number] = error
        return jobs

    def _prepare(self, params: dict[str, Any], fold: _Fold) -> tuple[Job, _Prepared]:
        """Prepare a candidate on a fold, or raise an error if it must be fitted by itself."""
        estimator = clone(self.estimator).set_params(**clone(params, safe=False))
        if not _can_stack(estimator) or not self.params.keys() <= _of_rows(estimator):
            raise TypeError("No stack takes this estimator.")
        of_steps: dict[str, Any] = {}
        if isinstance(estimator, Pipeline):
            last = estimator.steps[-1][0]
            of_steps = {name: v for name, v in params.items() if name.split("__")[0] != last}
        X, steps, memo = fold.transform(estimator, of_steps)
        vae = _last_step(estimator)
        vae._validate_params()
        weight = fold.params.get(_name_of(estimator, "sample_weight"))
        groups = fold.params.get(_name_of(estimator, "groups"))
        job, describe = prepare(vae, X, memo, weight, groups)
        prepared = _Prepared(steps, job.plan, n_varying(job), describe)
        return job._replace(keeps_progress=False), prepared

    def run(self, jobs: dict[int, Job], stacks: list[list[int]], watch: Callable[..., Any]) -> None:
        """Train stacks of jobs, and keep their models."""
        trained, seconds, errors = packing.run_all(jobs, stacks, watch)
        self.errors.update(errors)
        for number, outcome in trained.items():
            candidate, fold = divmod(number, len(self.rows))
            model = self.prepared.pop(number).finish(outcome)
            self.models[candidate].add(self.rows[fold], model)
            self.seconds[candidate, fold] = seconds[number]

    def warn_of_errors(self) -> None:
        """Warn if models could not be trained in a stack, and say why."""
        if self.errors:
            error = next(iter(self.errors.values()))
            warn(
                f"{len(self.errors)} of {self.seconds.size} models could not be trained in a stack "
                f"({type(error).__name__}: {error}) and are fitted by themselves, which takes "
                "longer. If memory is short, set max_stack. Use a function of a module in place of "
                "a lambda in param_grid."
            )

    def trained_candidates(self) -> list[dict[str, Any]]:
        """Return the parameters of all candidates, with the models of those that have any."""
        return [
            {**params, MODELS: models} if models else params
            for params, models in zip(self.candidates, self.models, strict=True)
        ]

    def tell_times(self, results: Mapping[str, np.ndarray]) -> None:
        """Write each model's share of its stack's time into the results."""
        known = np.isfinite(self.seconds).all(axis=1)
        results["mean_fit_time"][known] = self.seconds[known].mean(axis=1)
        results["std_fit_time"][known] = self.seconds[known].std(axis=1)


def _hash(value: Any) -> str:
    """Return a hash of arrays, or of parameters."""
    return str(joblib.hash(value))


# --- estimators that can be stacked -------------------------------------------------------


def _last_step(estimator: Any) -> Any:
    """Return the last step of a Pipeline, or any other estimator itself."""
    return estimator.steps[-1][1] if isinstance(estimator, Pipeline) else estimator


def _name_of(estimator: Any, argument: str) -> str:
    """Return the name by which `fit` passes an argument to its VAETransformer only."""
    if isinstance(estimator, Pipeline):
        return f"{estimator.steps[-1][0]}__{argument}"
    return argument


def _of_rows(estimator: Any) -> set[str]:
    """Return the names of the arguments about rows that `fit` passes to its VAETransformer."""
    return {_name_of(estimator, argument) for argument in ("sample_weight", "groups")}


def _is_vae(estimator: Any) -> bool:
    """Whether the last step is a VAETransformer, whose `fit` takes groups."""
    try:
        return isinstance(_last_step(estimator), VAETransformer)
    except Exception:  # scikit-learn says what is wrong with the steps
        return False


def _can_stack(estimator: Any) -> bool:
    """True for a VAETransformer, or a plain Pipeline ending in one, without callbacks."""
    try:
        vae = _last_step(estimator)
    except Exception:  # scikit-learn says what is wrong with the steps
        return False
    # A Pipeline of another kind may do anything in its `fit`, such as leave out rows.
    known = estimator is vae or type(estimator) is Pipeline
    watched = any(hasattr(part, "_skl_callbacks") for part in (estimator, vae))
    return known and not watched and getattr(type(vae), "fit", None) is VAETransformer.fit


def _check_weights(name: str, splits: Sequence[Any], routed: Any) -> None:
    """Refuse weights that are zero in all rows that a fold trains on, or is scored on.

    The score of such a fold is NaN, and so is the mean of each candidate: none would be the best.
    """
    weights = routed.estimator.fit.get(name), routed.scorer.score.get("sample_weight")
    for fold, rows in enumerate(splits):
        for kind, weight, own in zip(("training", "test"), weights, rows, strict=True):
            # Weights of another length are refused later, where they are read.
            is_whole = np.ndim(weight) == 1 and len(weight) > np.max(own, initial=0)
            if is_whole and not np.any(_safe_indexing(weight, own)):
                raise ValueError(
                    f"{name} is zero in all {kind} rows of fold {fold} of cv, so that no candidate "
                    "has a score there. Leave out the rows of weight 0, or mix the rows of the "
                    "folds, such as by cv=KFold(shuffle=True)."
                )
