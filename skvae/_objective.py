"""What is maximised, and what is reported: pure functions of a model, rows and noise.

The evidence lower bound of a row, in nats (Kingma & Welling 2013, arXiv:1312.6114, eq. 3),

    ELBO = E_q[log p(x|z)] - KL(q(z|x) || p(z)) = E_q[log w],
    log w = log p(x|z) + log p(z) - log q(z|x),

and the training loss with the weight beta of Higgins et al., beta-VAE (2017), the KL
annealed from 0 as in Bowman et al., Generating sentences from a continuous space (2016),
arXiv:1511.06349:

    loss = -E_q[log p(x|z)] + beta KL,         averaged over rows.
"""

from typing import Protocol

import torch


class Model(Protocol):
    """What this floor asks of a model."""

    def __call__(self, y: torch.Tensor, eps: torch.Tensor, /) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-likelihood of each draw (S, B) and KL divergence (B,)."""
        ...


def reconstruction_and_kl(model: Model, y: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """-E_q[log p(y|z)] and KL, (2,), nats per row: means over rows y and draws eps."""
    log_likelihood, kl = model(y, eps)
    return torch.stack([-log_likelihood.mean(), kl.mean()])


def elbo(model: Model, y: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """ELBO of each row, (B,), nats, float64: mean over the draws eps (S, B|1, L)."""
    log_likelihood, kl = model(y, eps)
    # On the CPU, since not every device has float64.
    return log_likelihood.cpu().double().mean(0) - kl.cpu().double()


def warm_up(epoch: int, n_epochs: int) -> float:
    """Share of beta in `epoch`: rises in equal steps, 1 from epoch `n_epochs` on."""
    return min(1.0, (epoch + 1) / (n_epochs + 1))
