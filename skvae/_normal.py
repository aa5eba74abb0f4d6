"""Densities of many normal distributions, each of independent components, at many points.

    log N(z; m, diag(s**2)) = sum_j (-z_j**2 / (2 s_j**2) + z_j m_j / s_j**2) + c

is a product of (z**2, z, 1) and numbers of the distribution: for K distributions one product of
matrices, where differences z - m of all pairs would be as many tensors of K x L for every point.
"""

import math

import torch
import torch.nn.functional as F

LOG_2PI = math.log(2 * math.pi)
LEAST = 16  # a product of fewer columns rounds differently at another place among the rows


def log_density(z: torch.Tensor, mean: torch.Tensor, log_std: torch.Tensor) -> torch.Tensor:
    """log N(z; m_k, diag(s_k**2)) in nats, (..., K), of z (..., L) for mean and log std (K, L)."""
    # In float64, where a device has it: squares cancel, of points (|z| + |m|) / s standard
    # deviations from 0, which leaves an error of 1e-16 times that number's square.
    exact = z.dtype if z.device.type == "mps" else torch.float64
    point, mean, log_std = z.to(exact), mean.to(exact), log_std.to(exact)
    precision = (-2 * log_std).exp()
    scaled = precision * mean
    constant = -0.5 * (scaled * mean + LOG_2PI).sum(-1, keepdim=True) - log_std.sum(
        -1, keepdim=True
    )
    # An even number of them, for the same reason as LEAST.
    numbers = torch.cat([-0.5 * precision, scaled, constant, torch.zeros_like(constant)], dim=-1)
    numbers = F.pad(numbers, (0, 0, 0, max(0, LEAST - len(mean))))
    ones = torch.ones_like(point[..., :1])
    points = torch.cat([point.square(), point, ones, ones], dim=-1)
    return (points @ numbers.mT)[..., : len(mean)].to(z.dtype)
