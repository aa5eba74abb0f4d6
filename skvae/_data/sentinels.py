"""Find sentinels: values that stand for a missing one, such as 1e20 or -999."""

from collections.abc import Iterator

import numpy as np

from skvae._backend.tensors import Array
from skvae._data.arrays import Support, float_blocks

# A sentinel is farther than this many mean distances, and farther than the sum of all distances.
FAR_DISTANCES = 50


def stand_out(total: Array, square: Array, n_there: Array, n_equal: Array) -> Array:
    """Whether the lowest value, -1, and the highest value, 1, may be sentinels, (2, D).

    `total` and `square` are the sums of `n_there` values in [-1, 1] and of their squares.
    `n_equal`, (2, D), is how often the lowest and the highest value occur. Let m be the mean of the
    n other values, and e the distance of the value from the mean of all values. Then

        sum (x_i - m)**2 = sum of the same over all values - e**2 n_equal n_there / n.

    The left side is at most the square of sum |x_i - m|. If the value is a sentinel, this sum is
    below the distance of the value from m, which is e n_there / n. So a value can only be a
    sentinel if the right side is below the square of e n_there / n.
    """
    n_there = np.maximum(n_there, 1)
    n_others = np.maximum(n_there - n_equal, 1)
    mean = total / n_there
    far = (np.stack([-1 - mean, 1 - mean]) * n_there) ** 2 / n_others
    of_all = square - mean * total
    # A sentinel also makes up less than half of the values.
    rounding = 1e-6 * square
    alone = of_all - far * n_equal / n_there <= far / n_others + rounding
    return alone & (n_equal < n_others)


def find_sentinels(
    X: Array, suspects: Array, support: Support = lambda block: block
) -> dict[int, tuple[float, int]]:
    """Return the columns with a value far beyond all others: the value, and its number of rows.

    `suspects` come from `describe_columns`. A value is far beyond the others if its distance from
    their mean exceeds two numbers. The first is the sum of their own distances from the mean. The
    second is `FAR_DISTANCES` times this sum, divided by the number of values that are not at the
    more frequent end, the lowest or the highest value; in a column of counts this end is 0. The
    value may be in several rows, but in fewer than half of those that have a value.

    Moments of all values are useless here: beside 1e20, float64 loses the digits of the others. So
    each column is read again, in blocks, without the value.
    """
    sides, columns = np.nonzero(~np.isnan(suspects))
    if not len(columns):
        return {}
    value, n_features = suspects[sides, columns], suspects.shape[1]
    start, low, high = (np.full(len(columns), np.nan) for _ in range(3))
    total, n_others, n_equal = (np.zeros(len(columns)) for _ in range(3))

    def others() -> Iterator[tuple[Array, Array]]:
        for block in map(support, float_blocks(X, n_features)):
            own = block[:, columns]
            yield np.where(own == value, np.nan, own), (own == value).sum(axis=0)

    with np.errstate(over="ignore", invalid="ignore"):  # values such as 1e308 may overflow
        for own, n in others():
            there = ~np.isnan(own)
            low, high = np.fmin(low, np.fmin.reduce(own)), np.fmax(high, np.fmax.reduce(own))
            # The sum is of differences from a value of the column, which keeps their digits.
            first = own[there.argmax(axis=0), np.arange(len(columns))]
            start = np.where(np.isnan(start), first, start)
            total += np.where(there, own - start, 0.0).sum(axis=0)
            n_others, n_equal = n_others + there.sum(axis=0), n_equal + n
        mean = start + total / np.maximum(n_others, 1)
        spread, at_low, at_high = (np.zeros(len(columns)) for _ in range(3))
        for own, _ in others():
            spread += np.nan_to_num(np.abs(own - mean), posinf=np.inf).sum(axis=0)
            at_low, at_high = at_low + (own == low).sum(axis=0), at_high + (own == high).sum(axis=0)
        distance = np.abs(value - mean)
        n_various = n_others - np.maximum(at_low, at_high)
        far = (distance > spread) & (distance * n_various > FAR_DISTANCES * spread)
        far &= (spread > 0) & (n_various >= 2) & (n_equal < n_others)
    return {int(columns[i]): (float(value[i]), int(n_equal[i])) for i in np.flatnonzero(far)}
