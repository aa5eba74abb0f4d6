"""Which of two models is better, by the losses of rows that are held out, and what is luck.

The losses of the same rows under two models differ by d_b, row by row. Their mean has the standard
error of a weighted mean; rows of one group depend on each other, so that the error is that of the
groups' sums (Liang & Zeger, Longitudinal data analysis using generalized linear models, 1986).

Single rows that differ by far more than the others would decide alone. They are moved to a limit:
so many mean distances of the rows from their median. In this mean, distances are cut at the 5 % and
95 % quantiles, and at the last but one of few rows. Where all rows between these are equal, no
limit is set.
"""

import math

import numpy as np
import torch
from scipy.special import ndtr, stdtrit

# A row counts as at most this many mean distances above the median where epochs are compared.
FAR_ROW = 20.0
# The difference of a row counts as at most this many mean distances from the median where two
# models are compared.
FAR_DIFFERENCE = 8.0
# A row against a model counts as up to so many where the mean is asked once more: a model that
# fails on single rows is worse than one that doesn't, and one row in fifty can decide.
FAR_AGAINST = 50.0
TAIL = 0.05  # of the weight, on each side, that mean distances are without
SAMPLE_ROWS = 2**14  # that the limits are taken of
# An epoch must beat factor analysis by ERRORS + FEW_ROWS / n standard errors, with n rows held out.
# The second number is high, since a network that has learned few rows by heart may look better on a
# dozen others. docs/quality.md, "Few rows, many seeds", shows how often a network is kept.
ERRORS, FEW_ROWS = 1.0, 16.0


def excess(losses: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """What rows far beyond the others add to the mean of losses (M, B), (M,): 0 where none is.

    Without it, one row that a model cannot know decides which epoch is best. `weight` (M, B) is how
    much each row counts, of mean 1.
    """
    _, high = _limits(losses, weight, FAR_ROW)
    beyond = (losses - high).clamp(min=0)
    return (beyond if weight is None else weight * beyond).mean(1)


def _limits(
    values: torch.Tensor, weight: torch.Tensor | None, n_distances: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """So many mean distances below and above the median of values (M, B), (M, 1) each."""
    step = 1 + values.shape[1] // SAMPLE_ROWS
    some, order = values[:, ::step].sort(1)
    share = torch.ones_like(some)
    if weight is not None:
        share = weight.expand_as(values)[:, ::step].gather(1, order).to(some)
    behind = share.cumsum(1)
    # A little less, since sums are rounded.
    wanted = (1 - 1e-6) * behind[:, -1:] * some.new_tensor([TAIL, 0.5, 1 - TAIL])
    low, middle, high = torch.searchsorted(behind, wanted).split(1, dim=1)
    # Of few rows, the last one on each side is cut.
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
    """The mean by which losses (B,) of the same rows differ, in nats, and its standard error.

    Rows that differ by far more than the others are moved to a limit: one of them would have the
    error of all. `weight` (B,) is how much each row counts, `group` (B,) its group. The error is
    infinite where there is one group.
    """
    difference, share = _of_rows(worse, better, weight)
    return _mean(difference.clamp(*_limits(difference, share, FAR_DIFFERENCE)), share, group)


def _of_rows(
    worse: torch.Tensor, better: torch.Tensor, weight: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Differences and weights of rows, (1, B)."""
    weight = torch.ones_like(worse) if weight is None else weight
    # On the CPU first, since not every device has float64.
    worse, better, weight = (values.cpu().double() for values in (worse, better, weight))
    return (worse - better).unsqueeze(0), weight.unsqueeze(0)


def _mean(
    difference: torch.Tensor, weight: torch.Tensor, group: torch.Tensor | None
) -> tuple[float, float]:
    """Mean of differences (1, B), and its standard error."""
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
    """Standard errors by which an epoch must be better on rows of these weights (B,).

    Rows of different weights are worth fewer rows of equal weight, n (Kish, Survey sampling, 1965);
    a group is worth one row. The number is ``ERRORS + FEW_ROWS / n`` for a normal distribution.
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
    """Whether the second losses (B,) are lower by more than so many standard errors.

    They have to be lower by one standard error, too, where rows that speak against them count as
    much as ``FAR_AGAINST`` lets them. Losses that are finite are better than others.
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
