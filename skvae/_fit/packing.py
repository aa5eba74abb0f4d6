"""Pack jobs into stacks that train together, and train stacks side by side."""

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

from skvae._backend import blocks, team
from skvae._fit import execution
from skvae._fit.job import Job, Trained, in_parts, itemsize, n_shares, shape, source_of
from skvae._model import loop
from skvae._model.member import Record
from skvae._model.state import n_weights

# Most models in a stack on a CPU: with more, the tensors of a step exceed the cache, and training
# gets no faster.
WIDEST = 32
MOST_STACKS = 8  # that train at once: their threads share Python's lock


def gather(jobs: Mapping[int, Job], max_stack: int | str) -> list[list[int]]:
    """Return lists of the numbers of jobs that train together.

    A stack has at most `max_stack` jobs; with "auto", as many as have room in scikit-learn's
    `working_memory` and, on a CPU, in its cache.
    """
    groups: dict[Hashable, list[int]] = {}
    sources: dict[Hashable, int] = {}  # numbered in the order of the jobs, the same in each run
    for i, job in jobs.items():
        groups.setdefault((shape(job), i if in_parts(job) else None), []).append(i)
        sources.setdefault(source_of(job), len(sources))
    stacks: list[list[int]] = []
    for group in groups.values():
        job, n_threads = jobs[group[0]], _n_threads(jobs[group[0]])
        room = get_config()["working_memory"] * 2**20
        if job.device.type == "cpu":
            room /= n_threads
            widest = min(WIDEST, math.ceil(len(group) / n_threads))  # each thread gets a stack
        else:
            if job.device.type == "cuda":
                room = max(room, torch.cuda.mem_get_info(job.device)[0] / 2)
            widest = len(group)
        if max_stack != "auto":
            widest = int(max_stack)
        size = math.ceil(len(group) / math.ceil(len(group) / widest))
        own, rows = max(_n_bytes(jobs[i]) for i in group), _row_bytes(job)
        source = {i: sources[source_of(jobs[i])] for i in group}
        # Padding costs products, so jobs are sorted by their number of components. The widest take
        # longest and come first. If the rows of all sources have no room in a stack, jobs are
        # sorted by source, so that a stack shares its rows.
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
    """Fill stacks with members (number, source of rows) as room allows; members share sources."""
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
    """Return how many stacks of such jobs train at once."""
    # Jobs that are read in parts need a buffer each, so they train one after the other.
    side_by_side = job.device.type == "cpu" and n_shares(job) == 1 and not in_parts(job)
    return min(MOST_STACKS, team.n_threads(job.device)) if side_by_side else 1


def _row_bytes(job: Job) -> int:
    """Number of bytes of the rows of a job."""
    return itemsize(job) * job.data.shape[0] * job.architecture.n_features


def _n_bytes(job: Job) -> int:
    """Estimate the bytes that the training of a model takes, besides its rows."""
    plan, n_rows, n_features = job.plan, job.data.shape[0], job.architecture.n_features
    sizes = job.architecture.hidden_layer_sizes
    # Five matrices of Adam, three copies of the weights, and the gradients.
    weights = 9 * n_weights(job.state)
    # Values before and after each layer, with their gradients, and about 8 values per feature.
    activations = plan.batch_size * (8 * n_features + 2 * 4 * sum(sizes) + 16 * plan.n_components)
    activations *= plan.n_importance_samples
    judged = loop.N_VALIDATION_DRAWS * max(plan.n_held_out, loop.PROBE_ROWS)
    # The noise, which is drawn and then stacked, and the order of an epoch.
    epoch = n_rows * (2 * plan.n_components + 6) + judged * plan.n_components
    return itemsize(job) * (weights + activations + epoch)


def run_all(
    jobs: dict[int, Job],
    stacks: Sequence[Sequence[int]],
    watch: Callable[[int, int], AbstractContextManager[Callable[[], bool]]],
) -> tuple[dict[int, Trained], dict[int, float], dict[int, Exception]]:
    """Train stacks of jobs; return the result of each job, its share of the seconds, and errors.

    Jobs are removed from `jobs` as they are trained. If a stack fails, its jobs have the error in
    the third dict; the caller can train them one by one. ``watch(i, n_epochs)`` is entered before
    stack i trains, and gives a function that is called after each epoch. The stack stops if this
    function returns True.
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
                if told:  # the error came from a callback
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
