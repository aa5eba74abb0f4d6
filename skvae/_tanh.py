"""The hyperbolic tangent, by the logistic function.

    tanh x = 2 / (1 + exp(-2 x)) - 1

In torch's vectors for CPUs the logistic function takes a quarter of the time of tanh, which is
otherwise most of what a small network does with a row. What is lost are digits near 0: the
error, of 2e-7 at most, is that of a float32 near 1.
"""

import torch


def tanh(x: torch.Tensor) -> torch.Tensor:
    """tanh x, by way of the logistic function where that is faster."""
    if x.dtype == torch.float32 and x.device.type == "cpu":
        return torch.rsub((x + x).sigmoid_(), -1, alpha=-2)  # 2 s - 1
    return torch.tanh(x)
