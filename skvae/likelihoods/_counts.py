"""Likelihoods of counts: whole numbers from 0 on, with a mean that the decoder gives.

With the mean m, the dispersion r of a column and G the gamma function,

    Poisson:            log p(x|z) = sum_d (x_d log m_d - m_d - log x_d!),
    NegativeBinomial:   log p(x|z) = sum_d (log G(x_d + r_d) - log G(r_d) - log x_d!
                                            + r_d log(r_d / (r_d + m_d))
                                            + x_d log(m_d / (r_d + m_d))),

where the latter has the variance m + m**2 / r: it is a Poisson distribution whose rate has a gamma
distribution. The decoder may also give the probability w of a zero of another origin,

    ZeroInflated:       p(x_d|z) = w_d [x_d = 0] + (1 - w_d) p'(x_d|z)

(Lambert, Zero-inflated Poisson regression, 1992). Counts have no units: the encoder sees
log(1 + x). For high counts these logarithms are large, and their difference would lose its digits
in float32, so they are computed in float64 if the device has it.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from skvae._backend.tensors import Array, to_tensor
from skvae._data.statistics import Moments
from skvae._data.units import FARTHEST
from skvae._data.words import UNNAMED, Labels, cell
from skvae.likelihoods._base import TOLERANCE, Likelihood, Pullback, draw_uniform

LOG_RATE_BOUND = 20.0  # largest log factor between a mean and its column's: a factor of 5e8
LEAST_MEAN = 1e-3  # least mean of a column at the start
LEAST_SPREAD = 1e-4  # least spread of the logarithms, since float32 has 7 digits
LOG_DISPERSION_BOUND = 15.0  # a dispersion above 3e6 gives a Poisson distribution
FIRST_DISPERSIONS = 0.1, 1e5  # least and largest dispersion at the start
FIRST_ZEROS = 1e-9, 0.1  # least and largest share of zeros of another origin at the start


def _exact(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.device.type == "mps" else tensor.double()


class _Counts(Likelihood):
    """Whole numbers. The decoder gives their mean as a factor of the column's mean.

    The encoder sees log(1 + x), and the decoder gives the logarithm of the factor. The unit of both
    is about the standard deviation of log(1 + x). The slope of the logarithm at the mean gives
    std / (1 + mean) for it. The unit is at most 1, since long tails make this estimate too large.
    So counts of a million that vary by a thousandth train like other columns.
    """

    is_mass: ClassVar[bool] = True
    initialises_all: ClassVar[bool] = True
    is_foreign: ClassVar[bool] = False

    def check_support(self, X: Array, labels: Labels = UNNAMED) -> Array:
        """Return X, rounded to counts; a ValueError names a value that is no count.

        X is returned itself if all of its values are counts.
        """
        whole = np.round(X)
        if X.min() >= 0 and X.max() <= FARTHEST and (whole == X).all():
            return X
        outside = (whole < 0) | (np.abs(X - whole) > TOLERANCE) | (whole > FARTHEST)
        if outside.any():
            raise ValueError(
                f"{self!r} expects counts, whole numbers from 0 to {FARTHEST:.0e}. Got "
                f"{cell(X, outside, labels)[0]}. Round X, or use likelihood='gaussian' for real "
                "values."
            )
        return whole + 0.0  # no minus zero

    def build(self, n_features: int) -> Any:
        """Make the module of the columns' moments, which are kept besides the decoder."""
        module: Any = nn.Module()
        module.register_buffer("log_mean", torch.empty(n_features))
        module.register_buffer("centre", torch.empty(n_features))  # of the encoder's inputs
        module.register_buffer("spread", torch.empty(n_features))
        return module

    def initialise(self, module: Any, columns: Moments, scale: Array) -> None:
        """Start from the mean of each column."""
        mean = np.maximum(columns.mean, LEAST_MEAN)
        module.log_mean.copy_(to_tensor(np.log(mean), "cpu"))
        # A constant column is 0 in the model's units, and the encoder sees 0.
        centre = np.where(columns.std > 0, np.log1p(mean), 0.0)
        module.centre.copy_(to_tensor(centre, "cpu"))
        spread = np.clip(columns.std / (1 + mean), LEAST_SPREAD, 1.0)
        module.spread.copy_(to_tensor(spread, "cpu"))

    def seen(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        """Return the encoder's inputs for x, (..., D): logarithms, standardised."""
        return (torch.log1p(x) - module.centre.unsqueeze(-2)) / module.spread.unsqueeze(-2)

    def _bend(self, module: Any, raw: torch.Tensor) -> torch.Tensor:
        return torch.tanh(_exact(raw) * (module.spread / LOG_RATE_BOUND).unsqueeze(-2))

    def _log_rate(self, module: Any, raw: torch.Tensor) -> torch.Tensor:
        return module.log_mean.unsqueeze(-2) + LOG_RATE_BOUND * self._bend(module, raw)

    def mean(self, module: Any, raw: torch.Tensor) -> torch.Tensor:
        """E[x|z], (..., D)."""
        return self._log_rate(module, raw).exp().to(raw.dtype)


def _draw_poisson(rate: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    rate = rate.clamp(max=FARTHEST)
    drawn = torch.poisson(rate.to(generator.device), generator=generator)
    return drawn.clamp(max=FARTHEST).to(rate.device)


@dataclass(frozen=True)
class Poisson(_Counts):
    """Counts of independent events, whose variance equals their mean.

    A ValueError names a value that is negative, above 1e10, or further from a whole number than
    rounding explains. The score is a log-probability.

    Examples
    --------
    >>> from skvae.likelihoods import Poisson
    >>> Poisson()
    Poisson()
    """

    # A name for pickles and links that survives when files move.
    __module__ = "skvae.likelihoods"

    def log_prob(self, module: Any, raw: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """log p(x_d|z) per feature in nats, (..., D)."""
        log_rate, x = self._log_rate(module, raw), _exact(x)
        return (x * log_rate - log_rate.exp() - torch.lgamma(x + 1)).to(raw.dtype)

    def vjp(
        self, module: Any, raw: torch.Tensor, x: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, Pullback]:
        """Return `total` of M models, and its pullback."""

        def pull(g: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
            slope = (1 - self._bend(module, raw).square()) * module.spread.unsqueeze(-2)
            g_raw = (x - self._log_rate(module, raw).exp()) * slope
            return g_raw.to(raw.dtype) * weight * g.unsqueeze(-1), []

        return self.total(module, raw, x, weight), pull

    def sample(self, module: Any, raw: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw x, (..., D)."""
        return _draw_poisson(self.mean(module, raw), generator)


@dataclass(frozen=True)
class NegativeBinomial(_Counts):
    """Counts with more variance than a Poisson distribution has, such as counts of genes.

    For a mean m the variance is m + m**2 / r, with a dispersion r that is learned for each column.
    A ValueError names a value that is negative, above 1e10, or further from a whole number than
    rounding explains. The score is a log-probability.

    Examples
    --------
    >>> from skvae.likelihoods import NegativeBinomial
    >>> NegativeBinomial()
    NegativeBinomial()
    """

    # A name for pickles and links that survives when files move.
    __module__ = "skvae.likelihoods"

    def build(self, n_features: int) -> Any:
        """Make the module of the dispersion, which is learned besides the decoder."""
        module = super().build(n_features)
        module.raw_dispersion = nn.Parameter(torch.empty(n_features))
        return module

    def initialise(self, module: Any, columns: Moments, scale: Array) -> None:
        """Start from the mean and the variance of each column."""
        super().initialise(module, columns, scale)
        more = np.maximum(columns.std**2 - columns.mean, 1e-12)
        first = np.clip(columns.mean**2 / more, *FIRST_DISPERSIONS)
        bend = np.arctanh(np.log(first) / LOG_DISPERSION_BOUND)
        module.raw_dispersion.copy_(to_tensor(LOG_DISPERSION_BOUND * bend, "cpu"))

    def _log_dispersion(self, module: Any) -> torch.Tensor:
        bend = torch.tanh(_exact(module.raw_dispersion) / LOG_DISPERSION_BOUND)
        return (LOG_DISPERSION_BOUND * bend).unsqueeze(-2)

    def log_prob(self, module: Any, raw: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """log p(x_d|z) per feature in nats, (..., D)."""
        log_rate, x, log_r = self._log_rate(module, raw), _exact(x), self._log_dispersion(module)
        r = log_r.exp()
        ways = torch.lgamma(x + r) - torch.lgamma(r) - torch.lgamma(x + 1)
        both = torch.logaddexp(log_r, log_rate)
        return (ways + r * (log_r - both) + x * (log_rate - both)).to(raw.dtype)

    def sample(self, module: Any, raw: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw x, (..., D)."""
        mean = self.mean(module, raw)
        r = self._log_dispersion(module).exp().expand_as(mean).to(generator.device)
        gamma = torch._standard_gamma(r.contiguous(), generator=generator) / r  # its mean is 1
        return _draw_poisson(mean * gamma.to(mean), generator)


@dataclass(frozen=True)
class ZeroInflated(_Counts):
    """Counts with extra zeros: some zeros have another origin than the counts.

    Parameters
    ----------
    likelihood : Poisson or NegativeBinomial, default=Poisson()
        The distribution of the other counts.

    Raises
    ------
    ValueError
        If `likelihood` is neither.

    Examples
    --------
    >>> from skvae.likelihoods import NegativeBinomial, ZeroInflated
    >>> ZeroInflated(NegativeBinomial())
    ZeroInflated(likelihood=NegativeBinomial())
    """

    # A name for pickles and links that survives when files move.
    __module__ = "skvae.likelihoods"

    likelihood: Poisson | NegativeBinomial = Poisson()

    def __post_init__(self) -> None:
        """Raise an error if `likelihood` is not one of counts."""
        if not isinstance(self.likelihood, Poisson | NegativeBinomial):
            raise ValueError(
                "The likelihood of a ZeroInflated must be a Poisson() or a NegativeBinomial(). "
                f"Got {self.likelihood!r}."
            )

    def n_outputs(self, n_features: int) -> int:
        """Number of raw decoder outputs: those of the counts, and log-odds of the other zeros."""
        return 2 * n_features

    def build(self, n_features: int) -> Any:
        """Make the module of the counts, with the first log-odds of the other zeros."""
        module = self.likelihood.build(n_features)
        module.register_buffer("zero_log_odds", torch.empty(n_features))
        return module

    def initialise(self, module: Any, columns: Moments, scale: Array) -> None:
        """Start from the mean of each column, with some zeros of another origin.

        A share w of such zeros alone gives a variance of w / (1 - w) times the squared mean. The
        first share is half of the share that would give the column's variance, within FIRST_ZEROS.
        """
        square = (columns.std / np.maximum(columns.mean, LEAST_MEAN)) ** 2
        share = np.clip(0.5 * square / (1 + square), *FIRST_ZEROS)
        module.zero_log_odds.copy_(to_tensor(np.log(share / (1 - share)), "cpu"))
        mean = columns.mean / (1 - share)
        # The zeros add to the variance, so their part is subtracted for the counts.
        variance = columns.std**2 / (1 - share) - share * mean**2
        std = np.sqrt(np.maximum(variance, 0.0))
        self.likelihood.initialise(module, Moments(mean, std), scale)

    def _parts(self, module: Any, raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the outputs of the counts, and the log-odds of the other zeros."""
        raw, zero = raw.chunk(2, dim=-1)
        return raw, zero + module.zero_log_odds.unsqueeze(-2)

    def log_prob(self, module: Any, raw: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """log p(x_d|z) per feature in nats, (..., D)."""
        raw, zero = self._parts(module, raw)
        counted = F.logsigmoid(-zero) + self.likelihood.log_prob(module, raw, x)
        return torch.where(x == 0, torch.logaddexp(F.logsigmoid(zero), counted), counted)

    def mean(self, module: Any, raw: torch.Tensor) -> torch.Tensor:
        """E[x|z], (..., D)."""
        raw, zero = self._parts(module, raw)
        return torch.sigmoid(-zero) * self.likelihood.mean(module, raw)

    def sample(self, module: Any, raw: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw x, (..., D)."""
        raw, zero = self._parts(module, raw)
        counted = self.likelihood.sample(module, raw, generator)
        uniform = draw_uniform(zero.shape, zero.dtype, generator).to(zero.device)
        return torch.where(uniform < torch.sigmoid(zero), 0.0, counted)
