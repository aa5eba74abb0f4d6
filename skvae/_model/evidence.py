"""Compare two models by the losses of held-out rows, and tell a difference from luck.

The losses of the same rows under two models differ by d_b, row by row. The mean of d_b has the
standard error of a weighted mean. Rows of one group depend on each other, so the error is computed
from the sums of the groups (Liang & Zeger, Longitudinal data analysis using generalized linear
models, 1986).

A single row that differs by far more than the others would decide alone. Such a row is moved to a
limit: a number of mean distances from the median of the rows. This mean cuts distances at the 5 %
and 95 % quantiles, and with few rows at the second lowest and second highest value. There is no
limit if all rows between these are equal.
"""

import math

import numpy as np
import torch
from scipy.special import ndtr, stdtrit

# Limit of a row's loss when epochs are compared, in mean distances above the median.
FAR_ROW = 20.0
# Limit of a row's difference when two models are compared, in mean distances from the median.
FAR_DIFFERENCE = 8.0
# Limit of a row that speaks against the better model, in a second comparison. A model that fails on
# single rows is worse than a model that does not, and with this limit one row in fifty can decide.
FAR_AGAINST = 50.0
TAIL = 0.05  # share of the weight on each side at which mean distances are cut
SAMPLE_ROWS = 2**14  # most rows that the limits are computed from
# An epoch must beat factor analysis by ERRORS + FEW_ROWS / n standard errors, with n rows held out.
# FEW_ROWS is high, since a network that has learned few rows by heart may look better on a dozen
# others. docs/quality.md, "Few rows, many seeds", shows how often a network is kept.
ERRORS, FEW_ROWS = 1.0, 16.0


def excess(losses: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """Return how much rows far beyond the others add to the mean of losses (M, B), (M,).

    Callers subtract it. Otherwise one row that a model cannot know would decide which epoch is
    best. It is 0 if there is no such row. `weight` (M, B), of mean 1, is how much each row counts.
    """
    _, high = _limits(losses, weight, FAR_ROW)
    beyond = (losses - high).clamp(min=0)
    return (beyond if weight is None else weight * beyond).mean(1)


def _limits(
    values: torch.Tensor, weight: torch.Tensor | None, n_distances: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the limits `n_distances` mean distances below and above the median, (M, 1) each."""
    step = 1 + values.shape[1] // SAMPLE_ROWS
    some, order = values[:, ::step].sort(1)
    share = torch.ones_like(some)
    if weight is not None:
        share = weight.expand_as(values)[:, ::step].gather(1, order).to(some)
    behind = share.cumsum(1)
    # A little less than the quantiles, since sums are rounded.
    wanted = (1 - 1e-6) * behind[:, -1:] * some.new_tensor([TAIL, 0.5, 1 - TAIL])
    low, middle, high = torch.searchsorted(behind, wanted).split(1, dim=1)
    # With few rows, at least the last row on each side is cut.
    low, high = low.clamp(min=1).minimum(middle), high.clamp(max=some.shape[1] - 2).maximum(middle)
    low, middle, high = (some.gather(1, place) for place in (low, middle, high))
    distance = (some.clamp(low, high) - middle).abs()
    limit = n_distances * (share * distance).sum(1, keepdim=True) / behind[:, -1:]
    limit = torch.where(limit > 0, limit, torch.inf)
    return middle - limit, middle + limit


def gain(
    worse: torch.Tensor,
    better: torch.Tensor,
    weight: torch.Tensor | None = None,
    group: torch.Tensor | None = None,
) -> tuple[float, float]:
    """Return the mean by which `worse` exceeds `better`, in nats, and its standard error.

    Both are losses (B,) of the same rows. Rows that differ by far more than the others are moved to
    a limit, since one of them alone would determine the error. `weight` (B,) is how much each row
    counts, `group` (B,) its group. The error is infinite if there is only one group.
    """
    difference, share = _of_rows(worse, better, weight)
    return _mean(difference.clamp(*_limits(difference, share, FAR_DIFFERENCE)), share, group)


def _of_rows(
    worse: torch.Tensor, better: torch.Tensor, weight: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the differences and the weights of rows, (1, B) each."""
    weight = torch.ones_like(worse) if weight is None else weight
    # On the CPU first, since not every device has float64.
    worse, better, weight = (values.cpu().double() for values in (worse, better, weight))
    return (worse - better).unsqueeze(0), weight.unsqueeze(0)


def _mean(
    difference: torch.Tensor, weight: torch.Tensor, group: torch.Tensor | None
) -> tuple[float, float]:
    """Return the mean of differences (1, B), and its standard error."""
    share, difference = weight[0] / weight.sum(), difference[0]
    mean = float(share @ difference)
    deviation = share * (difference - mean)
    if group is not None:
        _, place = group.cpu().unique(return_inverse=True)
        deviation = deviation.new_zeros(int(place.max()) + 1).index_add(0, place, deviation)
    n = len(deviation)
    if n < 2:
        return mean, math.inf
    return mean, math.sqrt(n / (n - 1) * float(deviation.square().sum()))


def needed_errors(weight: np.ndarray, group: np.ndarray | None = None) -> float:
    """Return the standard errors by which an epoch must be better on rows of weights (B,).

    Rows of different weights are worth fewer rows of equal weight, n (Kish, Survey sampling, 1965).
    A group is worth one row. The number is ``ERRORS + FEW_ROWS / n`` for a normal distribution.
    The standard error is an estimate, so the quantile of Student's t distribution with the same
    probability is taken: 9.3 for six rows, 2.7 for twelve, 1.6 for thirty and 1.2 for eighty.
    """
    if group is not None:
        weight = np.bincount(np.unique(group, return_inverse=True)[1], weight)
    if np.count_nonzero(weight) < 2:
        return math.inf
    n = float(weight.sum() ** 2 / np.square(weight).sum())
    needed = -float(stdtrit(n - 1, ndtr(-ERRORS - FEW_ROWS / n)))
    return needed if math.isfinite(needed) else math.inf


def is_better(
    worse: torch.Tensor,
    better: torch.Tensor,
    n_errors: float,
    weight: torch.Tensor | None = None,
    group: torch.Tensor | None = None,
) -> bool:
    """Whether losses `better` (B,) are lower than `worse` by more than `n_errors` standard errors.

    A second comparison, in which rows that speak against `better` count up to ``FAR_AGAINST``, must
    also find it lower, by one standard error. Finite losses are better than losses with infinity
    or NaN.
    """
    if not worse.isfinite().all():
        return bool(better.isfinite().all())
    if not better.isfinite().all():
        return False
    mean, error = gain(worse, better, weight, group)
    if not mean > n_errors * error:
        return False
    difference, share = _of_rows(worse, better, weight)
    low, _ = _limits(difference, share, FAR_AGAINST)
    mean, error = _mean(difference.maximum(low), share, group)
    return mean > min(ERRORS, n_errors) * error
