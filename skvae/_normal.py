"""Densities of many normal distributions, each of independent components, at many points.

    log N(z; m, diag(s**2)) = sum_j (-z_j**2 / (2 s_j**2) + z_j m_j / s_j**2) + c

is a product of (z**2, z) and numbers of the distribution: for K distributions one product of
matrices, where differences z - m of all pairs would be as many tensors of K x L for every point.
"""

import math

import torch

from skvae import _products

LOG_2PI = math.log(2 * math.pi)


def log_density(z: torch.Tensor, mean: torch.Tensor, log_std: torch.Tensor) -> torch.Tensor:
    """log N(z; m_k, diag(s_k**2)) in nats, (..., K), of z (..., L) for mean and log std (K, L)."""
    if z.device.type == "mps":  # which has no float64
        unit = (z.unsqueeze(-2) - mean) * (-log_std).exp()
        return -0.5 * (unit.square() + LOG_2PI).sum(-1) - log_std.sum(-1)
    # Squares cancel, of points (|z| + |m|) / s standard deviations from 0, which leaves an error
    # of 1e-16 times that number's square.
    point, mean, log_std = z.double(), mean.double(), log_std.double()
    precision = (-2 * log_std).exp()
    scaled = precision * mean
    constant = -(0.5 * (scaled * mean + LOG_2PI) + log_std).sum(-1)
    numbers = torch.cat([-0.5 * precision, scaled], dim=-1)
    points = torch.cat([point.square(), point], dim=-1)
    return _products.linear(points, numbers, constant).to(z.dtype)
