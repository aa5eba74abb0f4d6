"""The rows of jobs as tensors: all at once, or in the parts that memory holds."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn import get_config

from skvae._backend.tensors import Array
from skvae._data import arrays
from skvae._data.units import fill_standardised
from skvae._fit.job import Job, n_factor_rows, source_of, support_of, torch_dtype
from skvae._model import loop
from skvae._model.rows import Rows
from skvae._model.state import units_of

# Takes an epoch, counted from 0, and gives its training rows in parts, each with its share of the
# epoch.
Read = Callable[[int], Iterable[tuple[float, Rows]]]
# Gives some of the training rows, at random; with True, the held-out rows are added.
Some = Callable[[bool], Rows]


def rows_at_once(n_rows: int, n_features: int, dtype: Any, n_least: int) -> int:
    """Return how many rows may be in memory: all if `working_memory` holds them, or a part.

    A part takes a quarter of `working_memory`, and has `n_least` rows or more.
    """
    # Each row needs three more numbers of 8 bytes, for its index and the order of an epoch.
    row_bytes = np.dtype(dtype).itemsize * n_features + 24
    room = get_config()["working_memory"] * 2**20 / row_bytes
    return n_rows if n_rows <= room else min(n_rows, max(n_least, int(room / 4)))


def read_once(jobs: Sequence[Job]) -> tuple[Read, Rows, Some]:
    """Load all rows of all jobs, each job in its own units.

    Returns functions that give the training rows and some of them, and the held-out rows.
    """
    first = jobs[0]
    n_rows, n_features = first.data.shape[0], first.architecture.n_features
    sources: dict[Hashable, tuple[int, Job]] = {}
    starts, held_out, training = [], [], []
    for job in jobs:
        start, _ = sources.setdefault(source_of(job), (n_rows * len(sources), job))
        starts.append([start])
        # The order is random, so that the first rows are a sample of all.
        order = np.random.default_rng(job.seed + 1).permutation(n_rows)
        is_trained_on = np.ones(n_rows, bool)
        is_trained_on[job.held_out] = False
        training.append(order[is_trained_on[order]])
        held_out.append(job.held_out if job.plan.n_held_out else training[-1][: loop.PROBE_ROWS])
    shape = n_rows * len(sources), n_features
    data = torch.empty(shape, dtype=torch_dtype(first), device=first.device)
    for start, job in sources.values():
        into = data[start : start + n_rows]
        fill_standardised(into, job.data, units_of(job.state), support_of(job))
    weights = [job.sample_weight for _, job in sources.values() if job.sample_weight is not None]
    weight = _to_weight(first, np.concatenate(weights) if weights else None)
    begin = np.array(starts)

    def take(chosen: list[Array]) -> Rows:
        index = torch.from_numpy(np.array(chosen) + begin).to(first.device)
        pairs = zip(jobs, chosen, strict=True)
        groups = [job.group[own] for job, own in pairs if job.group is not None]
        return _with_groups(_weighted(data, index, weight), groups)

    def some(of_all: bool) -> Rows:
        n = n_factor_rows(first)
        chosen = [own[:n] for own in training]
        if of_all and first.plan.n_held_out:
            pairs = zip(held_out, chosen, strict=True)
            chosen = [np.concatenate(pair)[:n] for pair in pairs]
        return take(chosen)

    rows = take(training)
    return lambda epoch: [(1.0, rows)], take(held_out), some


def _with_groups(rows: Rows, groups: Sequence[Array]) -> Rows:
    """Return rows with the groups of each member, if there are any."""
    if not groups:
        return rows
    group = torch.from_numpy(np.array(groups)).to(rows.index.device)
    return replace(rows, group=group)


def _to_weight(job: Job, sample_weight: Array | None) -> torch.Tensor | None:
    """Return weights of rows as a tensor, with the dtype and device of the rows."""
    if sample_weight is None:
        return None
    # On the CPU first: not every device has float64.
    return torch.from_numpy(sample_weight).to(torch_dtype(job)).to(job.device)


def _weighted(data: torch.Tensor, index: torch.Tensor, weight: torch.Tensor | None) -> Rows:
    """Return rows of `data` with their weights, scaled to a mean of 1 for each member."""
    if weight is None:
        return Rows(data, index)
    own = weight[index]
    return Rows(data, index, own / own.mean(1, keepdim=True))


# Values of neighbouring rows that are read together: 256 KiB in float32, a few pages of a disk.
READ_VALUES = 1 << 16
LEAST_BLOCKS = 64  # least number of blocks in a part


def read_in_parts(job: Job, end_part: Callable[[int, float], None]) -> tuple[Read, Rows, Some]:
    """Read rows that are too many for memory, part by part.

    Returns what `read_once` does. An epoch reads blocks of neighbouring rows in a random order.
    Memory holds a part of 64 blocks or more at once, and training shuffles the rows of a part. So
    a batch has rows from many blocks, and data on a disk are read in long pieces (CorgiPile: Xu et
    al., Stochastic gradient descent without full data shuffle, 2022, arXiv:2206.05830).
    """
    n_rows, n_features, plan = job.data.shape[0], job.architecture.n_features, job.plan
    weight = job.sample_weight
    units = units_of(job.state)
    rng = np.random.default_rng(job.seed + 1)

    def choose(n: int) -> Array:
        stretches = np.arange(n + 1) * n_rows // n
        return rng.integers(stretches[:-1], stretches[1:])

    def take(chosen: Array) -> Rows:
        rows = torch.empty((len(chosen), n_features), dtype=torch_dtype(job), device=job.device)
        block = arrays.dense(job.data[chosen])
        fill_standardised(rows, block, units, support_of(job))
        index = torch.arange(len(chosen), device=job.device).unsqueeze(0)
        own = None if weight is None else weight[chosen]
        groups = [] if job.group is None else [job.group[chosen]]
        return _with_groups(_weighted(rows, index, _to_weight(job, own)), groups)

    kept_out = np.sort(job.held_out)
    # Only as many rows as have room: with groups, more rows may be held out.
    chosen = np.sort(job.held_out[: plan.n_held_out])
    judged = take(chosen if plan.n_held_out else choose(min(loop.PROBE_ROWS, n_rows)))
    # Weights have a mean of 1 over all parts together.
    unit = 1.0 if weight is None else np.delete(weight, kept_out).mean()
    others = np.setdiff1d(choose(min(n_factor_rows(job), n_rows)), kept_out)
    n_block = max(1, min(READ_VALUES // n_features, job.n_at_once // LEAST_BLOCKS))
    n_blocks = job.n_at_once // n_block
    buffer = torch.empty(
        (n_blocks * n_block, n_features), dtype=torch_dtype(job), device=job.device
    )

    def read(epoch: int) -> Iterable[tuple[float, Rows]]:
        done, order = 0.0, np.random.default_rng([job.seed + 1, epoch])
        starts = order.permutation(np.arange(0, n_rows, n_block))
        for first in range(0, len(starts), n_blocks):
            end, weights = 0, []
            for start in starts[first : first + n_blocks]:
                block = arrays.dense(job.data[start : start + n_block])
                out = kept_out[slice(*np.searchsorted(kept_out, (start, start + n_block)))]
                block = np.delete(block, out - start, axis=0)
                if weight is not None:
                    own = weight[start : start + n_block] / unit
                    weights.append(np.delete(own, out - start))
                into = buffer[end : end + len(block)]
                fill_standardised(into, block, units, support_of(job))
                end += len(block)
            if end:
                index = torch.arange(end, device=job.device).unsqueeze(0)
                of_rows = _to_weight(job, np.concatenate(weights)[None] if weights else None)
                share = end / (n_rows - len(kept_out))
                yield share, Rows(buffer, index, of_rows)
                done += share
                end_part(epoch, done)

    def some(of_all: bool) -> Rows:
        return take(np.union1d(others, chosen) if of_all else others)

    return read, judged, some
