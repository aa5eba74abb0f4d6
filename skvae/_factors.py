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
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

N_STEPS = 50
START = 0.1  # size of the first loadings


class Factors(NamedTuple):
    """Factor analysis, turned so that the posterior's components are independent."""

    loading: Array  # W (D, L), the strongest component first
    variance: Array  # v (D,)
    projection: Array  # A (L, D)
    log_std: Array  # of the posterior (L,)


def analyse(y: Array, n_components: int, floor: float, noise: str | None) -> Factors:
    """Factor analysis of rows y (B, D), with at most so many components: those worth it.

    `noise` is "per_feature", "shared", or None for the variance `floor`, above which the others
    stay.
    """
    y = y - y.mean(axis=0)
    n_varying = int(y.any(axis=0).sum())
    n_components = min(n_components, n_varying, len(y) - 1)
    with np.errstate(all="ignore"):  # what is not finite is no better than anything
        try:
            strength = np.expm1(-2 * maximise(y, n_components, floor, noise).log_std)
            worth = len(y) * (strength - np.log1p(strength)) > n_varying * math.log(len(y))
            return maximise(y, int(worth.sum()), floor, noise)
        except np.linalg.LinAlgError:  # of few dimensions, far above a noise that was given
            return maximise(y, 0, floor, noise)


def maximise(y: Array, n_components: int, floor: float, noise: str | None) -> Factors:
    """As `analyse`, with exactly so many components, of rows of mean 0."""
    n_rows, n_features = y.shape
    square = np.square(y).mean(axis=0)
    varies = square > 0

    def variance_of(residual: Array) -> Array:
        if noise is None:
            return np.full(n_features, floor)
        if noise == "shared":
            residual = np.full(n_features, residual[varies].sum() / max(1, varies.sum()))
        # A little above: what is learned is the logarithm of the difference.
        return np.maximum(residual, 1.01 * floor)

    # Rows of components: the first ones are the same whatever n_components.
    start = np.random.default_rng(0).standard_normal((n_components, n_features))
    loading, variance = START * start.T, variance_of(square / 2)
    for _ in range(N_STEPS):
        weighted = loading / variance[:, None]
        covariance = np.linalg.inv(np.eye(n_components) + loading.T @ weighted)
        mean = y @ (weighted @ covariance)
        cross, moment = y.T @ mean / n_rows, covariance + mean.T @ mean / n_rows
        loading = np.linalg.solve(moment, cross.T).T
        variance = variance_of(square - (loading * cross).sum(axis=1))
        loading = loading @ np.linalg.cholesky(moment)
    strength, turn = np.linalg.eigh(loading.T @ (loading / variance[:, None]))
    strength, loading = np.maximum(strength, 0)[::-1].copy(), loading @ turn[:, ::-1]
    projection = (loading / variance[:, None]).T / (1 + strength)[:, None]
    return Factors(loading, variance, projection, -0.5 * np.log1p(strength))
