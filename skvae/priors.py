"""Priors p(z): what the latent variables are before any row is seen.

A prior is a value. `rsample` turns standard normal noise into draws, `log_prob` is its
log-density in nats. `StandardNormal` is the prior of Kingma & Welling, Auto-Encoding
Variational Bayes (2013), arXiv:1312.6114: p(z) = N(z; 0, I).
"""

import math
from dataclasses import dataclass

import torch

LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class StandardNormal:
    """Independent standard normal components, N(0, I).

    Examples
    --------
    >>> import torch
    >>> from skvae.priors import StandardNormal
    >>> StandardNormal().log_prob(torch.zeros(1, 2))
    tensor([-1.8379])
    """

    def rsample(self, eps: torch.Tensor) -> torch.Tensor:
        """Draws of z from standard normal noise, (..., L) to (..., L)."""
        return eps

    def log_prob(self, z: torch.Tensor) -> torch.Tensor:
        """log p(z) in nats, (..., L) to (...)."""
        return -0.5 * (z.square() + LOG_2PI).sum(-1)
