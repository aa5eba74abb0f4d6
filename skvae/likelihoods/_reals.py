"""Likelihoods of real values: a mean, given by the decoder, and noise of a variance.

With the mean m, the variance v of the observation noise, and e = (x_d - m_d) / sqrt(v_d),

    Gaussian:   log p(x_d|z) = -1/2 (e**2 + log v_d + log(2 pi)),
    Laplace:    log p(x_d|z) = -sqrt(2) |e| - 1/2 log(2 v_d),
    StudentT:   log p(x_d|z) = log G((n+1)/2) - log G(n/2) - 1/2 log(pi (n-2) v_d)
                               - (n+1)/2 log(1 + e**2 / (n-2)),     n degrees of freedom.

The variance is learned (Rybkin, Daniilidis & Levine, Simple and effective VAE training with
calibrated decoders, 2021, arXiv:2006.13202) unless it is given. It never falls below
(0.01)**2 of the column's own variance, v = floor + exp(raw). A density has no upper bound, so
without the floor one nearly constant column would decide the score of the whole table. If more
than half of the rows have one value, only the n others carry information on the variance, and the
floor is (2 / (n + 1))**2 of it. With 0.01 for all, a model of 300 columns, non-zero in 0.3 % of the
rows, was up to 1e11 nats a row worse on new rows than independent columns; with the present floor
it is 125 to 163 nats a row better (3 seeds).
"""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from skvae._backend.normal import LOG_2PI
from skvae._backend.ops import tanh
from skvae._backend.tensors import Array, to_tensor
from skvae._data.statistics import Moments
from skvae.likelihoods._base import Likelihood, Pullback, draw_uniform

aten = torch.ops.aten

NOISE_FLOOR = 0.01  # least standard deviation of the noise, as a share of the column's
RESOLUTION = 1e-4  # least shared noise that float32 resolves, as a share of the common scale
# Learned noise starts at this share of the variance. With 1, two moons and the Swiss roll stayed
# collapsed, since the latent variables explain nothing at first. With 0.03, small tables
# overfitted.
INITIAL_VARIANCE = 0.3
# The logarithm of a row's own variance stays within this distance of its column's.
DEVIATION_BOUND = 5.0
# Share of the epochs, the first ones, in which "per_sample" noise only depends on the column. If a
# row had its own variance from the start, a large variance would explain what the mean has not
# learned yet, and the mean would never learn it: a ring and the S curve collapsed.
MEAN_FIRST = 0.3
# Least learned degrees of freedom, and the largest logarithm of the distance from it.
LEAST_DF, DF_BOUND = 2.1, 8.0


class _RealValues(Likelihood):
    """Real values with a mean, and a variance of the observation noise."""

    initialises_all: ClassVar[bool] = True
    is_foreign: ClassVar[bool] = False
    can_begin: ClassVar[bool] = True

    noise: Literal["per_sample", "per_feature", "shared"] | float

    @property
    def share_held_back(self) -> float:  # type: ignore[override]
        """Share of the epochs before rows have variances of their own."""
        return MEAN_FIRST if self.noise == "per_sample" else 0.0

    def __post_init__(self) -> None:
        """Raise an error if `noise` is not valid."""
        kinds = ("per_sample", "per_feature", "shared")
        if isinstance(self.noise, Real) and not isinstance(self.noise, bool):
            known = 0 < float(self.noise) < math.inf
        else:
            known = isinstance(self.noise, str) and self.noise in kinds
        if not known:
            raise ValueError(
                f"The noise of a {type(self).__name__} must be one of {kinds} or a positive "
                f"finite variance. Got {self.noise!r} instead."
            )

    def units(self, columns: Moments) -> tuple[Array, Array]:
        """Return location and scale of the model's units, each (D,).

        Each column has its own scale if each column has its own noise. One noise for all columns
        needs one scale for all.
        """
        mean, std = columns.mean, columns.std
        if self.noise in ("per_feature", "per_sample") or not std.any():
            return mean, std
        largest = std.max()
        typical = largest * np.sqrt(np.mean((std[std > 0] / largest) ** 2))
        return mean, np.where(std > 0, typical, 0.0)

    def n_outputs(self, n_features: int) -> int:
        """Number of raw decoder outputs."""
        return 2 * n_features if self.noise == "per_sample" else n_features

    def build(self, n_features: int) -> Any:
        """Make the module of the noise variance, which is learned besides the decoder."""
        module: Any = nn.Module()
        own = self.noise in ("per_feature", "per_sample")
        module.register_buffer("floor", torch.empty(n_features if own else 1))
        if isinstance(self.noise, str):
            n_learned = 1 if self.noise == "shared" else n_features
            module.raw_variance = nn.Parameter(torch.empty(n_learned))
        if self.noise == "per_sample":
            # 1 where the deviations of rows are learned, 0 where they are not yet.
            module.register_buffer("released", torch.ones(1))
        return module

    def begin_epoch(self, module: Any, progress: torch.Tensor) -> None:
        """Hold back the rows' own variances in the first epochs."""
        if self.noise == "per_sample":
            module.released.copy_((progress >= MEAN_FIRST).unsqueeze(-1))

    @property
    def noise_kind(self) -> str | None:
        """The kind of a learned noise variance, "per_feature" or "shared"; None: not learned."""
        noise = self.noise
        return noise.replace("per_sample", "per_feature") if isinstance(noise, str) else None

    def begin(self, module: Any, variance: torch.Tensor) -> None:
        """Set the noise variance of each column, (M, D), on the CPU, if it is learned."""
        if isinstance(self.noise, str):
            learned = (variance - module.floor.cpu()).log()  # not every device has float64
            module.raw_variance.copy_(learned[..., : module.raw_variance.shape[-1]])

    def initialise(self, module: Any, columns: Moments, scale: Array) -> None:
        """Start from INITIAL_VARIANCE; a given noise is converted to the model's units."""
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
        if self.noise in ("per_feature", "per_sample"):
            module.floor.copy_(to_tensor(np.maximum(floor**2, _floor_of_few(columns)), "cpu"))
        if isinstance(self.noise, str):
            nn.init.constant_(module.raw_variance, math.log(INITIAL_VARIANCE))
        if self.noise == "per_sample":
            nn.init.ones_(module.released)

    def variance(self, module: Any) -> torch.Tensor | None:
        """Noise variance in the model's units, (1,) or (D,); None if it is per sample."""
        if self.noise == "per_sample":
            return None
        if isinstance(self.noise, str):
            return module.floor + module.raw_variance.exp()
        return module.floor

    def _own(self, module: Any, deviation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the learned part of the rows' own variances, and the tanh of the deviations."""
        bend = tanh(deviation / DEVIATION_BOUND)
        log_own = torch.add(module.raw_variance.unsqueeze(-2), bend, alpha=DEVIATION_BOUND)
        return log_own.exp(), bend

    def _mean_variance(self, module: Any, raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        variance = self.variance(module)
        if variance is not None:
            return raw, variance.unsqueeze(-2)  # to broadcast over (..., rows, D)
        mean, deviation = raw.chunk(2, dim=-1)
        # The value stays the same, but only a released deviation has a gradient.
        deviation = deviation.detach().lerp(deviation, module.released.unsqueeze(-2))
        return mean, module.floor.unsqueeze(-2) + self._own(module, deviation)[0]

    def mean(self, module: Any, raw: torch.Tensor) -> torch.Tensor:
        """E[x|z], (..., D)."""
        return self._mean_variance(module, raw)[0]

    def _draw_noise(
        self, module: Any, shape: torch.Size, dtype: torch.dtype, generator: torch.Generator
    ) -> torch.Tensor:
        """Draw noise of mean 0 and variance 1."""
        raise NotImplementedError

    def sample(self, module: Any, raw: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw x, (..., D)."""
        mean, variance = self._mean_variance(module, raw)
        noise = self._draw_noise(module, mean.shape, mean.dtype, generator)
        return mean + variance.sqrt() * noise.to(mean.device)


def _floor_of_few(columns: Moments) -> Array:
    """Return the least noise variance of columns in which most rows have one value, (D,).

    In units of the column's variance it is (2 / (n + 1))**2, at most 1, if n rows have another
    value: only these carry information on the variance. It is 0 if they are half of the rows or
    more.
    """
    # Moments that a user made may lack both numbers.
    n, n_values = getattr(columns, "n_various", None), getattr(columns, "n_values", None)
    if n is None or n_values is None:
        return np.zeros(len(columns.std))
    return np.where(2 * n < n_values, np.minimum(1.0, (2 / (n + 1)) ** 2), 0.0)


@dataclass(frozen=True)
class Gaussian(_RealValues):
    """Real values with normal observation noise.

    Parameters
    ----------
    noise : {"per_sample", "per_feature", "shared"} or float, default="per_sample"
        Variance of the observation noise:

        - "per_sample": for each row and column its own, given by the decoder;
        - "per_feature": one learned variance for each column, as in factor analysis;
        - "shared": one learned variance for all columns, in squared units of X, as in
          probabilistic PCA;
        - a positive number: this variance for all columns, in squared units of X, not
          learned. With 0.5 the loss is the squared error plus the KL divergence, up to a
          constant: ``||x - x_hat||**2 + KL``.

        Learned noise has a floor. For "per_feature" and "per_sample" its standard deviation is at
        least 0.01 of the column's. If more than half of the training rows have one value in a
        column, its noise variance is at least (2 / (n + 1))**2 of the column's, with n the number
        of rows that have another value. For "shared" the standard deviation is at least 0.01 of
        the smallest column's, and at least 1e-4 of the root mean square of all columns'.

    Raises
    ------
    ValueError
        If `noise` is none of these.

    Notes
    -----
    Models with "per_feature" and "per_sample" noise don't depend on the scale of the columns.
    Models with "shared" or given noise do, as PCA does: use them for columns of one unit, or scale
    the columns first.

    Under "per_feature" and "per_sample" noise, as under FactorAnalysis, a row is unlikely if it
    differs in a column that hardly varies in `fit`. Drop such columns (VarianceThreshold), or use
    "shared".

    Examples
    --------
    >>> from skvae.likelihoods import Gaussian
    >>> Gaussian(noise=0.5)
    Gaussian(noise=0.5)
    """

    # A name for pickles and links that survives when files move.
    __module__ = "skvae.likelihoods"

    noise: Literal["per_sample", "per_feature", "shared"] | float = "per_sample"

    def log_prob(self, module: Any, raw: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """log p(x_d|z) per feature in nats, (..., D)."""
        mean, variance = self._mean_variance(module, raw)
        return -0.5 * ((x - mean).square() / variance + (variance.log() + LOG_2PI))

    def vjp(
        self, module: Any, raw: torch.Tensor, x: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, Pullback]:
        """Return `total` of M models, and its pullback.

        The value, without the pullback, may also have no leading M, and S draws: (S, n, D) and
        (1|n, D).
        """
        variance = self.variance(module)
        if variance is None:
            mean, deviation = raw.chunk(2, dim=-1)
            own, bend = self._own(module, deviation)
            variance = module.floor.unsqueeze(-2) + own
        else:
            mean, variance = raw, variance.unsqueeze(-2)
        residual = x - mean
        pulled = residual * (weight / variance)
        square = pulled * residual
        constant = LOG_2PI * weight.sum(-1)
        total = square.sum(-1) + (variance.log() * weight).sum(-1) + constant

        def pull(g: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
            g_mean = pulled * g.unsqueeze(-1)
            if self.noise == "per_sample":
                g_own = (square - weight) * own / variance * (0.5 * g.unsqueeze(-1))
                released = g_own * module.released.unsqueeze(-2)
                g_deviation = aten.tanh_backward.default(released, bend)
                return torch.cat([g_mean, g_deviation], dim=-1), [g_own.sum(-2)]
            if not isinstance(self.noise, str):
                return g_mean, []
            slope = 0.5 * module.raw_variance.exp()
            g = g.unsqueeze(-2)
            whole = g.sum(-1, keepdim=True) if weight.shape[-2] == 1 else g
            excess = torch.bmm(g, square) - torch.bmm(whole, weight)
            return g_mean, [((excess / variance).squeeze(-2) * slope).sum_to_size(slope.shape)]

        return -0.5 * total, pull

    def total(
        self, module: Any, raw: torch.Tensor, x: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """Sum `log_prob` (M, n, D) over features with a `weight` (M, 1|n, D); M may be absent."""
        return self.vjp(module, raw, x, weight)[0]

    def _draw_noise(
        self, module: Any, shape: torch.Size, dtype: torch.dtype, generator: torch.Generator
    ) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)


@dataclass(frozen=True)
class Laplace(_RealValues):
    """Real values with Laplace noise, for columns with outliers.

    It fits the median of a column instead of the mean.

    Parameters
    ----------
    noise : {"per_sample", "per_feature", "shared"} or float, default="per_sample"
        Variance of the observation noise, as in `Gaussian`.

    Raises
    ------
    ValueError
        If `noise` is none of these.

    Examples
    --------
    >>> from skvae.likelihoods import Laplace
    >>> Laplace()
    Laplace(noise='per_sample')
    """

    # A name for pickles and links that survives when files move.
    __module__ = "skvae.likelihoods"

    noise: Literal["per_sample", "per_feature", "shared"] | float = "per_sample"

    def log_prob(self, module: Any, raw: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """log p(x_d|z) per feature in nats, (..., D)."""
        mean, variance = self._mean_variance(module, raw)
        twice = 2 * variance
        return -2 * (x - mean).abs() * twice.rsqrt() - 0.5 * twice.log()

    def _draw_noise(
        self, module: Any, shape: torch.Size, dtype: torch.dtype, generator: torch.Generator
    ) -> torch.Tensor:
        size = -torch.log1p(-draw_uniform(shape, dtype, generator))
        sign = (draw_uniform(shape, dtype, generator) < 0.5).to(dtype)
        return size * (2 * sign - 1) * math.sqrt(0.5)


@dataclass(frozen=True)
class StudentT(_RealValues):
    """Real values with noise of Student's t distribution, which allows for outliers.

    Parameters
    ----------
    noise : {"per_sample", "per_feature", "shared"} or float, default="per_sample"
        Variance of the observation noise, as in `Gaussian`.
    df : float or None, default=None
        Degrees of freedom, above 2, so that the noise has a variance. With None they are learned
        for each column.

    Raises
    ------
    ValueError
        If `noise` or `df` is none of these.

    Examples
    --------
    >>> from skvae.likelihoods import StudentT
    >>> StudentT(df=4)
    StudentT(noise='per_sample', df=4)
    """

    # A name for pickles and links that survives when files move.
    __module__ = "skvae.likelihoods"

    noise: Literal["per_sample", "per_feature", "shared"] | float = "per_sample"
    df: float | None = None

    def __post_init__(self) -> None:
        """Raise an error if `noise` or `df` is not valid."""
        super().__post_init__()
        df = self.df
        if df is None:
            return
        if not isinstance(df, Real) or isinstance(df, bool) or not 2 < float(df) < math.inf:
            raise ValueError(
                f"The df of a StudentT must be a finite number above 2, or None. Got {df!r}."
            )

    def build(self, n_features: int) -> Any:
        """Make the module of the noise variance and, if they are learned, of degrees of freedom."""
        module = super().build(n_features)
        if self.df is None:
            module.raw_df = nn.Parameter(torch.empty(n_features))
        return module

    def initialise(self, module: Any, columns: Moments, scale: Array) -> None:
        """Start from INITIAL_VARIANCE and 10 degrees of freedom."""
        super().initialise(module, columns, scale)
        if self.df is None:
            nn.init.constant_(module.raw_df, math.log(10 - LEAST_DF))

    def _df(self, module: Any, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return df and df - 2; float32 would lose digits if the latter were computed from df."""
        if self.df is not None:
            return like.new_tensor(float(self.df)), like.new_tensor(float(self.df) - 2)
        # The bound is no loss: with more than a few hundred, the distribution is almost normal.
        raw = DF_BOUND * torch.tanh(module.raw_df / DF_BOUND)
        above_least = raw.exp().unsqueeze(-2)
        return LEAST_DF + above_least, (LEAST_DF - 2) + above_least

    def log_prob(self, module: Any, raw: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """log p(x_d|z) per feature in nats, (..., D)."""
        mean, variance = self._mean_variance(module, raw)
        df, above = self._df(module, mean)
        square = above * variance  # df times the squared scale
        constant = _log_gamma_step(df / 2) - 0.5 * math.log(math.pi)
        far = torch.log1p((x - mean).square() / square)
        return constant - 0.5 * square.log() - 0.5 * (df + 1) * far

    def _draw_noise(
        self, module: Any, shape: torch.Size, dtype: torch.dtype, generator: torch.Generator
    ) -> torch.Tensor:
        like = torch.empty((), dtype=dtype, device=generator.device)
        df, above = (number.to(generator.device) for number in self._df(module, like))
        # Bailey, Polar generation of random variates with the t-distribution (1994).
        first, second = draw_uniform(shape, dtype, generator), draw_uniform(shape, dtype, generator)
        first = (1 - first).double()
        radius = (df * torch.expm1(first.log() * (-2 / df.double()))).sqrt()
        t = radius * torch.cos(2 * math.pi * second)
        return (t * (above / df).sqrt()).to(dtype)


def _log_gamma_step(a: torch.Tensor) -> torch.Tensor:
    """log Gamma(a + 1/2) - log Gamma(a), (...).

    Each logarithm is about a log a, so for a large a their difference would lose all digits in
    float32. So it is computed by the series for a + 16, and by 16 steps Gamma(a + 1) = a Gamma(a)
    back to a.
    """
    steps = torch.arange(16, dtype=a.dtype, device=a.device)
    back = torch.log1p(0.5 / (a.unsqueeze(-1) + steps)).sum(-1)
    b = 1 / (a + 16)
    series = -b / 8 + b**3 / 192 - b**5 / 640 + 17 * b**7 / 14336
    return series - 0.5 * b.log() - back
