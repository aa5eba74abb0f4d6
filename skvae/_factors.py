"""Factor analysis: the linear model that a network with a linear part is to beat.

    y = W z + noise,    z ~ N(0, I),    noise ~ N(0, diag(v)),

has the posterior N(A y, T) with T = (I + W' V^-1 W)^-1 and A = T W' V^-1, V = diag(v). EM
maximises its likelihood (Rubin & Thayer, EM algorithms for ML factor analysis, 1982): for rows y
of mean 0 and covariance S,

    W = S A' (T + A S A')^-1,    v = diag(S - W A S),

after which W is multiplied by a Cholesky factor of T + A S A', the covariance that z would have
if it were free (the parameter expansion of Liu, Rubin & Wu, Parameter expansion to accelerate
EM, 1998: 50 steps come as close as some hundred without). The covariance of all columns is
never made.

A component of strength s, an eigenvalue of W' V^-1 W, is worth n (s - log(1 + s)) / 2 nats on
n rows. Components that are worth less than the Bayesian information criterion asks for D numbers,
D log(n) / 2 nats (Schwarz, Estimating the dimension of a model, 1978), are left out.
"""

import math
from typing import NamedTuple

import numpy as np
import torch

N_STEPS = 50
START = 0.1  # size of the first loadings


class Factors(NamedTuple):
    """Factor analysis, turned so that the posterior's components are independent."""

    loading: torch.Tensor  # W (D, L), the strongest component first
    variance: torch.Tensor  # v (D,)
    projection: torch.Tensor  # A (L, D)
    log_std: torch.Tensor  # of the posterior (L,)


def analyse(
    y: torch.Tensor,
    n_components: int,
    floor: float,
    noise: str | None,
    weight: torch.Tensor | None = None,
) -> Factors:
    """Factor analysis of rows y (B, D), with at most so many components: those worth it.

    `noise` is "per_feature", "shared", or None for the variance `floor`, above which the others
    stay. Rows are float64 on the CPU: not every device has that. `weight` (B,) is how much each
    counts; only ratios matter.
    """
    if weight is None:
        y = y - y.mean(0)
    else:  # rows times the roots of their weights have the weighted moments
        weight = (weight / weight.mean()).unsqueeze(1)
        y = (y - (weight * y).mean(0)) * weight.sqrt()
    n_varying = int(y.any(0).sum())
    n_components = min(n_components, n_varying, len(y) - 1)
    try:
        strength = torch.expm1(-2 * maximise(y, n_components, floor, noise).log_std)
        worth = len(y) * (strength - strength.log1p()) > n_varying * math.log(len(y))
        return maximise(y, int(worth.sum()), floor, noise)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        # Of few dimensions, far above a noise that was given.
        return maximise(y, 0, floor, noise)


def maximise(y: torch.Tensor, n_components: int, floor: float, noise: str | None) -> Factors:
    """As `analyse`, with exactly so many components, of rows of mean 0."""
    n_rows, n_features = y.shape
    square = y.square().mean(0)
    varies = square > 0

    def variance_of(residual: torch.Tensor) -> torch.Tensor:
        if noise is None:
            return torch.full_like(square, floor)
        if noise == "shared":
            residual = (residual[varies].sum() / max(1, int(varies.sum()))).expand_as(square)
        # A little above: what is learned is the logarithm of the difference.
        return residual.clamp(min=1.01 * floor)

    # Rows of components: the first ones are the same whatever n_components.
    start = np.random.default_rng(0).standard_normal((n_components, n_features))
    loading, variance = START * torch.from_numpy(start).T, variance_of(square / 2)
    identity = torch.eye(n_components, dtype=y.dtype, device=y.device)
    for _ in range(N_STEPS):
        weighted = loading / variance.unsqueeze(1)
        covariance = torch.linalg.inv(identity + loading.T @ weighted)
        mean = y @ (weighted @ covariance)
        cross, moment = y.T @ mean / n_rows, covariance + mean.T @ mean / n_rows
        loading = torch.linalg.solve(moment, cross.T).T
        variance = variance_of(square - (loading * cross).sum(1))
        loading = loading @ torch.linalg.cholesky(moment)
    strength, turn = torch.linalg.eigh(loading.T @ (loading / variance.unsqueeze(1)))
    strength, loading = strength.clamp(min=0).flip(0), loading @ turn.flip(1)
    projection = (loading / variance.unsqueeze(1)).T / (1 + strength).unsqueeze(1)
    return Factors(loading, variance, projection, -0.5 * strength.log1p())
