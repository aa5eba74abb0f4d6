"""Grid search that trains all its candidates and folds together.

The search trains all models in stacks first, and then lets `GridSearchCV` fit and score. Each
candidate and fold gets a clone of the estimator whose training is done already: its `fit` only sets
the trained state. It does so only if rows and parameters are those that the state was trained for;
otherwise it trains. Everything else, such as scoring, is scikit-learn's.
"""

import contextlib
import copy
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from numbers import Integral
from typing import Any, Literal, NamedTuple, Self, TypeAlias

import joblib
import numpy as np
from sklearn import get_config
from sklearn.base import clone, is_classifier
from sklearn.model_selection import GridSearchCV, ParameterGrid, check_cv
from sklearn.pipeline import Pipeline
from sklearn.utils import _safe_indexing
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metadata_routing import _routing_enabled
from sklearn.utils.metaestimators import _safe_split
from sklearn.utils.validation import _check_method_params

from skvae._backend.warn import warn
from skvae._fit import packing, report
from skvae._fit.job import Job, Trained
from skvae._fit.preparation import Outcome, n_varying, prepare
from skvae._model.member import Plan
from skvae._typing import Estimator, Rows, Splitter
from skvae._vae import DOC_LINK, VAETransformer

Fingerprint: TypeAlias = tuple[Any, Any]  # hashes of rows and of parameters of `fit`
Key: TypeAlias = tuple[Fingerprint, Any]


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
        routed = self._get_routed_params_for_fit(params)
        of_fit = routed.estimator.fit
        passed = {**of_fit, **routed.scorer.score}
        # Groups may be given for the splitter alone.
        given = {_name_of(self.estimator, "groups"): params.get("groups"), **params}
        renamed = any(given.get(name) is not value for name, value in passed.items())
        if renamed or not of_fit.keys() <= _of_rows(self.estimator):
            return super().fit(X, y, **params)
        # The folds are drawn once, so that training and scoring use the same rows.
        cv = check_cv(self.cv, y, classifier=is_classifier(self.estimator))
        splits = list(cv.split(X, y, **routed.splitter.split))
        name = _name_of(self.estimator, "sample_weight")
        _check_weights(name, splits, of_fit.get(name), routed.scorer.score.get("sample_weight"))
        # This copy of the search gets trained estimators.
        search = copy.copy(self)
        search._handout = handout = _Handout(self.estimator, X, y, splits, of_fit)
        search.estimator, search.cv = handout.entry(), check_cv(splits)
        super(VAEGridSearchCV, search).fit(X, y, **passed)
        results = vars(search).keys() - self.get_params(deep=False).keys()
        self.__dict__.update({name: vars(search)[name] for name in results})
        self._checked_cv_orig = cv  # as `GridSearchCV` keeps it, and not the rows of all folds
        handout.tell_times(self.cv_results_)
        return self

    def _get_routed_params_for_fit(self, params: dict[str, Any]) -> Any:
        """Route as scikit-learn does, and give the groups of the splitter to `fit` as well."""
        routed = super()._get_routed_params_for_fit(params)
        groups = params.get("groups")
        if groups is not None and not _routing_enabled() and _is_vae(self.estimator):
            routed.estimator.fit[_name_of(self.estimator, "groups")] = groups
        return routed

    def _run_search(
        self, evaluate_candidates: Callable[..., Any], *, callback_ctx: Any = None
    ) -> None:
        """Train all candidates on all folds, then let scikit-learn score them."""
        handout: _Handout | None = self.__dict__.pop("_handout", None)
        if handout is None:
            context = {} if callback_ctx is None else {"callback_ctx": callback_ctx}
            return super()._run_search(evaluate_candidates, **context)
        candidates = list(ParameterGrid(self.param_grid))
        rounds = handout.plan(candidates)
        if callback_ctx is None:  # scikit-learn < 1.9
            for folds in rounds:
                stacks = handout.prepare(folds, self.max_stack, self.verbose)
                handout.train(stacks, lambda place, n: contextlib.nullcontext(lambda: False))
            handout.finish()
            return evaluate_candidates(candidates)
        with _task(self, callback_ctx, "search", max_subtasks=len(rounds) + 1) as search:
            for folds in rounds:
                stacks = handout.prepare(folds, self.max_stack, self.verbose)
                with _task(self, search, "training", None, len(stacks), False) as training:
                    handout.train(stacks, lambda *stack, task=training: _watch(self, task, *stack))
            handout.finish()
            n_fits = len(candidates) * self.n_splits_
            with _task(self, search, "scoring", None, n_fits, False) as scoring:
                evaluate_candidates(candidates, callback_ctx=scoring)


# --- progress -----------------------------------------------------------------------------

# Callbacks are not safe in threads, and stacks run in threads.
_one_at_a_time = threading.RLock()


@contextlib.contextmanager
def _task(
    search: Any,
    parent: Any,
    name: str,
    task_id: int | None = None,
    max_subtasks: int = 0,
    sequential_subtasks: bool = True,
) -> Iterator[Any]:
    """A task of scikit-learn's callbacks."""
    with _one_at_a_time:
        task = parent.subcontext(name, task_id, max_subtasks, sequential_subtasks)
        task.call_on_fit_task_begin(estimator=search)
    yield task
    with _one_at_a_time:
        task.call_on_fit_task_end(estimator=search)


@contextlib.contextmanager
def _watch(search: Any, training: Any, number: int, n_epochs: int) -> Iterator[Callable[[], bool]]:
    """Yield the function to call after each epoch of a stack, within the task of the stack."""
    with _task(search, training, "stack", number, n_epochs) as stack:

        def end_epoch() -> bool:
            with _one_at_a_time:
                epoch = stack.subcontext("epoch").call_on_fit_task_begin(estimator=search)
                return epoch.call_on_fit_task_end(estimator=search)

        yield end_epoch


# --- training, and handing it out ---------------------------------------------------------


def _last_step(estimator: Any) -> Any:
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


def _check_weights(name: str, splits: Sequence[Any], of_fit: Any, of_score: Any) -> None:
    """Refuse weights that are zero in all rows that a fold trains on, or is scored on.

    The score of such a fold is NaN, and so is the mean of each candidate: none would be the best.
    """
    for fold, rows in enumerate(splits):
        for kind, weight, own in zip(("training", "test"), (of_fit, of_score), rows, strict=True):
            # Weights of another length are refused later, where they are read.
            is_whole = np.ndim(weight) == 1 and len(weight) > np.max(own, initial=0)
            if is_whole and not np.any(_safe_indexing(weight, own)):
                raise ValueError(
                    f"{name} is zero in all {kind} rows of fold {fold} of cv, so that no candidate "
                    "has a score there. Leave out the rows of weight 0, or mix the rows of the "
                    "folds, such as by cv=KFold(shuffle=True)."
                )


def _fingerprint(X: Any, params: Mapping[str, Any]) -> Fingerprint:
    """Return hashes of rows and of parameters of `fit`."""
    return joblib.hash(np.asarray(X)), joblib.hash(params)


def _key(estimator: Any, names: Iterable[str], fingerprint: Fingerprint) -> Key:
    """Return a key of a fit: its rows, and the parameters of these names."""
    params = estimator.get_params()
    return fingerprint, joblib.hash([(name, params[name]) for name in sorted(names)])


class _Prepared(NamedTuple):
    """A candidate on a fold, before training."""

    key: Key
    steps: list[tuple[str, Any]]  # the steps before the last, fitted
    plan: Plan
    n_varying: int  # columns that are not constant in the rows trained on
    fitted: Outcome  # from the record and the state to attributes


class _Fit:
    """The `fit` of a clone whose training is done; with another key, the clone trains."""

    def __init__(
        self, estimator: Any, names: list[str], prepared: _Prepared, trained: Trained
    ) -> None:
        self.estimator, self.names = estimator, names
        self.key, self.steps = prepared.key, prepared.steps
        self.trained, self.plan, self.n_varying = trained, prepared.plan, prepared.n_varying
        self.attributes = prepared.fitted(trained.record, trained.state)

    def __call__(self, X: Any, y: Any = None, **params: Any) -> Any:
        estimator = self.estimator
        del estimator.fit  # the method of its class comes back
        if _key(estimator, self.names, _fingerprint(X, params)) != self.key:
            return estimator.fit(X, y, **params)
        report.check_outcome(self.trained, self.plan, self.n_varying)
        _last_step(estimator)._become(self.attributes)
        if isinstance(estimator, Pipeline):
            estimator.steps = [*self.steps, estimator.steps[-1]]
        return estimator


class _Handout:
    """It trains the candidates of a search on its folds, and hands the results to clones."""

    def __init__(
        self, estimator: Any, X: Any, y: Any, splits: list[Any], params: Mapping[str, Any]
    ) -> None:
        self.estimator, self.X, self.y, self.splits = estimator, X, y, splits
        self.params = params  # of `fit`
        # One for each candidate and fold, in the order of the clones: names of the parameters that
        # the search sets, and the job before and after training, if it was trained.
        self.waiting: deque[tuple[list[str], _Prepared | None, Trained | None]] = deque()

    def entry(self) -> Any:
        """Return an estimator for the search: clones of its first clone are trained already."""
        entry, source = clone(self.estimator), clone(self.estimator)

        def give_source() -> Any:
            del entry.__sklearn_clone__  # otherwise each worker would get the models of all
            return source

        entry.__sklearn_clone__, source.__sklearn_clone__ = give_source, self.hand_out
        return entry

    def hand_out(self) -> Any:
        """Return the clone for the next candidate and fold; after the last one, a plain clone."""
        estimator = clone(self.estimator)
        if self.waiting:
            names, prepared, trained = self.waiting.popleft()
            if prepared is not None and trained is not None:
                estimator.fit = _Fit(estimator, names, prepared, trained)
        return estimator

    def plan(self, candidates: list[dict[str, Any]]) -> list[range]:
        """Return groups of folds that train together: as many as `working_memory` holds, or one."""
        self.candidates = candidates
        self.prepared: dict[int, _Prepared] = {}
        self.trained: dict[int, Trained] = {}
        self.seconds: dict[int, float] = {}
        self.errors: dict[int, Exception] = {}
        room = get_config()["working_memory"] * 2**20
        n_bytes = 8 * max(1, math.prod(getattr(self.X, "shape", np.shape(self.X))))
        at_once, folds = max(1, int(room // n_bytes)), range(len(self.splits))
        return [folds[first : first + at_once] for first in folds[::at_once]]

    def prepare(self, folds: Iterable[int], max_stack: int | str, verbose: int) -> list[list[int]]:
        """Make the jobs of all candidates on these folds, and return stacks of their numbers."""
        shared, n_folds = dict[Any, Any](), len(self.splits)
        self.jobs: dict[int, Job] = {}
        for (i, params), fold in product(enumerate(self.candidates), folds):
            try:
                prepared, job = self._prepare(params, fold, shared)
            except (TypeError, ValueError):  # the candidate's own `fit` raises it again
                continue
            except Exception as error:
                self.errors[i * n_folds + fold] = error
                continue
            self.prepared[i * n_folds + fold], self.jobs[i * n_folds + fold] = prepared, job
        stacks = packing.gather(self.jobs, max_stack)
        if verbose > 0:
            print(f"Training {sum(map(len, stacks))} models, stacks: {len(stacks)}")
        return stacks

    def _prepare(
        self, params: dict[str, Any], fold: int, shared: dict[Any, Any]
    ) -> tuple[_Prepared, Job]:
        """Prepare a candidate on a fold: return it and its job.

        It raises an error if the candidate must be fitted by itself. `shared` keeps results, and
        failures, that several candidates of a fold have in common.
        """
        estimator = clone(self.estimator).set_params(**clone(params, safe=False))
        if not _can_stack(estimator) or not self.params.keys() <= _of_rows(estimator):
            raise TypeError("No stack takes this estimator.")
        if fold not in shared:
            rows = self.splits[fold][0]
            X, y = _safe_split(estimator, self.X, self.y, rows)
            own = _check_method_params(self.X, self.params, rows)
            shared[fold] = X, y, own, _fingerprint(X, own)
        X, y, of_rows, fingerprint = shared[fold]
        key = _key(estimator, params, fingerprint)
        steps: Any = []
        of_steps: Any = None
        if isinstance(estimator, Pipeline):
            steps = estimator.steps[:-1]
            last = estimator.steps[-1][0]
            names = {n for n in params if n != last and not n.startswith(last + "__")}
            of_steps = _key(estimator, names, fingerprint)
        if (fold, of_steps) not in shared:
            try:
                if steps:
                    first = estimator[:-1]
                    X, steps = first.fit_transform(X, y), first.steps
                shared[fold, of_steps] = X, steps, {}
            except Exception as error:
                shared[fold, of_steps] = error
        if isinstance(shared[fold, of_steps], Exception):
            raise ValueError("An earlier step failed.") from shared[fold, of_steps]
        X, steps, known = shared[fold, of_steps]
        vae = _last_step(estimator)
        vae._validate_params()
        weight, groups = (
            of_rows.get(_name_of(estimator, argument)) for argument in ("sample_weight", "groups")
        )
        job, fitted = prepare(vae, X, known, weight, groups)
        prepared = _Prepared(key, steps, job.plan, n_varying(job), fitted)
        return prepared, job._replace(keeps_progress=False)

    def train(self, stacks: list[list[int]], watch: Callable[..., Any]) -> None:
        """Train the stacks."""
        trained, seconds, errors = packing.run_all(self.jobs, stacks, watch)
        self.trained.update(trained)
        self.seconds.update(seconds)
        self.errors.update(errors)
        del self.jobs

    def finish(self) -> None:
        """Queue the outcomes of all models for `hand_out`."""
        if self.errors:
            error = next(iter(self.errors.values()))
            warn(
                f"{len(self.errors)} of {len(self.candidates) * len(self.splits)} models could "
                f"not be trained in a stack ({type(error).__name__}: {error}) and are fitted by "
                "themselves, which takes longer. If memory is short, set max_stack. Use a function "
                "of a module in place of a lambda in param_grid."
            )
        for i, (params, _) in enumerate(product(self.candidates, self.splits)):
            outcome = self.prepared.get(i), self.trained.get(i)
            self.waiting.append((list(params), *outcome))
        del self.prepared, self.trained

    def tell_times(self, results: Mapping[str, np.ndarray]) -> None:
        """Write each model's share of its stack's time into the results."""
        n_models = len(self.candidates) * len(self.splits)
        of_each = [self.seconds.get(i, np.nan) for i in range(n_models)]
        seconds = np.reshape(of_each, (-1, len(self.splits)))
        known = np.isfinite(seconds).all(axis=1)
        results["mean_fit_time"][known] = seconds[known].mean(axis=1)
        results["std_fit_time"][known] = seconds[known].std(axis=1)
