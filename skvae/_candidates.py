"""Candidates of a search, and their training in stacks.

A `Training` makes a job of each candidate and fold, and trains stacks of these jobs. Folds train
one after the other if their rows have no room in memory together. Each candidate then carries its
`Models`.
"""

import math
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple, Self

import joblib
import numpy as np
from sklearn import get_config
from sklearn.base import clone
from sklearn.model_selection import ParameterGrid
from sklearn.pipeline import Pipeline
from sklearn.utils import _safe_indexing
from sklearn.utils.metaestimators import _safe_split
from sklearn.utils.validation import _check_method_params

from skvae._backend.warn import warn
from skvae._fit import packing, report
from skvae._fit.job import Job, Trained
from skvae._fit.preparation import Outcome, n_varying, prepare
from skvae._model.member import Plan
from skvae._vae import VAETransformer

# The parameter by which the clone of a `Candidate` carries its models. No step of a Pipeline and no
# parameter has such a name, since it is no identifier.
MODELS = "trained models"


class Model(NamedTuple):
    """A trained model, and all that an estimator needs to become it."""

    steps: list[tuple[str, Any]]  # the steps before the last, fitted
    attributes: dict[str, Any]  # of the VAETransformer
    trained: Trained
    plan: Plan
    n_varying: int  # columns that are not constant in the rows trained on

    def give_to(self, estimator: Any) -> None:
        """Make a fitted estimator; warn, or raise an error, as its own `fit` would."""
        report.check_outcome(self.trained, self.plan, self.n_varying)
        vae_of(estimator)._become(self.attributes)
        if isinstance(estimator, Pipeline):
            estimator.steps = [*self.steps, estimator.steps[-1]]


class Models:
    """The trained models of a candidate, by the indices of the rows that they were trained on.

    Folds may train on the same rows. The number of the fold then tells their models apart.

    A worker needs the model of one fold, but is sent those of all folds. So they are pickled once,
    into one array, which joblib shares among its workers if it is large. A worker then unpickles
    the model that it needs.
    """

    def __init__(self) -> None:
        # By the hash of the rows and the fold; a slice of the array, once it is there.
        self._models: dict[tuple[str, int], Model | slice] = {}
        self._pickled: np.ndarray | None = None

    def add(self, rows: np.ndarray, fold: int, model: Model) -> None:
        """Add the model of a fold, which was trained on the rows of these indices."""
        self._models[_hash(rows), fold] = model

    def find(self, rows: np.ndarray, fold: int) -> Model | None:
        """Return a model that was trained on the rows of these indices, if there is one.

        The model of this fold comes before those of other folds with the same rows.
        """
        key = _hash(rows), fold
        others = (model for (hashed, _), model in self._models.items() if hashed == key[0])
        found = self._models.get(key) or next(others, None)
        if isinstance(found, slice):
            assert self._pickled is not None
            model: Model = pickle.loads(self._pickled[found].tobytes())
            return model
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Return one array for all models, and the slice of each."""
        if self._pickled is None:
            # Steps of a Pipeline may need more than plain pickle, such as functions of a notebook.
            parts = [
                pickle.dumps(joblib.wrap_non_picklable_objects(model, keep_wrapper=False))
                for model in self._models.values()
            ]
            ends = np.cumsum([len(part) for part in parts]).tolist()
            self._pickled = np.frombuffer(b"".join(parts), np.uint8)
            slices = map(slice, [0, *ends], ends)
            self._models = dict(zip(self._models, slices, strict=True))
        return vars(self)

    def __sklearn_clone__(self) -> Self:
        return self  # scikit-learn clones the parameters of a candidate for each fold


class Candidate(dict[str, Any]):
    """The parameters of a candidate, whose clone has its models as one more parameter.

    scikit-learn clones parameters just before it sets them. So the models are in none of its
    messages and results.
    """

    def __init__(self, params: Mapping[str, Any], models: Models) -> None:
        super().__init__(params)
        self.models = models

    def __sklearn_clone__(self) -> dict[str, Any]:
        return {**clone(dict(self), safe=False), MODELS: self.models}


# --- training -----------------------------------------------------------------------------


class _Prepared(NamedTuple):
    """A candidate on a fold, before training."""

    steps: list[tuple[str, Any]]  # the steps before the last, fitted
    plan: Plan
    n_varying: int
    describe: Outcome  # makes attributes of a record and a state

    def finish(self, trained: Trained) -> Model:
        """Return the model that training gave."""
        attributes = self.describe(trained.record, trained.state)
        return Model(self.steps, attributes, trained, self.plan, self.n_varying)


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


class Training:
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
        # The `fit` of a candidate gets the indices of its rows like any metadata of rows.
        routed.estimator.fit["rows"] = index
        self.routed = routed
        self.models = [Models() for _ in self.candidates]
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
        shared: dict[int, _Fold] = {}
        jobs: dict[int, Job] = {}
        for (candidate, params), fold in product(enumerate(self.candidates), folds):
            number = candidate * len(self.rows) + fold
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
        if not can_stack(estimator) or not self.params.keys() <= of_rows(estimator):
            raise TypeError("No stack takes this estimator.")
        of_steps: dict[str, Any] = {}
        if isinstance(estimator, Pipeline):
            last = estimator.steps[-1][0]
            of_steps = {name: v for name, v in params.items() if name.split("__")[0] != last}
        X, steps, memo = fold.transform(estimator, of_steps)
        vae = vae_of(estimator)
        vae._validate_params()
        weight = fold.params.get(name_of(estimator, "sample_weight"))
        groups = fold.params.get(name_of(estimator, "groups"))
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
            self.models[candidate].add(self.rows[fold], fold, model)
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
        """Return all candidates with their models."""
        return list(map(Candidate, self.candidates, self.models))

    def tell_times(self, results: Mapping[str, np.ndarray]) -> None:
        """Write each model's share of its stack's time into the results."""
        known = np.isfinite(self.seconds).all(axis=1)
        results["mean_fit_time"][known] = self.seconds[known].mean(axis=1)
        results["std_fit_time"][known] = self.seconds[known].std(axis=1)


def _hash(value: Any) -> str:
    """Return a hash of arrays, or of parameters."""
    return str(joblib.hash(value))


# --- estimators that can be stacked -------------------------------------------------------


def vae_of(estimator: Any) -> Any:
    """Return the VAETransformer that an estimator is, or ends in; None if there is none."""
    try:
        last = estimator.steps[-1][1] if isinstance(estimator, Pipeline) else estimator
    except Exception:  # scikit-learn says what is wrong with the steps
        return None
    return last if isinstance(last, VAETransformer) else None


def name_of(estimator: Any, argument: str) -> str:
    """Return the name by which `fit` passes an argument to its VAETransformer only."""
    if isinstance(estimator, Pipeline):
        return f"{estimator.steps[-1][0]}__{argument}"
    return argument


def of_rows(estimator: Any) -> set[str]:
    """Return the names of the arguments about rows that `fit` passes to its VAETransformer."""
    return {name_of(estimator, argument) for argument in ("sample_weight", "groups")}


def can_stack(estimator: Any) -> bool:
    """True for a VAETransformer, or a plain Pipeline ending in one, without callbacks."""
    vae = vae_of(estimator)
    # A Pipeline of another kind may do anything in its `fit`, such as leave out rows.
    known = estimator is vae or type(estimator) is Pipeline
    watched = any(hasattr(part, "_skl_callbacks") for part in (estimator, vae))
    return known and not watched and getattr(type(vae), "fit", None) is VAETransformer.fit


def check_weights(name: str, splits: Sequence[Any], routed: Any) -> None:
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
