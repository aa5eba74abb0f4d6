"""Likelihoods of numbers between 0 and 1.

With l the decoder's log-odds, added to those of each column,

    Bernoulli:             log p(x|z) = sum_d (x_d l_d - log(1 + exp l_d)),
    ContinuousBernoulli:   log p(x|z) = sum_d (x_d l_d - log((exp l_d - 1) / l_d))

(Loaiza-Ganem & Cunningham, The continuous Bernoulli, 2019, arXiv:1907.06845).
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from skvae._backend.tensors import Array, to_tensor
from skvae._data.statistics import Moments
from skvae._data.words import UNNAMED, Labels, cell
from skvae.likelihoods._base import TOLERANCE, Likelihood, Pullback, draw_uniform

LOG_ODDS_BOUND = 1000.0  # limits the density of a continuous Bernoulli to 1000


class _UnitInterval(Likelihood):
    """Numbers in [0, 1]; the decoder's outputs are added to the log-odds of each column."""

    initialises_all: ClassVar[bool] = True
    is_foreign: ClassVar[bool] = False

    def check_support(self, X: Array, labels: Labels = UNNAMED) -> Array:
        """Return X clipped to [0, 1]; a ValueError names a value that is farther outside.

        X is returned itself if all of its values are inside.
        """
        if X.min() >= 0 and X.max() <= 1:
            return X
        outside = (X < -TOLERANCE) | (X > 1 + TOLERANCE)
        if outside.any():
            raise ValueError(
                f"The {type(self).__name__} likelihood expects values in [0, 1]. Got "
                f"{cell(X, outside, labels)[0]}. Scale X to [0, 1] (MinMaxScaler), or use "
                "likelihood='gaussian' for real values."
            )
        return np.clip(X, 0, 1)

    def build(self, n_features: int) -> Any:
        """Make the module of the first log-odds, which are kept besides the decoder."""
        module: Any = nn.Module()
        module.register_buffer("log_odds", torch.empty(n_features))
        return module

    def initialise(self, module: Any, columns: Moments, scale: Array) -> None:
        """Start from the log-odds of the mean of each column."""
        mean = to_tensor(columns.mean, "cpu").clamp(0.001, 0.999)
        module.log_odds.copy_(torch.logit(mean))

    def _log_odds(self, module: Any, raw: torch.Tensor) -> torch.Tensor:
        return module.log_odds.unsqueeze(-2) + raw


@dataclass(frozen=True)
class Bernoulli(_UnitInterval):
    """Yes/no values: numbers in [0, 1], summed binary cross-entropy.

    A value that is outside [0, 1] by at most 1e-6 is taken as 0 or 1. A ValueError names a value
    that is farther outside. For zeros and ones the score is a log-probability. For grey values
    between them the same formula is a cross-entropy and no density: it doesn't integrate to 1, so
    compare its scores only with scores of other models by the same formula.

    Parameters
    ----------
    resample : bool, default=False
        Whether grey values are probabilities, from which zeros and ones are drawn anew in each
        epoch of training, as for the usual binarised MNIST. Held-out rows are drawn once. Scores
        draw nothing: they take grey values as they are.

    Examples
    --------
    >>> from skvae.likelihoods import Bernoulli
    >>> Bernoulli(resample=True)
    Bernoulli(resample=True)
    """

    # A name for pickles and links that survives when files move.
    __module__ = "skvae.likelihoods"

    resample: bool = False

    is_mass: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise an error if `resample` is not valid."""
        if not isinstance(self.resample, bool | np.bool_):
            raise ValueError(
                f"The resample of a Bernoulli must be True or False. Got {self.resample!r}."
            )

    @property
    def n_noise(self) -> int:  # type: ignore[override]
        """Number of standard normals that draw a feature anew."""
        return int(self.resample)

    def redraw(self, x: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """Draw zeros and ones with probabilities x, (..., D), by standard normal noise."""
        drawn = torch.special.ndtr(eps) < x
        return (drawn | (x == 1)).to(x.dtype)  # ndtr of large noise rounds to 1

    def log_prob(self, module: Any, raw: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """log p(x_d|z) per feature in nats, (..., D)."""
        log_odds = self._log_odds(module, raw)
        return x * log_odds - F.softplus(log_odds)

    def vjp(
        self, module: Any, raw: torch.Tensor, x: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, Pullback]:
        """Return `total` of M models, and its pullback."""

        def pull(g: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
            g_raw = x - self.mean(module, raw)
            return g_raw * weight * g.unsqueeze(-1), []

        return self.total(module, raw, x, weight), pull

    def mean(self, module: Any, raw: torch.Tensor) -> torch.Tensor:
        """E[x|z], (..., D)."""
        return torch.sigmoid(self._log_odds(module, raw))

    def sample(self, module: Any, raw: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw x, (..., D), zeros and ones."""
        mean = self.mean(module, raw)
        uniform = draw_uniform(mean.shape, mean.dtype, generator)
        return (uniform.to(mean.device) < mean).to(mean.dtype)


def _mean_between(log_odds: torch.Tensor) -> torch.Tensor:
    """Mean of a continuous Bernoulli, 1 / (1 - exp(-l)) - 1 / l; a series is used near l = 0."""
    near = log_odds.abs() < 0.1
    far = torch.where(near, 1.0, log_odds)
    series = 0.5 + log_odds / 12 - log_odds**3 / 720
    return torch.where(near, series, -1 / torch.expm1(-far) - 1 / far)


@dataclass(frozen=True)
class ContinuousBernoulli(_UnitInterval):
    """Numbers in [0, 1] with a density, for grey values in place of `Bernoulli`.

    A value that is outside [0, 1] by at most 1e-6 is taken as 0 or 1. A ValueError names a value
    that is farther outside.

    References
    ----------
    The continuous Bernoulli: fixing a pervasive error in variational autoencoders
    (G. Loaiza-Ganem & J. P. Cunningham, 2019), https://arxiv.org/abs/1907.06845.

    Examples
    --------
    >>> from skvae.likelihoods import ContinuousBernoulli
    >>> ContinuousBernoulli()
    ContinuousBernoulli()
    """

    # A name for pickles and links that survives when files move.
    __module__ = "skvae.likelihoods"

    def initialise(self, module: Any, columns: Moments, scale: Array) -> None:
        """Start from the mean of each column."""
        mean = to_tensor(columns.mean, "cpu").clamp(0.002, 0.998)
        low, high = torch.full_like(mean, -LOG_ODDS_BOUND), torch.full_like(mean, LOG_ODDS_BOUND)
        for _ in range(60):  # bisection, since the mean rises with the log-odds
            middle = (low + high) / 2
            above = _mean_between(middle) > mean
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        module.log_odds.copy_(low)

    def _log_odds(self, module: Any, raw: torch.Tensor) -> torch.Tensor:
        # Without a bound, a column of zeros would drive the density to infinity.
        return LOG_ODDS_BOUND * torch.tanh(super()._log_odds(module, raw) / LOG_ODDS_BOUND)

    def log_prob(self, module: Any, raw: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """log p(x_d|z) per feature in nats, (..., D)."""
        log_odds = self._log_odds(module, raw)
        half = 0.5 * log_odds.abs()
        near = half < 0.1
        far = torch.where(near, 1.0, half)
        # This is log(sinh(u) / u); a series is used near 0.
        exact = far + torch.log(-torch.expm1(-2 * far) / (2 * far))
        series = half.square() / 6 - half.square().square() / 180
        return (x - 0.5) * log_odds - torch.where(near, series, exact)

    def mean(self, module: Any, raw: torch.Tensor) -> torch.Tensor:
        """E[x|z], (..., D)."""
        return _mean_between(self._log_odds(module, raw))

    def sample(self, module: Any, raw: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw x, (..., D)."""
        log_odds = self._log_odds(module, raw)
        uniform = draw_uniform(log_odds.shape, log_odds.dtype, generator).to(log_odds.device)
        near = log_odds.abs() < 1e-4
        size = torch.where(near, 1.0, log_odds.abs())
        # The inverse distribution function of -|l| is reflected if l > 0.
        low = -torch.log1p(uniform * torch.expm1(-size)) / size
        drawn = torch.where(log_odds > 0, 1 - low, low)
        return torch.where(near, uniform, drawn).clamp(0, 1)
