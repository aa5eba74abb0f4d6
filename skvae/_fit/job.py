"""Jobs: all that decides the training of one model, and keys by which jobs are grouped."""

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from skvae._backend.tensors import Array
from skvae._data import arrays
from skvae._model.architecture import Architecture
from skvae._model.member import Plan, Record
from skvae._model.state import n_weights
from skvae._model.vae import State
from skvae.likelihoods import Gaussian

# Most rows, and most values, of the factor analysis that a model has to beat. With missing values
# there are fewer, HOLED_ROWS, since each row has its own posterior.
FACTOR_ROWS, FACTOR_VALUES, HOLED_ROWS = 20000, 1 << 23, 2000
# Least multiplications of a share of a training step. They take about half a millisecond, ten times
# as long as a meeting of threads.
SHARE_PRODUCTS = 2**24
# Least rows of a share, and of each half of a batch cut in two. With few rows, products take
# longer for each row (784-512-512, batches of 256 rows, one thread: 1.14 times as long in two
# shares, 1.35 times in four).
SHARE_ROWS, HALF_ROWS = 96, 48
# A linear model keeps factor analysis, which is its optimum, if its last epoch is worse by more
# nats a row than this.
SHORTFALL = 0.5


class Job(NamedTuple):
    """All that decides the training of one model."""

    data: Array  # (n_rows, n_features) in the units of X
    n_at_once: int  # rows that may be in memory, all or a part
    architecture: Architecture
    state: State  # units and first weights
    plan: Plan
    seed: int
    device: torch.device
    precision: str
    held_out: Array = np.empty(0, np.intp)  # indices of the held-out rows, in random order
    group: Array | None = None  # (n_rows,), the number of each row's group
    sample_weight: Array | None = None  # (n_rows,), float64, above 0; None: all the same
    progress: Mapping[str, Any] | None = None  # the state that it continues, in arrays and numbers
    keeps_progress: bool = False  # whether each epoch records the state that can be continued


class Trained(NamedTuple):
    """The result of a job."""

    record: Record
    state: State
    n_active: int  # number of active components, computed from the first rows
    shortfall: float = 0.0  # nats per row by which a linear model misses its optimum, if known


def shape(job: Job) -> Hashable:
    """Return a key that is the same for all jobs of one stack."""
    parts, plan = job.architecture, job.plan
    # Padded components must have no effect: see `_model.vae`. They have one in log q(z|x) of a
    # draw, which has a term for each component, so that the padding would be learned.
    padded = parts.network.can_be_padded and parts.prior.is_standard and parts.posterior.has_vjp
    if padded and not plan.free_bits and plan.n_importance_samples == 1:
        parts = replace(parts, n_components=0)
    numbers = plan.n_held_out, plan.batch_size, plan.n_importance_samples
    rows = job.data.shape, len(job.held_out), job.sample_weight is None, job.group is None
    return rows, parts, numbers, job.device, job.precision, n_shares(job)


def n_shares(job: Job) -> int:
    """Return into how many shares of rows a training step is cut, each computed by one thread.

    The number depends on the batch and the network alone, so that the result does not depend on
    threads. Free bits are a mean over the batch, which cannot be cut.
    """
    if job.device.type != "cpu" or job.plan.free_bits:
        return 1
    n_rows = job.plan.batch_size
    n_products = n_rows * job.plan.n_importance_samples * n_weights(job.state)
    of_rows = max(n_rows // SHARE_ROWS, min(2, n_rows // HALF_ROWS))
    return max(1, min(n_products // SHARE_PRODUCTS, of_rows))


def has_known_optimum(job: Job) -> bool:
    """Whether factor analysis of the training rows is the optimum of the whole fit."""
    plan = job.plan
    plain = plan.beta == 1 and plan.n_importance_samples == 1
    plain = plain and not plan.free_bits and not plan.weight_decay
    whole = plan.max_iter > 1 and not plan.n_held_out
    normal = isinstance(job.architecture.likelihood, Gaussian)
    # An encoder that is linear in the mask cannot reach the posterior of rows with missing values.
    linear = begins_as_factors(job) and not job.architecture.missing
    few = job.data.shape[0] <= n_factor_rows(job)
    return plain and whole and normal and linear and few


def begins_as_factors(job: Job) -> bool:
    """Whether a model that can become factor analysis begins as such.

    A model with hidden layers would not leave it: all first derivatives are 0 there if the rows are
    normal, and nearly so otherwise. A prior that is a mixture would stay the standard normal, since
    components that are equal have equal derivatives.
    """
    parts = job.architecture
    return not parts.hidden_layer_sizes and parts.prior.is_standard and not job.plan.continues


def in_parts(job: Job) -> bool:
    return job.n_at_once < job.data.shape[0]


def torch_dtype(job: Job) -> torch.dtype:
    return torch.float64 if job.precision == "float64" else torch.float32


def support_of(job: Job) -> arrays.Support:
    return job.architecture.likelihood.check_support


def source_of(job: Job) -> Hashable:
    """Return a key that is the same for jobs with the same rows in the same units."""
    units = job.state["location"].tobytes(), job.state["scale"].tobytes()
    return id(job.data), id(job.sample_weight), *units


def n_factor_rows(job: Job) -> int:
    most = HOLED_ROWS if job.architecture.missing else FACTOR_ROWS
    return min(most, FACTOR_VALUES // job.architecture.n_features + 2)


def itemsize(job: Job) -> int:
    return 8 if job.precision == "float64" else 4
