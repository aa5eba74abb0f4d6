"""Compare later rows of `partial_fit` with the first rows, which decided the model's units.

The model keeps the mean and the standard deviation that each column had in the rows that it saw
first. If distances of later rows from that mean have another order of magnitude, the model learns
these rows badly: large distances have huge gradients, and small ones vanish in the noise floor. A
column that was constant, or had no value, has no density at all.

The bounds are wide, since the standard deviation of 50 rows is a poor estimate for a column with
heavy tails. If blocks of 50 rows follow a first block of 50 rows like them, less than one in 1,000
is outside. This holds for normal, lognormal (of a sigma up to 1.5), Student (of 2 degrees of
freedom or more), Bernoulli and count columns.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from skvae._backend.tensors import Array
from skvae._backend.warn import warn
from skvae._data import arrays
from skvae._data.statistics import Moments
from skvae._data.words import Labels

# A column leaves its units if a tenth of the values are farther than 10 standard deviations from
# the mean of the first rows, or half of them farther than 5. In a column of mostly zeros fewer
# values can be far, so it also leaves its units if the root mean square distance exceeds 100
# standard deviations. In each case 3 values must be far: one or two are outliers.
FAR, SHARE_FAR = 10.0, 0.1
LESS_FAR, SHARE_LESS_FAR = 5.0, 0.5
FARTHEST_RMS = 100.0
LEAST_FAR = 3
# A column also leaves its units if its standard deviation is less than a 30th of that of the first
# rows. A few rows, or rows that mostly have one value, cannot show this.
NARROW, LEAST_ROWS = 1 / 30, 20

N_NAMED = 5


def compare(
    first: Moments, now: Moments, data: Any, support: arrays.Support, resolution: float
) -> tuple[Array, Array, Array]:
    """Return masks of features that leave their units, that begin to vary, and that begin to exist.

    `first` and `now` are the moments of the features in the first rows and in `data`. The mean of
    `first` is NaN if a feature had no value. The standard deviation of `first`, and both moments of
    `now`, are NaN if a feature is not to be compared. `support` makes features of rows.
    `resolution` is the relative difference that rounding makes. Each mask is (n_features,).
    """
    empty = np.isnan(first.mean)
    constant = (first.std == 0) & ~empty
    unit = np.where(constant, 1.0, first.std)
    n_there, n_far, n_less_far, n_off, square = np.zeros((5, len(unit)))
    varies, filled = np.zeros((2, len(unit)), bool)
    with np.errstate(over="ignore", invalid="ignore"):
        for block in map(support, arrays.slices(data, len(unit))):
            block = np.asarray(block, np.float64)
            filled |= ~np.isnan(block).all(axis=0)
            distance = np.abs(block - first.mean)
            varies |= (distance > resolution * np.abs(first.mean)).any(axis=0)
            distance /= unit
            there = ~np.isnan(distance)
            n_there += there.sum(axis=0)
            n_far += (distance > FAR).sum(axis=0)
            n_less_far += (distance > LESS_FAR).sum(axis=0)
            n_off += (np.abs(block - now.mean) > now.std / 4).sum(axis=0)
            square += np.square(np.where(there, distance, 0.0)).sum(axis=0)
        least = np.minimum(LEAST_FAR, n_there)
        far = (n_far > SHARE_FAR * n_there) | (square > FARTHEST_RMS**2 * n_there)
        far &= n_far >= least
        far |= (n_less_far > SHARE_LESS_FAR * n_there) & (n_less_far >= least)
        narrow = (now.std < NARROW * unit) & (n_off > n_there / 2) & (n_there >= LEAST_ROWS)
    return (far | narrow) & ~constant & ~empty, varies & constant, filled & empty


def warn_of_drift(
    first: Moments,
    now: Moments,
    data: Any,
    support: arrays.Support,
    labels: Labels,
    resolution: float,
) -> None:
    """Warn of the features that `compare` finds; `labels` gives their names."""
    leaves, varies, filled = compare(first, now, data, support, resolution)
    remedy = (
        "To mend it, fit anew, by fit or partial_fit, with first rows that are like all later "
        "ones, such as a random sample of them."
    )
    if leaves.any():
        told = [
            f"{labels.of(i)}: {now.mean[i]:.3g} +- {now.std[i]:.3g}, at first {first.mean[i]:.3g} "
            f"+- {first.std[i]:.3g}"
            for i in np.flatnonzero(leaves)
        ]
        warn(
            "X leaves the units of the model, which are those of the first rows that it was "
            f"fitted to. Mean +- standard deviation of {_join(told, '; ')}. The model learns such "
            f"columns badly. {remedy}"
        )
    if varies.any():
        told = [labels.of(i) for i in np.flatnonzero(varies)]
        warn(
            "X has new values in columns that were constant in the first rows that the model was "
            f"fitted to: {_join(told, ', ')}. The model learns nothing of them and gives back the "
            f"constant. {remedy}"
        )
    if filled.any():
        # A category is several features of one column.
        told = list(dict.fromkeys(labels.of(i) for i in np.flatnonzero(filled)))
        warn(
            "X has values in columns that had none in the first rows that the model was fitted "
            f"to: {_join(told, ', ')}. The model learns nothing of them and gives them back as "
            f"missing. {remedy}"
        )


def _join(told: Sequence[str], separator: str) -> str:
    more = f" and {len(told) - N_NAMED} more" if len(told) > N_NAMED else ""
    return separator.join(told[:N_NAMED]) + more
