"""Prepare a fit: read the rows of X, hold some out, describe the model, and make the job.

Nothing here changes the estimator. A fit that fails leaves it as it was, and `describe_outcome`
gives the fitted attributes for the estimator to set at once.
"""

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import fields
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import check_random_state

from skvae._backend import devices
from skvae._backend.tensors import Array
from skvae._data import (
    arrays,
    containers,
    description,
    schema,
    statistics,
    stream,
    weighting,
    words,
)
from skvae._fit import execution, loading, planning, report
from skvae._fit.job import Job
from skvae._model.architecture import NAMED, Architecture, name_of, part_of
from skvae._model.member import OF_STEPS, Record
from skvae._model.state import cast_state, initial_state
from skvae._model.vae import State
from skvae._typing import Groups, Rows
from skvae.likelihoods import Likelihood, _choice
from skvae.networks import Own

# Takes rows as numbers, and returns the rows to train on, some of whose values may be missing, and
# for each of them the index of the row that it is a copy of.
Change = Callable[[Array], tuple[Array, Array]]
# Takes a record of training and a state, and returns all fitted attributes.
Outcome = Callable[..., dict[str, Any]]


class Reading(NamedTuple):
    """The rows of X as numbers."""

    likelihood: Likelihood  # with its columns and their categories
    data: Any  # (n_rows, n_columns)
    weight: Array | None  # (n_rows,), how much each row counts
    group: Array | None  # (n_rows,), the number of each row's group
    attributes: dict[str, Any]  # attributes of the estimator that follow from X

    @property
    def n_features(self) -> int:
        """Number of features of the model."""
        return len(self.likelihood.columns_of(self.data.shape[1]))

    def changed(self, change: Change) -> "Reading":
        """Return the rows that `change` makes of these; copies of a row are one group."""
        data, row_of = change(self.data[:])
        weight = None if self.weight is None else self.weight[row_of]
        group = row_of if self.group is None else self.group[row_of]
        return self._replace(data=data, weight=weight, group=group)


def prepare(
    vae: Any,
    X: Rows,
    known: MutableMapping[Any, Any] | None = None,
    sample_weight: ArrayLike | None = None,
    groups: Groups | None = None,
    change: Change | None = None,
    *,
    partial: bool = False,
) -> tuple[Job, Outcome]:
    """Make the training job of an estimator for X, and the function that describes its outcome.

    It raises an error if X or a parameter cannot be used. `known` stores the reading of X for the
    next call with the same X, weights and groups. With `change`, the model trains on the rows that
    it returns. With `partial`, the job is one pass, after those of earlier calls.
    """
    device = devices.resolve_device(vae.device)
    dtype = devices.dtype_of(vae.precision, device)
    warm = (vae.warm_start or partial) and vae.__sklearn_is_fitted__()
    known = {} if known is None else known
    reading = _read(vae, X, known, sample_weight, groups, warm)
    if change is not None:
        reading = reading.changed(change)
    if warm and partial:  # frames come back as in the first block
        reading = reading._replace(attributes={**reading.attributes, "_output": vae._output})
    seed = int(check_random_state(vae.random_state).randint(np.iinfo(np.int32).max))
    n_at_once, held_out = _hold_out(vae, reading, dtype, seed, partial)
    moments, seen = _describe(reading, known, held_out, warm, partial)
    has_holes = bool(moments.has_holes or change is not None)
    architecture = _describe_architecture(vae, reading, has_holes, warm, partial)
    if warm:
        _check_goes_on(vae, reading, moments, architecture)
        has_holes = bool(has_holes or vae._fitted.knows_holes)
        first, state = {"_first_seen": vae._first_seen}, vae.state_
    else:
        first = {"_first_seen": {"mean": moments.mean, "std": moments.std}, "_seen": seen}
        state = initial_state(
            architecture,
            moments,
            seed,
            lambda n: schema.take(reading.data, n, seed, reading.likelihood),
        )
    job = Job(
        data=reading.data,
        n_at_once=n_at_once,
        architecture=architecture,
        state=cast_state(state, dtype),
        plan=None,  # type: ignore[arg-type]  # `plan_training` makes it, given all others
        seed=seed,
        device=device,
        precision=vae.precision,
        held_out=held_out,
        group=reading.group,
        sample_weight=reading.weight,
        keeps_progress=vae.warm_start or partial,
    )
    job = planning.plan_training(vae, job, warm, partial)
    attributes = {
        **reading.attributes,
        **first,
        "_architecture": architecture.to_dict(),
        "_has_seen_holes": has_holes,
    }
    return job, _describe_outcome(vae, job, attributes, warm, partial)


def n_varying(job: Job) -> int:
    """Count the columns of a job's rows that are not constant in the rows trained on."""
    column_of = job.architecture.likelihood.columns_of(job.data.shape[1])
    return len(np.unique(column_of[job.state["scale"] > 0]))


# --- rows ---------------------------------------------------------------------------------


def _read(
    vae: Any,
    X: Rows,
    known: MutableMapping[Any, Any],
    sample_weight: ArrayLike | None,
    groups: Groups | None,
    warm: bool,
) -> Reading:
    """Read the rows of X; `known` stores the result."""
    as_table = _choice.is_read(vae.likelihood)
    X = containers.to_validate(X, getattr(vae.network, "image_shape", None))
    table, rows, weight, group = weighting.count_first(X, sample_weight, groups, as_table=as_table)
    placed, chosen = _choice.place(vae.likelihood, table)
    if warm:
        _check_same("likelihood", vae._fitted.likelihood.with_categories({}), placed)
    if placed not in known:
        categories = vae._categories if warm else None
        learned, likelihood, data = schema.Schema.learn(
            vae, table, placed, categories, rows, as_table
        )
        known[placed] = Reading(likelihood, data, weight, group, learned.attributes)
    reading: Reading = known[placed]
    attributes = {**reading.attributes, "_likelihood": name_of("likelihood", chosen)}
    return reading._replace(attributes=attributes)


def _hold_out(
    vae: Any, reading: Reading, dtype: Any, seed: int, partial: bool
) -> tuple[int, Array]:
    """Return how many rows may be in memory at once, and the indices of the held-out rows."""
    shape = reading.data.shape[0], reading.n_features
    n_least = 256 if vae.batch_size == "auto" else max(2, vae.batch_size)
    n_at_once = loading.rows_at_once(*shape, dtype, n_least)
    if partial:
        return n_at_once, np.empty(0, np.intp)
    return n_at_once, planning.hold_out(vae, shape, n_at_once, seed, reading.group)


def _describe(
    reading: Reading,
    known: MutableMapping[Any, Any],
    held_out: Array,
    warm: bool,
    partial: bool,
) -> tuple[statistics.Moments, dict[str, Any]]:
    """Return the moments of the rows that are trained on, which decide the units, and facts.

    `known` stores the result.
    """
    key = reading.likelihood, held_out.tobytes()
    if key not in known:
        known[key] = description.describe(
            reading.data,
            reading.likelihood,
            reading.attributes,
            reading.weight,
            held_out,
            reset=not warm,
            partial=partial,
            grouped=reading.group is not None,
        )
    result: tuple[statistics.Moments, dict[str, Any]] = known[key]
    return result


# --- the model ----------------------------------------------------------------------------


def _describe_architecture(
    vae: Any, reading: Reading, has_holes: bool, warm: bool, partial: bool
) -> Architecture:
    """Return the architecture that the parameters describe, or raise an error."""
    given: Any = vae.hidden_layer_sizes
    sizes: list[Any] = [given] if isinstance(given, Integral) else list(given)
    if not all(
        isinstance(size, Integral) and not isinstance(size, bool) and int(size) > 0
        for size in sizes
    ):
        raise ValueError(
            "The 'hidden_layer_sizes' parameter of VAETransformer must hold positive "
            f"integers. Got {vae.hidden_layer_sizes!r} instead."
        )
    architecture = Architecture(
        n_features=reading.n_features,
        n_components=int(vae.n_components),
        likelihood=reading.likelihood,
        network=part_of("network", _network(vae.network)),
        hidden_layer_sizes=tuple(map(int, sizes)),
        activation=vae.activation,
        prior=part_of("prior", vae.prior),
        posterior=part_of("posterior", vae.posterior),
        # A first block doesn't say whether later ones have missing values.
        missing=vae._fitted.architecture.missing if warm else has_holes or partial,
    )
    if has_holes and not architecture.missing:
        raise ValueError(
            "X has missing values or unknown categories, but training goes on with a model "
            "that was fitted without any: its encoder has no inputs for them. Fit anew, with "
            "rows of which some have missing values, or by partial_fit from the first rows on."
        )
    architecture.network.check_rows(architecture.n_features, reading.data.shape[1])
    _check_free_bits(vae, architecture)
    return architecture


def _network(value: Any) -> Any:
    """Return a network by its name or value; a pair of callables becomes one."""
    if not isinstance(value, tuple):
        return value
    if len(value) != 2 or not all(map(callable, value)):
        raise ValueError(
            "The 'network' parameter of VAETransformer must be 'mlp', a value of skvae.networks "
            "or a pair of callables (n_in, n_out) -> torch.nn.Module, for encoder and decoder. "
            f"Got {value!r} instead."
        )
    return Own(*value)


def _check_free_bits(vae: Any, architecture: Architecture) -> None:
    if not vae.free_bits:
        return
    if vae.n_importance_samples > 1:
        raise ValueError(
            f"free_bits={vae.free_bits} needs n_importance_samples=1, since the bound of "
            f"several draws has no KL divergence of its own. Got {vae.n_importance_samples}."
        )
    if not (architecture.posterior.factorises and architecture.has_kl):
        raise ValueError(
            f"free_bits={vae.free_bits} needs a KL divergence that is a sum over the "
            "components: posterior='diagonal' and prior='standard_normal'. Got "
            f"posterior={vae.posterior!r} and prior={vae.prior!r}."
        )


# --- going on with a fitted model ---------------------------------------------------------


def _check_same(name: str, before: Any, now: Any) -> None:
    """Refuse to go on with a fitted model whose part, or size, of this name is another one."""
    if before != now:
        before, now = (name_of(name, v) if name in NAMED else v for v in (before, now))
        raise ValueError(
            f"Training goes on with the fitted model, whose {name} is {before!r}. Got {now!r}: set "
            "it back, or fit anew, without warm_start."
        )


def _check_goes_on(
    vae: Any, reading: Reading, moments: statistics.Moments, architecture: Architecture
) -> None:
    """Refuse another model than the fitted one, and warn of rows unlike the first ones."""
    before = vae._fitted.architecture
    for field in fields(before):
        _check_same(field.name, getattr(before, field.name), getattr(architecture, field.name))
    location, scale = vae.state_["location"], vae.state_["scale"]
    assert moments.n_values is not None
    n_columns = reading.data.shape[1]
    column_of = reading.likelihood.columns_of(n_columns)
    mean, std = location, np.full(len(location), np.nan)
    if vae._first_seen is not None:
        mean, std = vae._first_seen["mean"], vae._first_seen["std"]
    mean = np.where(np.isnan(location), np.nan, mean)  # of a column that had no value
    # A spread of 0 marks a constant column; without a spread, nothing can be compared.
    std = np.where(scale > 0, np.where(std > 0, std, np.nan), 0.0)
    # Categories have no units, and unknown categories have their own warning.
    of_category = np.isin(column_of, list(reading.likelihood.categorical(n_columns)))
    # A column without values, now or at first, cannot be compared.
    there = moments.n_values > 0
    now = moments._replace(
        mean=np.where(there, moments.mean, np.nan), std=np.where(there, moments.std, np.nan)
    )
    first = statistics.Moments(mean, np.where(of_category, np.nan, std))
    labels = words.Labels(getattr(vae, "feature_names_in_", None), column_of)
    dtypes = {reading.data.dtype.name, vae._output["dtype"]}
    resolution = arrays.resolution_of("float32" if "float32" in dtypes else "float64")
    stream.warn_of_drift(
        first, now, reading.data, reading.likelihood.check_support, labels, resolution
    )


# --- the outcome --------------------------------------------------------------------------


def _describe_outcome(
    vae: Any, job: Job, attributes: Mapping[str, Any], warm: bool, partial: bool
) -> Outcome:
    """Return a function of a record and a state: all fitted attributes. It holds no rows."""
    n_before: int = 0
    history: Mapping[str, Array] = {}
    kept_before = None
    if warm:
        n_before, history = vae.n_iter_, vae.history_
        # A model from an older file has no such number.
        kept_before = getattr(vae, "kept_iter_", None)
    if job.progress is not None and not partial:
        n_before -= job.progress["n_iter"]
        history = {name: values[:n_before] for name, values in history.items()}
    run = planning.describe_run(job, partial) if job.keeps_progress else None
    max_iter = job.plan.max_iter

    def fitted(record: Record, state: State, *, goes_on: bool = partial) -> dict[str, Any]:
        """Return all attributes that `fit` sets when training has come to this record.

        With `goes_on`, they are those of the latest epoch, and training can continue from them.
        """
        stopped = record.outcome in ("stopped", "interrupted") and record.n_iter < max_iter
        progress = None
        if record.progress is not None and (goes_on or stopped):
            progress = {"run": run, **execution.to_arrays(record.progress)}
            if partial:  # the next one begins with the weights
                progress = {name: progress[name] for name in ("run", *OF_STEPS)}
        # No epoch was kept, so the weights are those that training started from.
        kept: Any = 0 if record.is_simple else kept_before
        n_kept = record.n_iter if goes_on else record.kept
        if n_kept:
            kept = n_before + n_kept
        return {
            **attributes,
            "_progress": progress,
            "state_": state,
            "n_iter_": n_before + record.n_iter,
            "kept_iter_": kept,
            "history_": report.join(history, n_before, record.history, record.n_iter),
        }

    return fitted
