"""What is maximised, and what is reported: pure functions of a model, rows and noise.

The evidence lower bound of a row, in nats (Kingma & Welling 2013, arXiv:1312.6114, eq. 3),

    ELBO = E_q[log p(x|z)] - KL(q(z|x) || p(z)) = E_q[log w],
    log w = log p(x|z) + log p(z) - log q(z|x),

and the training loss with the weight beta of Higgins et al., beta-VAE (2017), the KL
annealed from 0 as in Bowman et al., Generating sentences from a continuous space (2016),
arXiv:1511.06349:

    loss = -E_q[log p(x|z)] + beta KL,         averaged over rows.
"""

from collections.abc import Callable
from typing import Protocol

import torch

Terms = tuple[torch.Tensor, torch.Tensor]  # log p(y|z) of each draw (S, B), KL (B,)


class Model(Protocol):
    """What this floor asks of a model."""

    def __call__(self, y: torch.Tensor, eps: torch.Tensor, /) -> Terms:
        """Log-likelihood and KL divergence for rows y (B, D) and noise eps (S, B, L)."""
        ...


class Stack(Protocol):
    """What the loss asks of M models at once, for y (M, B, D) and eps (M, S, B, L)."""

    def vjp(
        self, y: torch.Tensor, eps: torch.Tensor
    ) -> tuple[Terms, Callable[[torch.Tensor, torch.Tensor], list[torch.Tensor]]]:
        """Terms (M, S, B) and (M, B), and the pullback of their gradients."""
        ...


def total_terms(log_likelihood: torch.Tensor, kl: torch.Tensor) -> torch.Tensor:
    """-E_q[log p(y|z)] and KL of each model, (2, M), nats: summed over rows, mean over draws."""
    return torch.stack([log_likelihood.sum((1, 2)) / -log_likelihood.shape[1], kl.sum(1)])


def loss_gradient(
    stack: Stack, y: torch.Tensor, eps: torch.Tensor, beta: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """`total_terms`, and each parameter's gradient of the mean loss of the rows.

    `beta` (M, 1) is each model's own.
    """
    (log_likelihood, kl), pull = stack.vjp(y, eps)
    n_draws, n_rows = log_likelihood.shape[1:]
    g_log_likelihood = torch.full_like(log_likelihood, -1 / (n_draws * n_rows))
    gradients = pull(g_log_likelihood, (beta / n_rows).expand_as(kl))
    return total_terms(log_likelihood, kl), gradients


def elbo(model: Model, y: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """ELBO of each row, (B,), nats, float64: mean over the draws eps (S, B|1, L)."""
    log_likelihood, kl = model(y, eps)
    # On the CPU, since not every device has float64.
    return log_likelihood.cpu().double().mean(0) - kl.cpu().double()


def warm_up(epoch: int, n_epochs: int) -> float:
    """Share of beta in `epoch`: rises in equal steps, 1 from epoch `n_epochs` on."""
    return min(1.0, (epoch + 1) / (n_epochs + 1))
