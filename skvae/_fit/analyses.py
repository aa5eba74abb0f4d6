"""Factor analysis of the rows of jobs: the linear model that training has to beat."""

import hashlib
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch

from skvae._fit.job import Job, has_known_optimum
from skvae._model import factor_analysis
from skvae._model.member import Record
from skvae._model.rows import Rows


class Analyses:
    """Factor analyses of the rows of jobs; jobs with the same rows share one.

    If torch cannot factorise a matrix, independent columns replace the analysis of the training
    rows, and the analysis of the training rows replaces that of all rows.
    """

    def __init__(self, jobs: Sequence[Job], noise: Sequence[factor_analysis.Noise]) -> None:
        self.jobs, self.noise = jobs, noise
        self.found: dict[Hashable, Any] = {}
        self.choices: dict[int, factor_analysis.Choice] = {}
        self.latest: list[factor_analysis.Factors] = []

    def of(self, rows: Rows, *, again: bool = False) -> list[factor_analysis.Factors]:
        """Analyse these rows with the sizes that they choose; `again` keeps the last sizes."""
        found = []
        for m, (job, noise) in enumerate(zip(self.jobs, self.noise, strict=True)):
            y, weight, group = _member(rows, m)
            if not again:
                inputs = y, job.plan.n_components, noise, weight, group
                self.choices[m] = (
                    self._once(factor_analysis.choose, inputs) or factor_analysis.ALONE
                )
            factors = self._once(factor_analysis.analyse, (y, self.choices[m], noise, weight))
            if factors is None and again:
                factors = self.latest[m]
            elif factors is None:
                self.choices[m] = factor_analysis.ALONE
                factors = factor_analysis.analyse(y, factor_analysis.ALONE, noise, weight)
            found.append(factors)
        self.latest = found
        return found

    def starts(self, rows: Rows) -> list[factor_analysis.Factors | None]:
        """Analyse these rows with as many components as each model has.

        Independent columns replace an analysis for which torch cannot factorise a matrix, and None
        if it cannot even do so for these.
        """
        found = []
        for m, (job, noise) in enumerate(zip(self.jobs, self.noise, strict=True)):
            y, weight, _ = _member(rows, m)
            whole = ((_size(job, y), 1.0),)
            choices = (y, whole, noise, weight), (y, factor_analysis.ALONE, noise, weight)
            tried = (self._once(factor_analysis.analyse, inputs) for inputs in choices)
            found.append(next(filter(None, tried), None))
        return found

    def shortfalls(self, rows: Rows, records: Sequence[Record]) -> list[float]:
        """Return how many nats per row the last epochs are worse than factor analysis.

        It is 0 for models whose optimum is not known.
        """
        missed: list[float] = []
        pairs = zip(self.jobs, self.noise, records, strict=True)
        for m, (job, noise, record) in enumerate(pairs):
            if not has_known_optimum(job) or record.outcome != "finished":
                missed.append(0.0)
                continue
            y, weight, _ = _member(rows, m)
            size = _size(job, y)
            own = torch.ones_like(y[:, 0]) if weight is None else weight
            best = self._once(_highest_likelihood, (y, size, noise, own))
            loss = record.history["negative_elbo"][-1] - job.plan.constant
            missed.append(0.0 if best is None else loss + best)
        return missed

    def _once(self, function: Callable[..., Any], inputs: tuple[Any, ...]) -> Any:
        """Call `function` once for equal inputs; None if torch cannot factorise a matrix."""
        key = function, *map(_digest, inputs)
        if key not in self.found:
            try:
                self.found[key] = function(*inputs)
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
                self.found[key] = None
        return self.found[key]


def _size(job: Job, y: torch.Tensor) -> factor_analysis.Size:
    return factor_analysis.Size(min(job.plan.n_components, y.shape[1]))


def _highest_likelihood(
    y: torch.Tensor, size: factor_analysis.Size, noise: factor_analysis.Noise, weight: torch.Tensor
) -> float:
    """The weighted mean log-likelihood of rows y (B, D) under factor analysis of them."""
    y, noise = factor_analysis.without_constants(y, noise)
    ((found,),) = factor_analysis.maximise(y, [size], noise, weight[None], factor_analysis.N_STEPS)
    return float((weight * factor_analysis.log_likelihood(y, *found)).sum() / weight.sum())


def _member(rows: Rows, m: int) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Rows (B, D), weights and groups (B,) of one member, float64 on the CPU."""
    y = rows.take(rows.index[m].unsqueeze(0))[0].cpu().double()
    weight = None if rows.weight is None else rows.weight[m].cpu().double()
    return y, weight, None if rows.group is None else rows.group[m].cpu()


def _digest(value: Any) -> Hashable:
    """Return a key that differs for different values; tensors are compared by their contents."""
    if isinstance(value, tuple):
        return tuple(map(_digest, value))
    if isinstance(value, torch.Tensor):
        array = np.ascontiguousarray(value.numpy())
        return hashlib.sha256(array.data).digest(), array.shape
    return value
