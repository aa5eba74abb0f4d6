"""Which jobs train together, and stacks that train side by side."""

import itertools
import math
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import torch
from sklearn import get_config

from skvae._backend import blocks
from skvae._fit import execution
from skvae._fit.job import Job, Trained, in_parts, is_small, itemsize, shape, source_of
from skvae._model import loop
from skvae._model.member import Record
from skvae._model.state import n_weights

# Models in a stack on a CPU: beyond, the tensors of a step leave the cache and nothing is won.
WIDEST = 32
MOST_STACKS = 8  # at once: their threads take Python's time in turn


def gather(jobs: Mapping[int, Job], max_stack: int | str) -> list[list[int]]:
    """Which jobs train together: lists of their numbers.

    At most `max_stack` in a stack; with "auto", what has room in scikit-learn's
    `working_memory` and, on a CPU, in its cache.
    """
    groups: dict[Hashable, list[int]] = {}
    sources: dict[Hashable, int] = {}  # in the order in which they are met, the same in each run
    for i, job in jobs.items():
        groups.setdefault((shape(job), i if in_parts(job) else None), []).append(i)
        sources.setdefault(source_of(job), len(sources))
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
        source = {i: sources[source_of(jobs[i])] for i in group}
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
    side_by_side = job.device.type == "cpu" and is_small(job) and not in_parts(job)
    return min(MOST_STACKS, torch.get_num_threads()) if side_by_side else 1


def _row_bytes(job: Job) -> int:
    """What the rows of a job take in training."""
    return itemsize(job) * job.data.shape[0] * job.architecture.n_features


def _n_bytes(job: Job) -> int:
    """About what a model takes in training, besides its rows."""
    plan, n_rows, n_features = job.plan, job.data.shape[0], job.architecture.n_features
    sizes = job.architecture.hidden_layer_sizes
    # Adam's five matrices, three copies of the weights and the gradients.
    weights = 9 * n_weights(job.state)
    # Values before and after each layer and their gradients; about 8 passes over a row.
    activations = plan.batch_size * (8 * n_features + 2 * 4 * sum(sizes) + 16 * plan.n_components)
    activations *= plan.n_importance_samples
    judged = loop.N_VALIDATION_DRAWS * max(plan.n_held_out, loop.PROBE_ROWS)
    # Noise, drawn and stacked, and the order of an epoch.
    epoch = n_rows * (2 * plan.n_components + 6) + judged * plan.n_components
    return itemsize(job) * (weights + activations + epoch)


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

            def tell(records: Sequence[Record], states: Any) -> bool:
                told.append(True)
                stop = end_epoch()
                told.pop()
                return stop or interrupted.is_set()

            try:
                outcomes = execution.train(stack, lambda: None, tell)
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
    for n_threads, indices in itertools.groupby(range(len(stacks)), of_each.__getitem__):
        if n_threads == 1:
            for place in indices:
                run_stack(place)
            continue
        with ThreadPoolExecutor(n_threads) as threads:
            try:
                blocks.wait_for([threads.submit(run_stack, place) for place in indices])
            except BaseException:
                interrupted.set()
                threads.shutdown(cancel_futures=True)
                raise
    return trained, seconds, errors
