"""Convert arrays to tensors and back: with `_data.units`, the only border of numpy and torch."""

from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, Any]


def to_tensor(array: Array, device: torch.device | str) -> torch.Tensor:
    """Copy `array` to a tensor of the same dtype; it may be a memory map or a view."""
    if torch.device(device).type == "mps" and array.dtype == np.float64:
        array = array.astype(np.float32)  # mps has no float64
    # The copy has strides that torch accepts: those of a single row may be negative.
    return torch.from_numpy(np.array(array, order="C")).to(device)


def share_tensor(array: Array) -> torch.Tensor:
    """Return a CPU tensor that shares the memory of `array` if torch allows it, else a copy."""
    return torch.from_numpy(array) if can_share(array) else to_tensor(array, "cpu")


def can_share(array: Array) -> bool:
    """Whether torch takes the memory of `array`."""
    return array.flags.writeable and array.flags.c_contiguous and array.dtype.isnative


def to_array(tensor: torch.Tensor) -> Array:
    """Copy `tensor` to an array in main memory."""
    return tensor.numpy(force=True).copy()
