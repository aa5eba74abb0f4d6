"""Posteriors q(z|x): what the encoder says of the latent variables of a row.

A posterior is a value that reads the raw outputs of the encoder. Noise is an argument: a
draw is a function of the parameters and of standard normal noise eps, the
reparameterisation of Kingma & Welling, Auto-Encoding Variational Bayes (2013),
arXiv:1312.6114, section 2.4. For independent normal components,

    z = mean + std * eps,
    log q(z|x) = -sum_j (log std_j + eps_j**2 / 2 + log(2 pi) / 2),
    KL(q || N(0, I)) = 1/2 sum_j (mean_j**2 + std_j**2 - 1 - log std_j**2)   (appendix B).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

aten = torch.ops.aten

LOG_2PI = math.log(2 * math.pi)

# log std is bounded smoothly: exp(+-15) squared is still far from float32's limits, and the
# gradient never vanishes as a clamp's does.
LOG_STD_BOUND = 15.0


class Normal(NamedTuple):
    """Parameters of q(z|x) for a batch of rows, each (B, L)."""

    mean: torch.Tensor
    log_std: torch.Tensor


# Gradients of z (M, S, B, L) and of the KL divergence (M, B) -> of the raw outputs (M, B, 2L).
Pullback = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Diagonal:
    """Independent normal components, N(mean, diag(std**2)).

    Examples
    --------
    >>> import torch
    >>> from skvae.posteriors import Diagonal
    >>> posterior = Diagonal()
    >>> q = posterior.parameters(torch.zeros(1, 4))  # mean 0, std 1: the prior itself
    >>> posterior.kl(q)
    tensor([0.])
    """

    def n_outputs(self, n_components: int) -> int:
        """Number of raw encoder outputs."""
        return 2 * n_components

    def places(self, n_components: int, n_wider: int) -> list[int]:
        """Where the raw outputs for L components stand among those for more of them."""
        return [*range(n_components), *range(n_wider, n_wider + n_components)]

    def parameters(self, raw: torch.Tensor) -> Normal:
        """Read raw encoder outputs (B, 2L)."""
        mean, log_std = raw.chunk(2, dim=-1)
        return Normal(mean, LOG_STD_BOUND * torch.tanh(log_std / LOG_STD_BOUND))

    def mean(self, raw: torch.Tensor) -> torch.Tensor:
        """Mean of z, (B, L), from raw encoder outputs (B, 2L)."""
        return raw.chunk(2, dim=-1)[0]

    def mean_std(self, q: Normal) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of z, each (B, L)."""
        return q.mean, q.log_std.exp()

    def rsample(self, q: Normal, eps: torch.Tensor) -> torch.Tensor:
        """Draws of z, (S, B, L), from standard normal noise (S, B, L) or (S, 1, L)."""
        return torch.addcmul(q.mean, q.log_std.exp(), eps)

    def log_prob(self, q: Normal, eps: torch.Tensor) -> torch.Tensor:
        """log q(z|x) in nats, (S, B), of the draws that came from `eps`."""
        return -(q.log_std + 0.5 * (eps.square() + LOG_2PI)).sum(-1)

    def kl(self, q: Normal) -> torch.Tensor:
        """KL(q || N(0, I)) in nats, (B,)."""
        return (0.5 * (q.mean.square() + (2 * q.log_std).exp() - 1) - q.log_std).sum(-1)

    def vjp(
        self, raw: torch.Tensor, eps: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, Pullback]:
        """`rsample`, `kl` and the pullback of their gradients, of M models at once.

        From raw (M, B, 2L) and eps (M, S, B, L) to z (M, S, B, L) and KL (M, B).
        """
        mean, raw_log_std = raw.chunk(2, dim=-1)
        bend = torch.tanh(raw_log_std / LOG_STD_BOUND)
        log_std = LOG_STD_BOUND * bend
        std = log_std.exp()
        deviation = std.unsqueeze(1) * eps
        excess = std.square() - 1
        twice = torch.addcmul(excess, mean, mean).sub_(log_std, alpha=2).sum(-1)

        def pull(g_z: torch.Tensor, g_kl: torch.Tensor) -> torch.Tensor:
            g_kl = g_kl.unsqueeze(-1)
            g_mean, g_log_std = g_z, g_z * deviation
            if g_z.shape[1] == 1:  # a view, where a sum would copy
                g_mean, g_log_std = g_mean.squeeze(1), g_log_std.squeeze(1)
            else:
                g_mean, g_log_std = g_mean.sum(1), g_log_std.sum(1)
            g_mean = torch.addcmul(g_mean, mean, g_kl)
            g_log_std = torch.addcmul(g_log_std, excess, g_kl)
            return torch.cat([g_mean, aten.tanh_backward.default(g_log_std, bend)], dim=-1)

        return mean.unsqueeze(1) + deviation, 0.5 * twice, pull
