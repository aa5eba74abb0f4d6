"""Train jobs: numpy arrays go in, a stack of models is trained, and numpy arrays come out.

A fit trains a stack of one model, and a search trains stacks of many. Jobs whose tensors have one
shape train together. Jobs on the same rows in the same units, such as the candidates of one fold,
share those rows.

On a CPU, stacks of small models train side by side in threads of one core each. If threads shared
the operations of one stack, they would wait for each other in every operation.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from skvae._backend import devices, team
from skvae._backend.tensors import to_array, to_tensor
from skvae._data import arrays
from skvae._data.units import fill_standardised
from skvae._fit.analyses import Analyses
from skvae._fit.job import (
    SHORTFALL,
    Job,
    Trained,
    begins_as_factors,
    has_known_optimum,
    in_parts,
    n_shares,
    support_of,
    torch_dtype,
)
from skvae._fit.loading import read_in_parts, read_once
from skvae._model import loop
from skvae._model.member import Record
from skvae._model.stack import Stack
from skvae._model.state import n_active, units_of
from skvae._model.vae import State

ACTIVITY_ROWS = 1000  # first rows, which show which components are active


def _state_of(stack: Stack, job: Job, record: Record) -> State:
    return {**job.state, **stack.state_of(job.architecture, job.state, record.weights)}


def _n_active(job: Job, state: State) -> int:
    rows = arrays.dense(job.data[:ACTIVITY_ROWS])
    y = torch.empty((len(rows), job.architecture.n_features), dtype=torch_dtype(job), device="cpu")
    fill_standardised(y, rows, units_of(state), support_of(job))
    return n_active(job.architecture, state, y)


def to_arrays(progress: Any) -> Any:
    """Turn the progress of a training run into arrays, numbers and strings."""
    if isinstance(progress, Mapping):
        return {name: to_arrays(value) for name, value in progress.items()}
    return to_array(progress) if isinstance(progress, torch.Tensor) else progress


def _to_tensors(progress: Any, device: torch.device) -> Any:
    """Undo `to_arrays`."""
    if isinstance(progress, Mapping):
        # A generator's state is always on the CPU, even if the generator is not.
        where = {"generator": torch.device("cpu")}
        return {name: _to_tensors(v, where.get(name, device)) for name, v in progress.items()}
    return to_tensor(progress, device) if isinstance(progress, np.ndarray) else progress


def train(
    jobs: Sequence[Job],
    begin_epoch: Callable[[], None],
    end_epoch: Callable[[Sequence[Record], Callable[[], list[State]]], bool],
    end_part: Callable[[int, float], None] = lambda epoch, share: None,
) -> list[Trained]:
    """Train the models of jobs of one shape.

    `end_epoch` gets the records of the models in training and a function that copies their states;
    training stops if it returns True. If rows are read in parts, `end_part` is called after each
    part with the epoch, counted from 0, and the share of it that is done.
    """
    first = jobs[0]
    n_threads = team.n_threads(first.device)  # those of the caller, which the next line changes
    with devices.computing(first.device), team.Team(first.device, n_threads) as us:
        stack = Stack(
            [job.architecture for job in jobs],
            [job.state for job in jobs],
            first.device,
            low_precision=first.precision == "bf16",
        )

        def states(records: Iterable[Record]) -> list[State]:
            return [_state_of(stack, jobs[record.member], record) for record in records]

        # seed + 1, since the seed itself has drawn the first weights.
        generators = [devices.generator(job.seed + 1, first.device) for job in jobs]
        if in_parts(first):
            read, judged, some = read_in_parts(first, end_part)
        else:
            read, judged, some = read_once(jobs)
        analyses = Analyses(jobs, stack.factor_noise) if stack.contains_factors else None
        starts: torch.Tensor | None = None  # the first weights, if they are of factor analysis

        if analyses is not None and begins_as_factors(first):
            found = [factors for factors in analyses.starts(some(False)) if factors is not None]
            if len(found) == len(jobs):
                stack.become_factors(found)
                first_weights = [p.reshape(len(jobs), -1) for p in stack.parameters()]
                starts = torch.cat(first_weights, dim=1)

        def become_simple(of_all: bool) -> None:
            assert analyses is not None
            stack.become_factors(analyses.of(some(of_all), again=of_all))

        def end(records: Sequence[Record]) -> list[Trained]:
            missed = [0.0] * len(jobs)
            if analyses is not None and any(map(has_known_optimum, jobs)):
                missed = analyses.shortfalls(some(False), records)
            if starts is not None:
                records = [
                    replace(record, weights=start, kept=0, is_simple=True)
                    if nats > SHORTFALL
                    else record
                    for record, start, nats in zip(records, starts, missed, strict=True)
                ]
            ends = zip(jobs, records, states(records), missed, strict=True)
            return [
                # The record drops its weights: they are a row of a matrix with those of all models.
                Trained(replace(r, weights=torch.empty(0)), state, _n_active(job, state), nats)
                for job, r, state, nats in ends
            ]

        records: list[Record] = []
        try:
            records = loop.train(
                stack,
                read,
                judged,
                [job.plan for job in jobs],
                generators,
                begin_epoch,
                lambda records: end_epoch(records, lambda: states(records)),
                None if analyses is None else become_simple,
                [_to_tensors(job.progress, job.device) for job in jobs if job.progress is not None],
                team=us,
                n_shares=n_shares(first),
                keep_progress=first.keeps_progress,
            )
            return end(records)
        except KeyboardInterrupt:
            if not records:
                raise
            for record in records:
                record.interrupted = True
            return end(records)
