"""From numpy to a training run and back: a fit is a stack of one model, a search of many.

Jobs whose tensors have one shape train together. Jobs on the same rows in the same units,
such as the candidates of one fold, share those rows.

On a CPU, stacks of small models train side by side in threads of one core each: threads
that share the operations of one stack would wait for each other in every one of them.
"""

import hashlib
import itertools
import math
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn import get_config

from skvae import _arrays, _factors, _model, _training
from skvae.likelihoods import LIKELIHOODS, Gaussian
from skvae.networks import MLP, NETWORKS
from skvae.posteriors import Flow
from skvae.priors import PRIORS, StandardNormal

# Models in a stack on a CPU: beyond, the tensors of a step leave the cache and nothing is won.
WIDEST = 32
MOST_STACKS = 8  # at once: their threads take Python's time in turn


ACTIVITY_ROWS = 1000  # that are asked which components are active
# Rows, and their values, of a factor analysis that a model is to beat; with missing values, each
# row has a posterior of its own.
FACTOR_ROWS, FACTOR_VALUES, HOLED_ROWS = 20000, 1 << 23, 2000


class Job(NamedTuple):
    """All that decides the training of one model."""

    data: _arrays.Array  # (n_rows, n_features) in the units of X
    n_at_once: int  # rows that may be in memory, all or a part
    architecture: dict[str, Any]
    state: _model.State  # units and first weights
    plan: _training.Plan
    seed: int
    device: torch.device
    precision: str
    held_out: _arrays.Array = np.empty(0, np.intp)  # places of rows, in random order
    group: _arrays.Array | None = None  # (n_rows,), the number of each row's group
    sample_weight: _arrays.Array | None = None  # (n_rows,), float64, above 0; None: all the same
    progress: Mapping[str, Any] | None = None  # where it goes on, in arrays and numbers
    keeps_progress: bool = False  # whether it is to be known, after each epoch, how to go on


class Trained(NamedTuple):
    """What became of a job."""

    record: _training.Record
    state: _model.State
    n_active: int  # components that say something of the rows, by the first of them
    shortfall: float = 0.0  # nats a row by which a linear model misses the optimum, where known


def shape(job: Job) -> Hashable:
    """What jobs of one stack have in common."""
    parts, plan = dict(job.architecture), job.plan
    network = NETWORKS.get(parts["network"], parts["network"])
    prior, posterior = parts.get("prior", "standard_normal"), parts.get("posterior", "diagonal")
    prior, flow = PRIORS.get(prior, prior), isinstance(posterior, Flow)
    # Where nothing tells components that are not there from those that are: see `_model`. The
    # log q(z|x) of a draw has a term of each, which would be learned.
    padded = type(network) is MLP and not network.residual
    padded = padded and isinstance(prior, StandardNormal) and not flow
    if padded and not plan.free_bits and plan.n_importance_samples == 1:
        del parts["n_components"]
    parts["hidden_layer_sizes"] = tuple(parts["hidden_layer_sizes"])
    numbers = plan.n_held_out, plan.batch_size, plan.n_importance_samples
    rows = job.data.shape, len(job.held_out), job.sample_weight is None, job.group is None
    return rows, tuple(parts.items()), numbers, job.device, job.precision, _is_small(job)


def _is_small(job: Job) -> bool:
    """Whether its steps are too short for more than one thread."""
    n_products = job.plan.batch_size * _model.n_weights(job.state)
    return n_products < _arrays.FEW_PRODUCTS


def _has_known_optimum(job: Job) -> bool:
    """Whether factor analysis of the training rows is what a whole fit should come to."""
    plan = job.plan
    plain = plan.beta == 1 and plan.n_importance_samples == 1 and not plan.free_bits
    whole = plan.max_iter > 1 and not plan.n_held_out and not plan.continues
    likelihood = job.architecture["likelihood"]
    normal = isinstance(LIKELIHOODS.get(likelihood, likelihood), Gaussian)
    # An encoder that is linear in the mask cannot reach the posterior of rows with missing values.
    linear = not job.architecture["hidden_layer_sizes"] and not job.architecture["missing"]
    few = job.data.shape[0] <= _n_factor_rows(job)
    return plain and whole and normal and linear and few


def _in_parts(job: Job) -> bool:
    return job.n_at_once < job.data.shape[0]


def _state_of(stack: _model.VAE, job: Job, record: _training.Record) -> _model.State:
    return {**job.state, **_model.learned(stack, job.architecture, record.weights)}


def _n_active(job: Job, state: _model.State) -> int:
    rows = _arrays.dense(job.data[:ACTIVITY_ROWS])
    y = torch.empty((len(rows), job.architecture["n_features"]), dtype=_dtype(job), device="cpu")
    _arrays.fill_standardised(y, rows, _model.units(state), _support(job))
    return _model.n_active(job.architecture, state, y)


def to_arrays(progress: Any) -> Any:
    """The progress of a training run as arrays, numbers and strings."""
    if isinstance(progress, Mapping):
        return {name: to_arrays(value) for name, value in progress.items()}
    return _arrays.to_array(progress) if isinstance(progress, torch.Tensor) else progress


def _to_tensors(progress: Any, device: torch.device) -> Any:
    """The opposite of `to_arrays`."""
    if isinstance(progress, Mapping):
        # A generator's state is on the CPU wherever the generator is.
        where = {"generator": torch.device("cpu")}
        return {name: _to_tensors(v, where.get(name, device)) for name, v in progress.items()}
    return _arrays.to_tensor(progress, device) if isinstance(progress, np.ndarray) else progress


def run(
    jobs: Sequence[Job],
    begin_epoch: Callable[[], None],
    end_epoch: Callable[[Sequence[_training.Record], Callable[[], list[_model.State]]], bool],
    end_part: Callable[[int, float], None] = lambda epoch, share: None,
) -> list[Trained]:
    """Train the models of jobs of one shape.

    `end_epoch` gets the records of those in training and a function that copies their
    states; training stops where it returns True. `end_part` is told of rows that are read
    in parts: the epoch, from 0, and the share of it that is done.
    """
    first = jobs[0]
    if first.device.type == "cpu":
        _arrays.keep_memory()
    with _arrays.computing(first.device, one_thread=_is_small(first)):
        stack = _model.stack(
            [job.architecture for job in jobs], [job.state for job in jobs], first.device
        )
        stack.low_precision = first.precision == "bf16"

        def states(records: Iterable[_training.Record]) -> list[_model.State]:
            return [_state_of(stack, jobs[record.member], record) for record in records]

        # The seed itself has drawn the first weights.
        generators = [_arrays.generator(job.seed + 1, first.device) for job in jobs]
        if _in_parts(first):
            read, judged, some = _read_in_parts(first, end_part)
        else:
            read, judged, some = _read_once(jobs)
        analyses = _Analyses(jobs, stack.factor_noise) if stack.contains_factors else None

        def become_simple(of_all: bool) -> None:
            assert analyses is not None
            stack.become_factors(analyses.of(some(of_all), again=of_all))

        def end(records: Sequence[_training.Record]) -> list[Trained]:
            missed = [0.0] * len(jobs)
            if analyses is not None and all(map(_has_known_optimum, jobs)):
                missed = analyses.shortfalls(some(False), records)
            ends = zip(jobs, records, states(records), missed, strict=True)
            return [
                # Without its weights, a row of a matrix that holds those of all.
                Trained(replace(r, weights=torch.empty(0)), state, _n_active(job, state), nats)
                for job, r, state, nats in ends
            ]

        records: list[_training.Record] = []
        try:
            records = _training.train(
                stack,
                read,
                judged,
                [job.plan for job in jobs],
                generators,
                begin_epoch,
                lambda records: end_epoch(records, lambda: states(records)),
                None if analyses is None else become_simple,
                [_to_tensors(job.progress, job.device) for job in jobs if job.progress is not None],
                keep_progress=first.keeps_progress,
            )
            return end(records)
        except KeyboardInterrupt:
            if not records:
                raise
            for record in records:
                record.interrupted = True
            return end(records)


# --- rows ---------------------------------------------------------------------------------

# Gives the training rows of an epoch, from 0, in parts, each with its share of the epoch.
Read = Callable[[int], Iterable[tuple[float, _training.Rows]]]
# Gives some of the training rows, at random; with True, those held out beside them.
Some = Callable[[bool], _training.Rows]


def rows_at_once(n_rows: int, n_features: int, dtype: Any, n_least: int) -> int:
    """How many rows may be in memory: all if `working_memory` holds them, or a part.

    A part is a quarter of it, and not less than `n_least` rows.
    """
    # With three numbers of 8 bytes: a row's place, and its place in the order of an epoch.
    row_bytes = np.dtype(dtype).itemsize * n_features + 24
    room = get_config()["working_memory"] * 2**20 / row_bytes
    return n_rows if n_rows <= room else min(n_rows, max(n_least, int(room / 4)))


def _dtype(job: Job) -> torch.dtype:
    return torch.float64 if job.precision == "float64" else torch.float32


def _support(job: Job) -> _arrays.Support:
    likelihood = job.architecture["likelihood"]
    return LIKELIHOODS.get(likelihood, likelihood).check_support


def _source(job: Job) -> Hashable:
    """What jobs have in common whose rows are the same, in the same units."""
    units = job.state["location"].tobytes(), job.state["scale"].tobytes()
    return id(job.data), id(job.sample_weight), *units


def _read_once(jobs: Sequence[Job]) -> tuple[Read, _training.Rows, Some]:
    """The training rows of all jobs, each in its own units, those held out, and some of them."""
    first = jobs[0]
    n_rows, n_features = first.data.shape[0], first.architecture["n_features"]
    sources: dict[Hashable, tuple[int, Job]] = {}
    starts, held_out, training = [], [], []
    for job in jobs:
        start, _ = sources.setdefault(_source(job), (n_rows * len(sources), job))
        starts.append([start])
        # In random order, so that the first of them are a sample.
        order = np.random.default_rng(job.seed + 1).permutation(n_rows)
        is_trained_on = np.ones(n_rows, bool)
        is_trained_on[job.held_out] = False
        training.append(order[is_trained_on[order]])
        held_out.append(
            job.held_out if job.plan.n_held_out else training[-1][: _training.PROBE_ROWS]
        )
    shape = n_rows * len(sources), n_features
    data = torch.empty(shape, dtype=_dtype(first), device=first.device)
    for start, job in sources.values():
        into = data[start : start + n_rows]
        _arrays.fill_standardised(into, job.data, _model.units(job.state), _support(job))
    weights = [job.sample_weight for _, job in sources.values() if job.sample_weight is not None]
    weight = _to_weight(first, np.concatenate(weights) if weights else None)
    begin = np.array(starts)

    def take(chosen: list[_arrays.Array]) -> _training.Rows:
        index = torch.from_numpy(np.array(chosen) + begin).to(first.device)
        pairs = zip(jobs, chosen, strict=True)
        groups = [job.group[own] for job, own in pairs if job.group is not None]
        return _with_groups(_weighted(data, index, weight), groups)

    def some(of_all: bool) -> _training.Rows:
        n = _n_factor_rows(first)
        chosen = [own[:n] for own in training]
        if of_all and first.plan.n_held_out:
            pairs = zip(held_out, chosen, strict=True)
            chosen = [np.concatenate(pair)[:n] for pair in pairs]
        return take(chosen)

    rows = take(training)
    return lambda epoch: [(1.0, rows)], take(held_out), some


def _with_groups(rows: _training.Rows, groups: Sequence[_arrays.Array]) -> _training.Rows:
    """Rows with the groups of each member, if there are any."""
    if not groups:
        return rows
    group = torch.from_numpy(np.array(groups)).to(rows.index.device)
    return replace(rows, group=group)


def _to_weight(job: Job, sample_weight: _arrays.Array | None) -> torch.Tensor | None:
    """Weights of rows as a tensor like that of the rows."""
    if sample_weight is None:
        return None
    # On the CPU first: not every device has float64.
    return torch.from_numpy(sample_weight).to(_dtype(job)).to(job.device)


def _weighted(
    data: torch.Tensor, index: torch.Tensor, weight: torch.Tensor | None
) -> _training.Rows:
    """Rows of `data`, of which each has a `weight`: those of a member then have mean 1."""
    if weight is None:
        return _training.Rows(data, index)
    own = weight[index]
    return _training.Rows(data, index, own / own.mean(1, keepdim=True))


def _n_factor_rows(job: Job) -> int:
    most = HOLED_ROWS if job.architecture["missing"] else FACTOR_ROWS
    return min(most, FACTOR_VALUES // job.architecture["n_features"] + 2)


# Neighbouring rows that are read together: 256 KiB in float32, a few pages of a disk.
READ_VALUES = 1 << 16
LEAST_BLOCKS = 64  # in a part


def _read_in_parts(
    job: Job, end_part: Callable[[int, float], None]
) -> tuple[Read, _training.Rows, Some]:
    """Training rows that are too many for memory, those held out, and some of them.

    An epoch reads blocks of neighbouring rows in a random order. The blocks that memory
    holds at once, 64 or more, are a part, whose rows training shuffles. So a batch has rows
    from many places, and data on a disk are read in long pieces. (Xu et al., Stochastic
    gradient descent without full data shuffle, 2022, arXiv:2206.05830, who call it CorgiPile.)

    """
    n_rows, n_features, plan = job.data.shape[0], job.architecture["n_features"], job.plan
    weight = job.sample_weight
    units = _model.units(job.state)
    rng = np.random.default_rng(job.seed + 1)

    def choose(n: int) -> _arrays.Array:
        stretches = np.arange(n + 1) * n_rows // n
        return rng.integers(stretches[:-1], stretches[1:])

    def take(chosen: _arrays.Array) -> _training.Rows:
        rows = torch.empty((len(chosen), n_features), dtype=_dtype(job), device=job.device)
        block = _arrays.dense(job.data[chosen])
        _arrays.fill_standardised(rows, block, units, _support(job))
        index = torch.arange(len(chosen), device=job.device).unsqueeze(0)
        own = None if weight is None else weight[chosen]
        groups = [] if job.group is None else [job.group[chosen]]
        return _with_groups(_weighted(rows, index, _to_weight(job, own)), groups)

    kept_out = np.sort(job.held_out)
    # As many as there is room for: groups may be more.
    chosen = np.sort(job.held_out[: plan.n_held_out])
    judged = take(chosen if plan.n_held_out else choose(min(_training.PROBE_ROWS, n_rows)))
    # Of all parts together the mean is 1.
    unit = 1.0 if weight is None else np.delete(weight, kept_out).mean()
    others = np.setdiff1d(choose(min(_n_factor_rows(job), n_rows)), kept_out)
    n_block = max(1, min(READ_VALUES // n_features, job.n_at_once // LEAST_BLOCKS))
    n_blocks = job.n_at_once // n_block
    buffer = torch.empty((n_blocks * n_block, n_features), dtype=_dtype(job), device=job.device)

    def read(epoch: int) -> Iterable[tuple[float, _training.Rows]]:
        done, order = 0.0, np.random.default_rng([job.seed + 1, epoch])
        starts = order.permutation(np.arange(0, n_rows, n_block))
        for first in range(0, len(starts), n_blocks):
            end, weights = 0, []
            for start in starts[first : first + n_blocks]:
                block = _arrays.dense(job.data[start : start + n_block])
                out = kept_out[slice(*np.searchsorted(kept_out, (start, start + n_block)))]
                block = np.delete(block, out - start, axis=0)
                if weight is not None:
                    own = weight[start : start + n_block] / unit
                    weights.append(np.delete(own, out - start))
                into = buffer[end : end + len(block)]
                _arrays.fill_standardised(into, block, units, _support(job))
                end += len(block)
            if end:
                index = torch.arange(end, device=job.device).unsqueeze(0)
                of_rows = _to_weight(job, np.concatenate(weights)[None] if weights else None)
                share = end / (n_rows - len(kept_out))
                yield share, _training.Rows(buffer, index, of_rows)
                done += share
                end_part(epoch, done)

    def some(of_all: bool) -> _training.Rows:
        return take(np.union1d(others, chosen) if of_all else others)

    return read, judged, some


# --- factor analysis -----------------------------------------------------------------------


class _Analyses:
    """Factor analyses of the rows of jobs: those of the same rows are made once.

    Where torch cannot factorise a matrix of theirs, independent columns take their place, or the
    analysis of the rows trained on that of all rows.
    """

    def __init__(self, jobs: Sequence[Job], noise: Sequence[_factors.Noise]) -> None:
        self.jobs, self.noise = jobs, noise
        self.found: dict[Hashable, Any] = {}
        self.choices: dict[int, _factors.Choice] = {}
        self.latest: list[_factors.Factors] = []

    def of(self, rows: _training.Rows, *, again: bool = False) -> list[_factors.Factors]:
        """Of these rows, each of the size that they choose; `again`, of those sizes."""
        found = []
        for m, (job, noise) in enumerate(zip(self.jobs, self.noise, strict=True)):
            y, weight, group = _member(rows, m)
            if not again:
                inputs = y, job.plan.n_components, noise, weight, group
                self.choices[m] = self._once(_factors.choose, inputs) or _factors.ALONE
            factors = self._once(_factors.analyse, (y, self.choices[m], noise, weight))
            if factors is None and again:
                factors = self.latest[m]
            elif factors is None:
                self.choices[m] = _factors.ALONE
                factors = _factors.analyse(y, _factors.ALONE, noise, weight)
            found.append(factors)
        self.latest = found
        return found

    def shortfalls(self, rows: _training.Rows, records: Sequence[_training.Record]) -> list[float]:
        """By how many nats a row the last epochs miss factor analysis of these rows."""
        missed = []
        pairs = zip(self.jobs, self.noise, records, strict=True)
        for m, (job, noise, record) in enumerate(pairs):
            y, weight, _ = _member(rows, m)
            size = _factors.Size(min(job.plan.n_components, y.shape[1]))
            own = torch.ones_like(y[:, 0]) if weight is None else weight
            best = self._once(_highest_likelihood, (y, size, noise, own))
            loss = record.history["negative_elbo"][-1] - job.plan.constant
            is_known = best is not None and record.outcome == "finished"
            missed.append(loss + best if is_known else 0.0)
        return missed

    def _once(self, function: Callable[..., Any], inputs: tuple[Any, ...]) -> Any:
        """What `function` makes of these inputs, or None where torch cannot factorise a matrix."""
        key = function, *map(_digest, inputs)
        if key not in self.found:
            try:
                self.found[key] = function(*inputs)
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
                self.found[key] = None
        return self.found[key]


def _highest_likelihood(
    y: torch.Tensor, size: _factors.Size, noise: _factors.Noise, weight: torch.Tensor
) -> float:
    """The weighted mean log-likelihood of rows y (B, D) under factor analysis of them."""
    y, noise = _factors.without_constants(y, noise)
    ((found,),) = _factors.maximise(y, [size], noise, weight[None], _factors.N_STEPS)
    return float((weight * _factors.log_likelihood(y, *found)).sum() / weight.sum())


def _member(
    rows: _training.Rows, m: int
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Rows (B, D), weights and groups (B,) of one member, float64 on the CPU."""
    y = rows.take(rows.index[m].unsqueeze(0))[0].cpu().double()
    weight = None if rows.weight is None else rows.weight[m].cpu().double()
    return y, weight, None if rows.group is None else rows.group[m].cpu()


def _digest(value: Any) -> Hashable:
    """What tells a value, or a tensor by its contents, from others."""
    if isinstance(value, tuple):
        return tuple(map(_digest, value))
    if isinstance(value, torch.Tensor):
        array = np.ascontiguousarray(value.numpy())
        return hashlib.sha256(array).digest(), array.shape
    return value


# --- many jobs ----------------------------------------------------------------------------


def gather(jobs: Mapping[int, Job], max_stack: int | str) -> list[list[int]]:
    """Which jobs train together: lists of their numbers.

    At most `max_stack` in a stack; with "auto", what has room in scikit-learn's
    `working_memory` and, on a CPU, in its cache.
    """
    groups: dict[Hashable, list[int]] = {}
    sources: dict[Hashable, int] = {}  # in the order in which they are met, the same in each run
    for i, job in jobs.items():
        groups.setdefault((shape(job), i if _in_parts(job) else None), []).append(i)
        sources.setdefault(_source(job), len(sources))
    stacks: list[list[int]] = []
    for group in groups.values():
        job, n_threads = jobs[group[0]], _n_threads(jobs[group[0]])
        room = get_config()["working_memory"] * 2**20
        if job.device.type == "cpu":
            room /= n_threads
            widest = min(WIDEST, math.ceil(len(group) / n_threads))  # no thread without a stack
        else:
            if job.device.type == "cuda":
                room = max(room, torch.cuda.mem_get_info(job.device)[0] / 2)
            widest = len(group)
        if max_stack != "auto":
            widest = int(max_stack)
        size = math.ceil(len(group) / math.ceil(len(group) / widest))
        own, rows = max(_n_bytes(jobs[i]) for i in group), _row_bytes(job)
        source = {i: sources[_source(jobs[i])] for i in group}
        # Padding costs products: neighbours have one number of components, the widest, which take
        # longest, first. Where the rows of all have no room in a stack, they share rows instead.
        wide = {i: -jobs[i].plan.n_components for i in group}
        group.sort(key=lambda i: (wide[i], source[i]))
        if size * own + len(set(source.values())) * rows > room:
            group.sort(key=source.__getitem__)
        limit = room if max_stack == "auto" else math.inf
        stacks += _fill([(i, source[i]) for i in group], size, limit, own, rows)
    return stacks


def _fill(
    members: Sequence[tuple[int, int]], size: int, room: float, own: float, rows: float
) -> list[list[int]]:
    """Stacks of members (number, source of rows) that have room; sources are shared."""
    stacks: list[list[int]] = []
    left, n_left, held = 0.0, 0, set[int]()
    for number, source in members:
        needed = own + rows * (source not in held)
        if n_left == 0 or needed > left:
            stacks.append([])
            left, n_left, held, needed = room, size, set(), own + rows
        stacks[-1].append(number)
        left, n_left = left - needed, n_left - 1
        held.add(source)
    return stacks


def _n_threads(job: Job) -> int:
    """How many stacks of such jobs train at once."""
    # Each that is read in parts has a buffer of its own.
    side_by_side = job.device.type == "cpu" and _is_small(job) and not _in_parts(job)
    return min(MOST_STACKS, torch.get_num_threads()) if side_by_side else 1


def _itemsize(job: Job) -> int:
    return 8 if job.precision == "float64" else 4


def _row_bytes(job: Job) -> int:
    """What the rows of a job take in training."""
    return _itemsize(job) * job.data.shape[0] * job.architecture["n_features"]


def _n_bytes(job: Job) -> int:
    """About what a model takes in training, besides its rows."""
    plan, n_rows, n_features = job.plan, job.data.shape[0], job.architecture["n_features"]
    sizes = job.architecture["hidden_layer_sizes"]
    # Adam's five matrices, three copies of the weights and the gradients.
    weights = 9 * _model.n_weights(job.state)
    # Values before and after each layer and their gradients; about 8 passes over a row.
    activations = plan.batch_size * (8 * n_features + 2 * 4 * sum(sizes) + 16 * plan.n_components)
    activations *= plan.n_importance_samples
    judged = _training.N_VALIDATION_DRAWS * max(plan.n_held_out, _training.PROBE_ROWS)
    # Noise, drawn and stacked, and the order of an epoch.
    epoch = n_rows * (2 * plan.n_components + 6) + judged * plan.n_components
    return _itemsize(job) * (weights + activations + epoch)


def run_all(
    jobs: dict[int, Job],
    stacks: Sequence[Sequence[int]],
    watch: Callable[[int, int], AbstractContextManager[Callable[[], bool]]],
) -> tuple[dict[int, Trained], dict[int, float], dict[int, Exception]]:
    """Train stacks of jobs; returns what became of each job, and its share of the seconds.

    Jobs are taken out as they are trained. Of those whose stack fails, the third dict has the
    error: by themselves they will fare as they do. `watch` is told of each stack, its place and
    its epochs, and gives what is to be called after each of them: the stack stops where that
    returns True.
    """
    trained: dict[int, Trained] = {}
    seconds: dict[int, float] = {}
    errors: dict[int, Exception] = {}
    interrupted = threading.Event()

    def run_stack(place: int) -> None:
        stack = [jobs.pop(i) for i in stacks[place]]
        start, told = time.perf_counter(), []
        with watch(place, max(job.plan.max_iter for job in stack)) as end_epoch:

            def tell(records: Sequence[_training.Record], states: Any) -> bool:
                told.append(True)
                stop = end_epoch()
                told.pop()
                return stop or interrupted.is_set()

            try:
                outcomes = run(stack, lambda: None, tell)
            except Exception as error:
                if told:  # it was a callback's
                    raise
                errors.update(dict.fromkeys(stacks[place], error))
                return
        if any(outcome.record.interrupted for outcome in outcomes):
            raise KeyboardInterrupt
        share = (time.perf_counter() - start) / len(stack)
        trained.update(zip(stacks[place], outcomes, strict=True))
        seconds.update(dict.fromkeys(stacks[place], share))

    of_each = [_n_threads(jobs[stack[0]]) for stack in stacks]
    for n_threads, places in itertools.groupby(range(len(stacks)), of_each.__getitem__):
        if n_threads == 1:
            for place in places:
                run_stack(place)
            continue
        with ThreadPoolExecutor(n_threads) as threads:
            try:
                _arrays.wait_for([threads.submit(run_stack, place) for place in places])
            except BaseException:
                interrupted.set()
                threads.shutdown(cancel_futures=True)
                raise
    return trained, seconds, errors
