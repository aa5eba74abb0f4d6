r"""Likelihoods p(x|z): what the decoder's outputs say of a row.

A likelihood is a value with pure functions of tensors. x is in the model's own units
(``skvae._arrays``), `raw` are the decoder's outputs, and `log_prob` gives log-densities per
feature in nats with every constant kept; the model sums them over the features and adds the
log-Jacobian of its units.

Gaussian, with m the decoder's mean and v the variance of the observation noise:

    log p(x|z) = -1/2 sum_d ((x_d - m_d)**2 / v_d + log v_d + log(2 pi)).

The variance is learned (Rybkin, Daniilidis & Levine, Simple and effective VAE training with
calibrated decoders, 2021, arXiv:2006.13202) unless it is given. It never falls below
(0.01)**2 of the column's own variance, v = floor + exp(raw): a density has no upper bound,
and without the floor one nearly constant column decides the score of the whole table.

`vjp` is the derivative of the log-density written out, for M models at once as in
`skvae.networks`.

Bernoulli, with l the decoder's log-odds:

    log p(x|z) = sum_d (x_d l_d - log(1 + exp l_d)).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from skvae._arrays import Array, Columns, cell, to_tensor

LOG_2PI = math.log(2 * math.pi)

NOISE_FLOOR = 0.01  # of a column's standard deviation
RESOLUTION = 1e-4  # of the root mean square scale: the least shared noise float32 resolves
# Learned noise starts at this share of the variance. From 1, two moons and the Swiss roll
# stayed collapsed, as the latent variables explain nothing at first; from 0.03, small tables
# overfitted.
INITIAL_VARIANCE = 0.3
LOG_VARIANCE_BOUND = 30.0  # of a variance that the decoder gives, so that it stays finite
BERNOULLI_TOLERANCE = 1e-6

# Gradient of log p(x|z) of each row (M, n) -> of the decoder's outputs (M, n, P), and of what
# is learned besides them.
Pullback = Callable[[torch.Tensor], tuple[torch.Tensor, list[torch.Tensor]]]


@dataclass(frozen=True)
class Gaussian:
    """Real values with normal observation noise.

    Parameters
    ----------
    noise : {"per_feature", "shared", "per_sample"} or float, default="per_feature"
        Variance of the observation noise:

        - "per_feature": one learned variance for each column, as in factor analysis;
        - "shared": one learned variance for all columns, in squared units of X, as in
          probabilistic PCA;
        - "per_sample": for each row and column its own, given by the decoder;
        - a positive number: this variance for all columns, in squared units of X, not
          learned. With 0.5 the loss is the squared error plus the KL divergence, up to a
          constant: ``||x - x_hat||**2 + KL``.

        The noise's standard deviation is at least 0.01 of the column's, unless it is
        given; for "shared", which has no column of its own, 0.01 of the smallest column's
        and 1e-4 of their root mean square.

    Raises
    ------
    ValueError
        If `noise` is none of these.

    Notes
    -----
    "per_feature" and "per_sample" don't depend on the scale of the columns. "shared" and a
    number do, as PCA does: columns should then have one unit, or be scaled first.

    A column that hardly varies in `fit` makes rows that differ there very unlikely under
    "per_feature" and "per_sample" noise, as under FactorAnalysis: drop such columns
    (VarianceThreshold), or use "shared".

    Examples
    --------
    >>> from skvae.likelihoods import Gaussian
    >>> Gaussian(noise=0.5)
    Gaussian(noise=0.5)
    """

    noise: Literal["per_feature", "shared", "per_sample"] | float = "per_feature"

    def __post_init__(self) -> None:
        """Refuse what is no noise."""
        kinds = ("per_feature", "shared", "per_sample")
        if isinstance(self.noise, Real) and not isinstance(self.noise, bool):
            known = 0 < float(self.noise) < math.inf
        else:
            known = isinstance(self.noise, str) and self.noise in kinds
        if not known:
            raise ValueError(
                f"The noise of a Gaussian must be one of {kinds} or a positive finite "
                f"variance. Got {self.noise!r} instead."
            )

    def check_support(self, X: Array, names: Array | None = None) -> Array:
        """Every finite number is a possible value."""
        return X

    def units(self, columns: Columns) -> tuple[Array, Array]:
        """Location and scale of the model's units, each (D,).

        Each column has its own scale where the noise follows the column's; one noise for
        all columns needs one scale for all.
        """
        mean, std = columns
        if self.noise in ("per_feature", "per_sample") or not std.any():
            return mean, std
        largest = std.max()
        typical = largest * np.sqrt(np.mean((std[std > 0] / largest) ** 2))
        return mean, np.where(std > 0, typical, 0.0)

    def n_outputs(self, n_features: int) -> int:
        """Number of raw decoder outputs."""
        return 2 * n_features if self.noise == "per_sample" else n_features

    def build(self, n_features: int) -> Any:
        """Make the module of what is learned besides the decoder: the noise variance."""
        module: Any = nn.Module()
        module.register_buffer("floor", torch.empty(1))
        if self.noise in ("per_feature", "shared"):
            n_learned = n_features if self.noise == "per_feature" else 1
            module.raw_variance = nn.Parameter(torch.empty(n_learned))
        return module

    def initialise(self, module: Any, columns: Columns, scale: Array) -> None:
        """Start from a good part of the data's variance; a given noise changes its units."""
        floor = NOISE_FLOOR
        std, scale = columns.std[columns.std > 0], scale[scale > 0]
        if len(std) == 0:
            pass
        elif self.noise == "shared":
            floor = max(NOISE_FLOOR * std.min() / scale[0], RESOLUTION)
        elif isinstance(self.noise, Real):
            floor = math.sqrt(float(self.noise)) / scale[0]
            if not 1e-12 < floor < 1e12:
                raise ValueError(
                    f"A noise variance of {self.noise:.3g} is out of reach for data whose "
                    f"columns vary by {scale[0]:.3g}: give noise in squared units of X, "
                    "scale X, or let it be learned (noise='shared')."
                )
        module.floor.fill_(floor**2)
        if self.noise in ("per_feature", "shared"):
            nn.init.constant_(module.raw_variance, math.log(INITIAL_VARIANCE))

    def variance(self, module: Any) -> torch.Tensor | None:
        """Noise variance in the model's units, (1,) or (D,); None where it is per sample."""
        if self.noise == "per_sample":
            return None
        if self.noise in ("per_feature", "shared"):
            return module.floor + module.raw_variance.exp()
        return module.floor

    def _mean_variance(self, module: Any, raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        variance = self.variance(module)
        if variance is not None:
            variance = variance.unsqueeze(-2)  # from rows to (..., rows, D)
        else:
            raw, log_variance = raw.chunk(2, dim=-1)
            bend = torch.tanh(log_variance / LOG_VARIANCE_BOUND)
            variance = module.floor.unsqueeze(-2) + (LOG_VARIANCE_BOUND * bend).exp()
        return raw, variance

    def log_prob(self, module: Any, raw: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """log p(x_d|z) per feature in nats, (..., D)."""
        mean, variance = self._mean_variance(module, raw)
        return -0.5 * ((x - mean).square() / variance + (variance.log() + LOG_2PI))

    def vjp(
        self, module: Any, raw: torch.Tensor, x: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, Pullback]:
        """`log_prob` (M, n, D) summed with the features' `weight` (M, D), and its pullback.

        The value alone also without a leading M, and for S draws: (S, n, D) and (D,).
        """
        mean, variance = self._mean_variance(module, raw)
        weight = weight.unsqueeze(-2)
        residual = x - mean
        pulled = residual * (weight / variance)
        square = pulled * residual
        total = square.sum(-1) + ((variance.log() + LOG_2PI) * weight).sum(-1)

        def pull(g: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
            g_mean = pulled * g.unsqueeze(-1)
            if self.noise == "per_sample":
                bend = torch.tanh(raw.chunk(2, dim=-1)[1] / LOG_VARIANCE_BOUND)
                slope = (LOG_VARIANCE_BOUND * bend).exp() * (1 - bend.square())
                g_variance = 0.5 * (square - weight) / variance * g.unsqueeze(-1)
                return torch.cat([g_mean, g_variance * slope], dim=-1), []
            if self.noise not in ("per_feature", "shared"):
                return g_mean, []
            slope = 0.5 * module.raw_variance.exp()
            g = g.unsqueeze(-2)
            excess = torch.bmm(g, square) - g.sum(-1, keepdim=True) * weight
            return g_mean, [((excess / variance).squeeze(-2) * slope).sum_to_size(slope.shape)]

        return -0.5 * total, pull

    def mean(self, module: Any, raw: torch.Tensor) -> torch.Tensor:
        """E[x|z], (..., D)."""
        return self._mean_variance(module, raw)[0]

    def sample(self, module: Any, raw: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draws of x, (..., D)."""
        mean, variance = self._mean_variance(module, raw)
        eps = torch.randn(
            mean.shape, generator=generator, dtype=mean.dtype, device=generator.device
        )
        return mean + variance.sqrt() * eps.to(mean.device)


@dataclass(frozen=True)
class Bernoulli:
    """Yes/no values: numbers in [0, 1], summed binary cross-entropy.

    A value that is outside [0, 1] by at most 1e-6 is taken as 0 or 1; further outside, a
    ValueError names it. For zeros and ones the score is a log-probability. On grey values
    between them the same formula is a cross-entropy and no density: it doesn't integrate to
    1, and its scores compare only with those of other models under the same formula.

    Examples
    --------
    >>> from skvae.likelihoods import Bernoulli
    >>> Bernoulli()
    Bernoulli()
    """

    def check_support(self, X: Array, names: Array | None = None) -> Array:
        """X clipped to [0, 1], or a ValueError naming the value that is outside.

        X itself where nothing is outside.
        """
        if X.min() >= 0 and X.max() <= 1:
            return X
        outside = (X < -BERNOULLI_TOLERANCE) | (X > 1 + BERNOULLI_TOLERANCE)
        if outside.any():
            raise ValueError(
                "The Bernoulli likelihood expects values in [0, 1]. Got "
                f"{cell(X, outside, names)[0]}. Scale X to [0, 1] (MinMaxScaler), or use "
                "likelihood='gaussian' for real values."
            )
        return np.clip(X, 0, 1)

    def units(self, columns: Columns) -> tuple[Array, Array]:
        """Location and scale of the model's units, each (D,): the data's own."""
        varies = columns.std > 0
        return np.where(varies, 0.0, columns.mean), varies.astype(np.float64)

    def n_outputs(self, n_features: int) -> int:
        """Number of raw decoder outputs."""
        return n_features

    def build(self, n_features: int) -> Any:
        """Make the module of what is kept besides the decoder: log-odds to start from."""
        module: Any = nn.Module()
        module.register_buffer("log_odds", torch.empty(n_features))
        return module

    def initialise(self, module: Any, columns: Columns, scale: Array) -> None:
        """Start from the frequency of each column."""
        mean = to_tensor(columns.mean, "cpu").clamp(0.001, 0.999)
        module.log_odds.copy_(torch.logit(mean))

    def variance(self, module: Any) -> None:
        """None: the mean decides the variance."""

    def log_prob(self, module: Any, raw: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """log p(x_d|z) per feature in nats, (..., D)."""
        log_odds = module.log_odds.unsqueeze(-2) + raw
        return x * log_odds - F.softplus(log_odds)

    def vjp(
        self, module: Any, raw: torch.Tensor, x: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, Pullback]:
        """`log_prob` (M, n, D) summed with the features' `weight` (M, D), and its pullback.

        The value alone also without a leading M, and for S draws: (S, n, D) and (D,).
        """

        def pull(g: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
            g_raw = x - self.mean(module, raw)
            return g_raw * weight.unsqueeze(-2) * g.unsqueeze(-1), []

        total = self.log_prob(module, raw, x) @ weight.unsqueeze(-1)
        return total.squeeze(-1), pull

    def mean(self, module: Any, raw: torch.Tensor) -> torch.Tensor:
        """E[x|z], (..., D)."""
        return torch.sigmoid(module.log_odds.unsqueeze(-2) + raw)

    def sample(self, module: Any, raw: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draws of x, (..., D), zeros and ones."""
        mean = self.mean(module, raw)
        uniform = torch.rand(
            mean.shape, generator=generator, dtype=mean.dtype, device=generator.device
        )
        return (uniform.to(mean.device) < mean).to(mean.dtype)


Likelihood = Gaussian | Bernoulli

LIKELIHOODS: dict[str, Likelihood] = {"gaussian": Gaussian(), "bernoulli": Bernoulli()}
