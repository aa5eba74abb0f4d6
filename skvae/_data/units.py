"""The units of the model, and the border between arrays and tensors.

Arrays are numpy's, in the units of the user. Tensors, mostly of float32, are in the model's own
units,

    y = (x - location) / scale,        column by column.

This is computed in float64, so that a column of 1.7e9 +- 1e3 keeps its digits. A column with
``scale == 0`` was constant in ``fit``: the model sees zeros there and gives back its location.
"""

from typing import NamedTuple

import numpy as np
import torch

from skvae._backend.tensors import Array, to_tensor
from skvae._data.arrays import Support, float_blocks
from skvae._data.words import UNNAMED, Labels, cell

# Largest distance from the training data, in units of `scale`, that float32 can carry
# through a network and a square: (1e10 / 0.01)**2 = 1e24, far below 3e38. It is a float64, so that
# a float16 becomes a float64 when it is compared with it: no float16 is as large.
FARTHEST = np.float64(1e10)


class Units(NamedTuple):
    """The numbers that standardise rows: float64, (n_features,), on the CPU."""

    location: torch.Tensor
    unit: torch.Tensor  # the scale; 1 in constant columns
    constant: torch.Tensor | None  # indices of the constant columns; None: there are none

    @classmethod
    def of(cls, location: Array, scale: Array) -> "Units":
        """Make the units of columns; a column with a scale of 0 is constant."""
        varies = scale > 0
        unit = to_tensor(np.where(varies, scale, 1.0), "cpu")
        constant = None if varies.all() else torch.from_numpy(np.flatnonzero(~varies))
        return cls(to_tensor(location, "cpu"), unit, constant)


def standardise(X: Array, units: Units, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """(X - location) / unit, computed in float64, as `dtype`; 0 in constant columns.

    Missing values, which are NaN, stay NaN.
    """
    with np.errstate(over="ignore"):  # a longdouble may become infinity
        y = torch.from_numpy(np.array(X, np.float64, order="C"))  # always exactly one copy
    y -= units.location
    y /= units.unit
    if units.constant is not None:
        y[:, units.constant] = 0.0
    return y.to(dtype)


def measure_reach(y: torch.Tensor) -> tuple[float, torch.Tensor | None]:
    """Return the largest distance of rows y from 0, and a mask of the values that are too far.

    The distance is NaN if values are missing. The mask is None if float32 can carry all values.
    """
    low, high = torch.aminmax(y)
    reach = max(high.item(), -low.item())  # if one is NaN, both are
    if reach <= FARTHEST:
        return reach, None
    far = y.abs() > FARTHEST
    return reach, far if far.any() else None


def check_reach(y: torch.Tensor, X: Array, units: Units, labels: Labels = UNNAMED) -> float:
    """Return the largest distance of the standardised rows y from 0; NaN if values are missing.

    Raises a ValueError that names column and value if a number of X is too far from the training
    data for float32.
    """
    reach, far = measure_reach(y)
    if far is not None:
        value, column = cell(X, far.numpy(), labels)
        raise ValueError(
            f"X has the value {value}: more than {FARTHEST:.0e} times the scale of the training "
            f"data ({units.unit[column]:.3g} around {units.location[column]:.3g}). Check the "
            "units of the column, or fit on such data."
        )
    return reach


def fill_standardised(
    into: torch.Tensor,
    X: Array,
    units: Units,
    support: Support = lambda block: block,
) -> None:
    """Fill `into` with the features of X in the model's units, in blocks of rows."""
    start = 0
    for block in map(support, float_blocks(X, into.shape[1])):
        y = standardise(block, units, into.dtype)
        check_reach(y, block, units)
        into[start : start + len(block)] = y
        start += len(block)


def restore(Y: Array, location: Array, scale: Array) -> Array:
    """Return location + scale * Y in float64, which is in the user's units."""
    X = scale * Y  # scale is float64
    return np.add(location, X, out=X)
