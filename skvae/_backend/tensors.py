"""Arrays to tensors and back: with `_data.units`, the only border between numpy and torch."""

from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, Any]


def to_tensor(array: Array, device: torch.device | str) -> torch.Tensor:
    """A copy of `array` as a tensor of the same dtype: memory maps and views are welcome."""
    if torch.device(device).type == "mps" and array.dtype == np.float64:
        array = array.astype(np.float32)  # all that this device has
    # With strides that torch takes: those of a single row may be negative.
    return torch.from_numpy(np.array(array, order="C")).to(device)


def share_tensor(array: Array) -> torch.Tensor:
    """`array` as a tensor on the CPU, in the same memory where torch takes that, else a copy."""
    if array.flags.writeable and array.flags.c_contiguous and array.dtype.isnative:
        return torch.from_numpy(array)
    return to_tensor(array, "cpu")


def to_array(tensor: torch.Tensor) -> Array:
    """A copy of `tensor` in main memory."""
    return tensor.numpy(force=True).copy()
