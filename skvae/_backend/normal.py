"""Densities of many normal distributions, each of independent components, at many points.

    log N(z; m, diag(s**2)) = sum_j (-z_j**2 / (2 s_j**2) + z_j m_j / s_j**2) + c

is a product of (z**2, z) and numbers of the distribution. So one matrix product gives the densities
of K distributions. The differences z - m of all pairs would need K x L values for every point.
"""

import math
from collections.abc import Callable

import torch

from skvae._backend import ops

LOG_2PI = math.log(2 * math.pi)


def log_density(z: torch.Tensor, mean: torch.Tensor, log_std: torch.Tensor) -> torch.Tensor:
    """log N(z; m_k, diag(s_k**2)) in nats, (..., K), of z (..., L) for mean and log std (K, L)."""
    if z.device.type == "mps":  # mps has no float64
        unit = (z.unsqueeze(-2) - mean) * (-log_std).exp()
        return -0.5 * (unit.square() + LOG_2PI).sum(-1) - log_std.sum(-1)
    # The terms cancel. For a point at n = (|z| + |m|) / s standard deviations this leaves an error
    # of 1e-16 n**2, hence float64.
    point, mean, log_std = z.double(), mean.double(), log_std.double()
    precision = (-2 * log_std).exp()
    scaled = precision * mean
    constant = -(0.5 * (scaled * mean + LOG_2PI) + log_std).sum(-1)
    numbers = torch.cat([-0.5 * precision, scaled], dim=-1)
    points = torch.cat([point.square(), point], dim=-1)
    return ops.linear(points, numbers, constant).to(z.dtype)


# From the gradient of log p(z) (M, N) to the gradients of z, log-weights, means and log stds.
Pullback = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]


def mixture_vjp(
    z: torch.Tensor, log_weight: torch.Tensor, mean: torch.Tensor, log_std: torch.Tensor
) -> tuple[torch.Tensor, Pullback]:
    """log p(z) in nats, (M, N), of M mixtures of normals, and the pullback of its gradient.

    The points z are (M, N, L), the log-weights (M, K), and the means and log stds (M, K, L).
    """
    point, mean, log_std = z.double(), mean.double(), log_std.double()
    square, precision = point.square(), (-2 * log_std).exp()
    scaled = precision * mean
    constant = log_weight - (0.5 * (scaled * mean + LOG_2PI) + log_std).sum(-1)
    of_each = torch.baddbmm(constant.unsqueeze(1), point, scaled.mT)
    of_each = torch.baddbmm(of_each, square, precision.mT, alpha=-0.5)
    log_p = torch.logsumexp(of_each, -1)

    def pull(
        g: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        # The posterior probability of each normal at each point, times the point's gradient.
        share = (of_each - log_p.unsqueeze(-1)).exp() * g.unsqueeze(-1)
        g_z = torch.bmm(share, scaled) - point * torch.bmm(share, precision)
        total = share.sum(1).unsqueeze(-1)
        first, second = torch.bmm(share.mT, point), torch.bmm(share.mT, square)
        g_mean = precision * (first - total * mean)
        spread = second - 2 * mean * first + mean.square() * total
        g_log_std = precision * spread - total
        g_log_weight = total.squeeze(-1)
        return g_z.to(z), g_log_weight.to(z), g_mean.to(z), g_log_std.to(z)

    return log_p.to(z.dtype), pull
