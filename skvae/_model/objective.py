"""The training loss and the reported numbers: pure functions of a model, rows and noise.

The evidence lower bound of a row, in nats (Kingma & Welling 2013, arXiv:1312.6114, eq. 3),

    ELBO = E_q[log p(x|z)] - KL(q(z|x) || p(z)) = E_q[log w],
    log w = log p(x|z) + log p(z) - log q(z|x),

and three numbers that change the training loss, none of which changes the score:

- beta weighs the KL divergence (Higgins et al., beta-VAE, 2017). It is annealed from 0, once
  (Bowman et al., Generating sentences from a continuous space, 2016, arXiv:1511.06349) or in
  cycles (Fu et al., Cyclical annealing schedule, 2019, arXiv:1903.10145);
- lambda is the free bits (Kingma et al., Improving variational inference with inverse
  autoregressive flow, 2016, arXiv:1606.04934, eq. 15): if the mean KL divergence of a component
  over a batch is below lambda, it costs lambda;
- k importance samples tighten the bound (Burda, Grosse & Salakhutdinov, Importance weighted
  autoencoders, 2016, arXiv:1509.00519, eq. 8).

    loss = -E_q[log p(x|z)] + beta sum_j max(lambda, KL_j)                          k = 1,
    loss = -E_q[log 1/k sum_i w_i] + max(beta - 1, 0) KL(q(z|x) || p(z)),                k > 1,
           log w = log p(x|z) + min(beta, 1) (log p(z) - log q(z|x)),

averaged over rows. For beta >= 1, minus either loss is a lower bound on log p(x). For beta < 1 it
is not. For k > 1 it then still has an upper limit, the same for every q, by Hoelder's inequality:
log E_q[w] <= beta log E_p[p(x|z)^(1/beta)]. A beta above 1 inside the weights would have no limit:
E_q[w] = E_p[p(x|z) (p(z) / q(z|x))^(beta - 1)] grows without end as q gets narrower.

Rows may have weights v_b, of mean 1 over all rows of an epoch. Then the average becomes

    loss = 1/B sum_b v_b loss_b,    KL_j = sum_b v_b KL_bj / sum_b v_b,

where loss_b is the loss of one row by the formulas above. With free bits, the mean divergences of a
batch of mean weight V = 1/B sum_b v_b cost V beta sum_j max(lambda, KL_j).

Letters are those of `skvae._model.vae`. A KL term is (M, S, B, J). S is 1 if the divergence has a
closed form, and is not estimated from draws. J is 1 if the divergence doesn't factorise.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import nn

from skvae._model.rows import Batch

# log p(y|z) of each draw (S, B), and the KL divergence of each component or draw (S|1, B, L|1).
Terms = tuple[torch.Tensor, torch.Tensor]


class Model(Protocol):
    """The interface that `elbo` needs of a model."""

    def __call__(self, batch: Batch, /) -> Terms:
        """Log-likelihood and KL divergence for a batch with noise eps (S, B, L)."""
        ...


class Stack(Protocol):
    """The interface that the loss needs of M models.

    It takes batches of rows y (M, B, D) with noise eps (M, S, B, L) and `row_noise` (M, B, N).
    """

    def vjp(
        self, batch: Batch, *, by_draw: bool
    ) -> tuple[Terms, Callable[[torch.Tensor, torch.Tensor], list[torch.Tensor]]]:
        """Return terms (M, S, B) and (M, S|1, B, L|1), and the pullback of their gradients.

        With `by_draw` the KL term is log q(z|x) - log p(z) of each draw, even if the divergence
        has a closed form.
        """
        ...

    def begin_epoch(self, progress: torch.Tensor, /) -> None:
        """Called before each epoch with the fraction of the epochs that is done, (M,)."""
        ...


class Weights(NamedTuple):
    """Numbers of each model, (M, 1), that turn terms into a loss."""

    beta: torch.Tensor
    free_bits: torch.Tensor | None = None  # nats per component; None: 0 for all
    importance: bool = False  # whether the draws are importance samples, or averaged


class Loss(NamedTuple):
    """The mean loss of rows, the reported numbers, and the gradient with respect to the terms."""

    numbers: torch.Tensor  # (3, M) nats per row: the loss, -E_q[log p(y|z)] and the KL
    g_log_likelihood: torch.Tensor  # (M, S, B)
    g_kl: torch.Tensor  # (M, S|1, B, L|1)


def loss(
    terms: Terms,
    weights: Weights,
    row_weight: torch.Tensor | None = None,
    n_rows: int | None = None,
) -> Loss:
    """Compute the training loss of each model of a stack from the terms of some rows.

    `row_weight` (M, B) is how much each row counts, of mean 1 over an epoch; None: 1 for each.
    If the rows are a share of a batch of `n_rows` rows, sums are divided by the latter. So the
    results of all shares add up to those of the batch, unless there are free bits.
    """
    log_likelihood, kl = terms
    _, n_draws, n_own = log_likelihood.shape
    n_rows = n_rows or n_own

    def weigh(values: torch.Tensor) -> torch.Tensor:
        if row_weight is None:
            return values
        own = row_weight.unsqueeze(1)  # (M, 1, B)
        return values * (own if values.ndim == 3 else own.unsqueeze(-1))

    reconstruction = weigh(log_likelihood).sum((1, 2)) / -(n_draws * n_rows)
    share = weights.beta / (kl.shape[1] * n_rows)  # the share of beta for each row and draw
    mean_kl = weigh(kl).sum((1, 2)) / (kl.shape[1] * n_rows)  # (M, L|1)
    total_kl = mean_kl.sum(1)
    if weights.importance:
        inside = weights.beta.clamp(max=1.0)  # (M, 1): the part of beta in the draws' weights
        beside = weights.beta - inside
        log_w = log_likelihood - inside.unsqueeze(-1) * kl.sum(-1)
        bound = torch.logsumexp(log_w, 1, keepdim=True) - math.log(n_draws)
        total = beside.squeeze(1) * total_kl - weigh(bound).squeeze(1).sum(1) / n_rows
        g = weigh(torch.softmax(log_w, 1) / -n_rows)
        of_each = weigh((beside / (n_draws * n_rows)).unsqueeze(-1).expand_as(g))
        g_kl = (of_each - g * inside.unsqueeze(-1)).unsqueeze(-1)
        return Loss(torch.stack([total, reconstruction, total_kl]), g, g_kl)
    g = weigh(torch.full_like(log_likelihood, -1 / (n_draws * n_rows)))
    if weights.free_bits is None:
        total = torch.addcmul(reconstruction, weights.beta.squeeze(1), total_kl)
        g_kl = weigh(share[..., None, None].expand_as(kl))
    else:
        free_bits = weights.free_bits
        if row_weight is not None:  # times the mean weight of the batch
            free_bits = free_bits * row_weight.mean(1, keepdim=True)
        limited_kl = torch.maximum(mean_kl, free_bits).sum(1)
        total = torch.addcmul(reconstruction, weights.beta.squeeze(1), limited_kl)
        share = share * (mean_kl > free_bits)
        g_kl = weigh(share[:, None, None].expand_as(kl))
    return Loss(torch.stack([total, reconstruction, total_kl]), g, g_kl)


def row_losses(
    terms: Terms, weights: Weights, row_weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the loss of each row, (M, B); the mean of these by `row_weight` is the loss of `loss`.

    If the mean divergence of a component is below the free bits, each row costs the free bits.
    """
    log_likelihood, kl = terms
    if weights.importance:
        inside = weights.beta.clamp(max=1.0)
        log_w = log_likelihood - inside.unsqueeze(-1) * kl.sum(-1)
        beside = (weights.beta - inside) * kl.sum(-1).mean(1)
        return beside + math.log(log_w.shape[1]) - torch.logsumexp(log_w, 1)
    kl = kl.mean(1)  # (M, B, L|1)
    if weights.free_bits is not None:
        weight = torch.ones_like(kl[..., 0]) if row_weight is None else row_weight
        mean_kl = (weight.unsqueeze(-1) * kl).mean(1, keepdim=True)
        free_bits = weights.free_bits.unsqueeze(1) * weight.mean(1)[:, None, None]
        kl = torch.where(mean_kl > free_bits, kl, weights.free_bits.unsqueeze(1))
    return weights.beta * kl.sum(-1) - log_likelihood.mean(1)


def loss_gradient(
    stack: Stack, batch: Batch, weights: Weights, n_rows: int | None = None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the numbers of `loss`, (3, M), and the gradient of the loss for each parameter.

    `batch` may be a share of a batch of `n_rows` rows; see `loss`.
    """
    terms, pull = stack.vjp(batch, by_draw=weights.importance)
    numbers, *gradients = loss(terms, weights, batch.row_weight, n_rows)
    return numbers, pull(*gradients)


def elbo(model: Model, batch: Batch) -> torch.Tensor:
    """ELBO of each row, (B,), in nats, float64: the mean over the batch's draws."""
    log_likelihood, kl = model(batch)
    # Padding keeps the number of rows, so that sums over draws always round a row the same.
    n_missing = len(batch.y) - log_likelihood.shape[-1]
    if n_missing:
        log_likelihood = nn.functional.pad(log_likelihood, (0, n_missing))
        kl = nn.functional.pad(kl, (0, 0, 0, n_missing))
    # On the CPU, since not every device has float64.
    return log_likelihood.cpu().double().mean(0) - kl.cpu().double().mean(0).sum(-1)


def warm_up(epoch: int, n_epochs: int) -> float:
    """Share of beta in `epoch`: it rises in equal steps, and is 1 from epoch `n_epochs` on."""
    return min(1.0, (epoch + 1) / (n_epochs + 1))
