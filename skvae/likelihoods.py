r"""Likelihoods p(x|z): what the decoder's outputs say of a row.

A likelihood is a value with pure functions of tensors. x is in the model's own units
(``skvae._arrays``), `raw` are the decoder's outputs, and `log_prob` gives log-densities per
feature in nats with every constant kept; the model sums them over the features and adds the
log-Jacobian of its units.

Real values have a mean m, given by the decoder, and a variance v of the observation noise. With
the noise e = (x_d - m_d) / sqrt(v_d),

    Gaussian:   log p(x_d|z) = -1/2 (e**2 + log v_d + log(2 pi)),
    Laplace:    log p(x_d|z) = -sqrt(2) |e| - 1/2 log(2 v_d),
    StudentT:   log p(x_d|z) = log G((n+1)/2) - log G(n/2) - 1/2 log(pi (n-2) v_d)
                               - (n+1)/2 log(1 + e**2 / (n-2)),     n degrees of freedom.

The variance is learned (Rybkin, Daniilidis & Levine, Simple and effective VAE training with
calibrated decoders, 2021, arXiv:2006.13202) unless it is given. It never falls below
(0.01)**2 of the column's own variance, v = floor + exp(raw): a density has no upper bound,
and without the floor one nearly constant column decides the score of the whole table.

Numbers between 0 and 1, with l the decoder's log-odds:

    Bernoulli:             log p(x|z) = sum_d (x_d l_d - log(1 + exp l_d)),
    ContinuousBernoulli:   log p(x|z) = sum_d (x_d l_d - log((exp l_d - 1) / l_d))

(Loaiza-Ganem & Cunningham, The continuous Bernoulli, 2019, arXiv:1907.06845). Levels of grey
have probabilities, with s the logistic function:

    DiscretizedLogistic:   p(x_d = k|z) = s((k + 1/2 - m_d) / c_d) - s((k - 1/2 - m_d) / c_d),

where the lowest and highest level have all that is beyond them (Salimans et al., PixelCNN++,
2017, arXiv:1701.05517, section 2.1).

`vjp` is the derivative of the log-density written out, for M models at once as in
`skvae.networks`; likelihoods without one have it by autograd.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from skvae import _vjp
from skvae._arrays import Array, Columns, cell, to_tensor
from skvae._normal import LOG_2PI

aten = torch.ops.aten

NOISE_FLOOR = 0.01  # of a column's standard deviation
RESOLUTION = 1e-4  # of the root mean square scale: the least shared noise float32 resolves
# Learned noise starts at this share of the variance. From 1, two moons and the Swiss roll
# stayed collapsed, as the latent variables explain nothing at first; from 0.03, small tables
# overfitted.
INITIAL_VARIANCE = 0.3
# The logarithm of a row's own variance stays within this distance of its column's.
DEVIATION_BOUND = 5.0
# Share of the epochs in which "per_sample" noise is still that of the columns. A variance of a
# row's own excuses what the mean has not learned yet, which then stays unlearned: a ring and
# the S curve collapsed.
MEAN_FIRST = 0.3
UNIT_TOLERANCE = 1e-6
# Of learned degrees of freedom; the logarithm of what is above the least is at most the bound.
LEAST_DF, DF_BOUND = 2.1, 8.0
LOG_ODDS_BOUND = 1000.0  # of a continuous Bernoulli: a density of at most 1000
LOG_SCALE_BOUND = 10.0  # of a discretized logistic

# Gradient of log p(x|z) of each row (M, n) -> of the decoder's outputs (M, n, P), and of what
# is learned besides them.
Pullback = Callable[[torch.Tensor], tuple[torch.Tensor, list[torch.Tensor]]]


class _Likelihood:
    """What likelihoods have in common."""

    # Whether the numbers are probabilities and no densities: these have no units.
    is_mass: ClassVar[bool] = False
    # Standard normals that a row takes to be drawn anew in each epoch, for each feature.
    n_noise: ClassVar[int] = 0
    # Share of the epochs before all that is to be learned is being learned.
    share_held_back: float = 0.0

    def at(self, module: Any, shares: torch.Tensor) -> None:
        """Be told, before an epoch, of the share (M,) of all epochs that is behind each model."""

    def log_prob(self, module: Any, raw: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """log p(x_d|z) per feature in nats, (..., D)."""
        raise NotImplementedError

    def total(
        self, module: Any, raw: torch.Tensor, x: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """`log_prob` (M, n, D) summed with the features' `weight` (M, D); also without M."""
        log_prob = self.log_prob(module, raw, x)
        return (log_prob * weight.unsqueeze(-2)).sum(-1)

    def vjp(
        self, module: Any, raw: torch.Tensor, x: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, Pullback]:
        """`total` and its pullback, of M models."""
        parameters, buffers = _vjp.values(module)

        def total(inputs: Any, constants: Any) -> list[torch.Tensor]:
            *learned, raw = inputs
            *kept, x, weight = constants
            return [self.total(_vjp.holder(module, learned, kept), raw, x, weight)]

        (result,), backward = _vjp.vjp(total, [*parameters, raw], [*buffers, x, weight])

        def pull(g: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
            *gradients, g_raw = backward([g])
            return g_raw, gradients

        return result, pull


class _RealValues(_Likelihood):
    """Real values with a mean, and a variance of the observation noise."""

    noise: Literal["per_sample", "per_feature", "shared"] | float

    @property
    def share_held_back(self) -> float:  # type: ignore[override]
        """Share of the epochs before rows have variances of their own."""
        return MEAN_FIRST if self.noise == "per_sample" else 0.0

    def __post_init__(self) -> None:
        """Refuse what is no noise."""
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
        if isinstance(self.noise, str):
            n_learned = 1 if self.noise == "shared" else n_features
            module.raw_variance = nn.Parameter(torch.empty(n_learned))
        if self.noise == "per_sample":
            # 1 where the deviations of rows are learned, 0 where they are not yet.
            module.register_buffer("released", torch.ones(1))
        return module

    def at(self, module: Any, shares: torch.Tensor) -> None:
        """Hold back the rows' own variances in the first epochs."""
        if self.noise == "per_sample":
            module.released.copy_((shares >= MEAN_FIRST).unsqueeze(-1))

    def begin(self, module: Any, variance: torch.Tensor) -> None:
        """Give each column a noise variance (M, D), on the CPU, as far as it is learned."""
        if isinstance(self.noise, str):
            learned = (variance - module.floor.cpu()).log()  # not every device has float64
            module.raw_variance.copy_(learned[..., : module.raw_variance.shape[-1]])

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
        if isinstance(self.noise, str):
            nn.init.constant_(module.raw_variance, math.log(INITIAL_VARIANCE))
        if self.noise == "per_sample":
            nn.init.ones_(module.released)

    def variance(self, module: Any) -> torch.Tensor | None:
        """Noise variance in the model's units, (1,) or (D,); None where it is per sample."""
        if self.noise == "per_sample":
            return None
        if isinstance(self.noise, str):
            return module.floor + module.raw_variance.exp()
        return module.floor

    def _own(self, module: Any, deviation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What of the variance is learned, where rows have their own, and tanh of the deviation."""
        bend = torch.tanh(deviation / DEVIATION_BOUND)
        log_own = torch.add(module.raw_variance.unsqueeze(-2), bend, alpha=DEVIATION_BOUND)
        return log_own.exp(), bend

    def _mean_variance(self, module: Any, raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        variance = self.variance(module)
        if variance is not None:
            return raw, variance.unsqueeze(-2)  # from rows to (..., rows, D)
        mean, deviation = raw.chunk(2, dim=-1)
        # The same value, and a gradient where it is released.
        deviation = deviation.detach().lerp(deviation, module.released.unsqueeze(-2))
        return mean, module.floor.unsqueeze(-2) + self._own(module, deviation)[0]

    def mean(self, module: Any, raw: torch.Tensor) -> torch.Tensor:
        """E[x|z], (..., D)."""
        return self._mean_variance(module, raw)[0]

    def _draw_noise(
        self, module: Any, shape: torch.Size, dtype: torch.dtype, generator: torch.Generator
    ) -> torch.Tensor:
        """Noise of mean 0 and variance 1."""
        raise NotImplementedError

    def sample(self, module: Any, raw: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draws of x, (..., D)."""
        mean, variance = self._mean_variance(module, raw)
        noise = self._draw_noise(module, mean.shape, mean.dtype, generator)
        return mean + variance.sqrt() * noise.to(mean.device)


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

    noise: Literal["per_sample", "per_feature", "shared"] | float = "per_sample"

    def log_prob(self, module: Any, raw: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """log p(x_d|z) per feature in nats, (..., D)."""
        mean, variance = self._mean_variance(module, raw)
        return -0.5 * ((x - mean).square() / variance + (variance.log() + LOG_2PI))

    def vjp(
        self, module: Any, raw: torch.Tensor, x: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, Pullback]:
        """`total` and its pullback, of M models.

        The value alone also without a leading M, and for S draws: (S, n, D) and (D,).
        """
        variance = self.variance(module)
        if variance is None:
            mean, deviation = raw.chunk(2, dim=-1)
            own, bend = self._own(module, deviation)
            variance = module.floor.unsqueeze(-2) + own
        else:
            mean, variance = raw, variance.unsqueeze(-2)
        weight = weight.unsqueeze(-2)
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
            excess = torch.bmm(g, square) - g.sum(-1, keepdim=True) * weight
            return g_mean, [((excess / variance).squeeze(-2) * slope).sum_to_size(slope.shape)]

        return -0.5 * total, pull

    def total(
        self, module: Any, raw: torch.Tensor, x: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """`log_prob` (M, n, D) summed with the features' `weight` (M, D); also without M."""
        return self.vjp(module, raw, x, weight)[0]

    def _draw_noise(
        self, module: Any, shape: torch.Size, dtype: torch.dtype, generator: torch.Generator
    ) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)


@dataclass(frozen=True)
class Laplace(_RealValues):
    """Real values with Laplace noise: the median of a column counts, not its outliers.

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

    noise: Literal["per_sample", "per_feature", "shared"] | float = "per_sample"

    def log_prob(self, module: Any, raw: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """log p(x_d|z) per feature in nats, (..., D)."""
        mean, variance = self._mean_variance(module, raw)
        twice = 2 * variance
        return -2 * (x - mean).abs() * twice.rsqrt() - 0.5 * twice.log()

    def _draw_noise(
        self, module: Any, shape: torch.Size, dtype: torch.dtype, generator: torch.Generator
    ) -> torch.Tensor:
        size = -torch.log1p(-_uniform(shape, dtype, generator))
        sign = (_uniform(shape, dtype, generator) < 0.5).to(dtype)
        return size * (2 * sign - 1) * math.sqrt(0.5)


@dataclass(frozen=True)
class StudentT(_RealValues):
    """Real values with noise of Student's t distribution: rows far from all others are expected.

    Parameters
    ----------
    noise : {"per_sample", "per_feature", "shared"} or float, default="per_sample"
        Variance of the observation noise, as in `Gaussian`.
    df : float or None, default=None
        Degrees of freedom, above 2, so that the noise has a variance. None: learned for each
        column.

    Raises
    ------
    ValueError
        If a parameter is none of these.

    Examples
    --------
    >>> from skvae.likelihoods import StudentT
    >>> StudentT(df=4)
    StudentT(noise='per_sample', df=4)
    """

    noise: Literal["per_sample", "per_feature", "shared"] | float = "per_sample"
    df: float | None = None

    def __post_init__(self) -> None:
        """Refuse what is no noise and no degrees of freedom."""
        super().__post_init__()
        df = self.df
        if df is None:
            return
        if not isinstance(df, Real) or isinstance(df, bool) or not 2 < float(df) < math.inf:
            raise ValueError(
                f"The df of a StudentT must be a finite number above 2, or None. Got {df!r}."
            )

    def build(self, n_features: int) -> Any:
        """Make the module of what is learned besides the decoder."""
        module = super().build(n_features)
        if self.df is None:
            module.raw_df = nn.Parameter(torch.empty(n_features))
        return module

    def initialise(self, module: Any, columns: Columns, scale: Array) -> None:
        """Start from a good part of the data's variance and 10 degrees of freedom."""
        super().initialise(module, columns, scale)
        if self.df is None:
            nn.init.constant_(module.raw_df, math.log(10 - LEAST_DF))

    def _df(self, module: Any, like: torch.Tensor) -> torch.Tensor:
        if self.df is not None:
            return like.new_tensor(float(self.df))
        # Beyond a few hundred it is a normal distribution.
        raw = DF_BOUND * torch.tanh(module.raw_df / DF_BOUND)
        return (LEAST_DF + raw.exp()).unsqueeze(-2)

    def log_prob(self, module: Any, raw: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """log p(x_d|z) per feature in nats, (..., D)."""
        mean, variance = self._mean_variance(module, raw)
        df = self._df(module, mean)
        square = (df - 2) * variance  # df times that of the scale
        constant = _log_gamma_step(df / 2) - 0.5 * math.log(math.pi)
        far = torch.log1p((x - mean).square() / square)
        return constant - 0.5 * square.log() - 0.5 * (df + 1) * far

    def _draw_noise(
        self, module: Any, shape: torch.Size, dtype: torch.dtype, generator: torch.Generator
    ) -> torch.Tensor:
        like = torch.empty((), dtype=dtype, device=generator.device)
        df = self._df(module, like).to(generator.device)
        # Bailey, Polar generation of random variates with the t-distribution (1994).
        first, second = _uniform(shape, dtype, generator), _uniform(shape, dtype, generator)
        first = (1 - first).double()
        radius = (df * torch.expm1(first.log() * (-2 / df.double()))).sqrt()
        t = radius * torch.cos(2 * math.pi * second)
        return (t * ((df - 2) / df).sqrt()).to(dtype)


def _log_gamma_step(a: torch.Tensor) -> torch.Tensor:
    """log Gamma(a + 1/2) - log Gamma(a), (...).

    Of two logarithms, each about a log a, float32 would lose all digits for a large a. So by
    the series for 16 + a, and 16 factors Gamma(a + 1) = a Gamma(a) back from there.
    """
    steps = torch.arange(16, dtype=a.dtype, device=a.device)
    back = torch.log1p(0.5 / (a.unsqueeze(-1) + steps)).sum(-1)
    b = 1 / (a + 16)
    series = -b / 8 + b**3 / 192 - b**5 / 640 + 17 * b**7 / 14336
    return series - 0.5 * b.log() - back


def _uniform(shape: torch.Size, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(shape, generator=generator, dtype=dtype, device=generator.device)


class _UnitInterval(_Likelihood):
    """Numbers in [0, 1], whose log-odds the decoder gives besides those of each column."""

    def check_support(self, X: Array, names: Array | None = None) -> Array:
        """X clipped to [0, 1], or a ValueError naming the value that is outside.

        X itself where nothing is outside.
        """
        if X.min() >= 0 and X.max() <= 1:
            return X
        outside = (X < -UNIT_TOLERANCE) | (X > 1 + UNIT_TOLERANCE)
        if outside.any():
            raise ValueError(
                f"The {type(self).__name__} likelihood expects values in [0, 1]. Got "
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
        """Start from the log-odds of the mean of each column."""
        mean = to_tensor(columns.mean, "cpu").clamp(0.001, 0.999)
        module.log_odds.copy_(torch.logit(mean))

    def variance(self, module: Any) -> None:
        """None: the mean decides the variance."""

    def _log_odds(self, module: Any, raw: torch.Tensor) -> torch.Tensor:
        return module.log_odds.unsqueeze(-2) + raw


@dataclass(frozen=True)
class Bernoulli(_UnitInterval):
    """Yes/no values: numbers in [0, 1], summed binary cross-entropy.

    A value that is outside [0, 1] by at most 1e-6 is taken as 0 or 1; further outside, a
    ValueError names it. For zeros and ones the score is a log-probability. On grey values
    between them the same formula is a cross-entropy and no density: it doesn't integrate to
    1, and its scores compare only with those of other models under the same formula.

    Parameters
    ----------
    resample : bool, default=False
        Whether grey values are probabilities, from which zeros and ones are drawn afresh for
        each epoch of training, as for the usual binarised MNIST. Held-out rows are drawn once.
        The score takes the rows that it is given as they are.

    Examples
    --------
    >>> from skvae.likelihoods import Bernoulli
    >>> Bernoulli(resample=True)
    Bernoulli(resample=True)
    """

    resample: bool = False

    is_mass: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse what is no truth value."""
        if not isinstance(self.resample, bool | np.bool_):
            raise ValueError(
                f"The resample of a Bernoulli must be True or False. Got {self.resample!r}."
            )

    @property
    def n_noise(self) -> int:  # type: ignore[override]
        """Standard normals that a feature takes to be drawn anew."""
        return int(self.resample)

    def redraw(self, x: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """Zeros and ones with probabilities x, (..., D), by standard normal noise."""
        drawn = torch.special.ndtr(eps) < x
        return (drawn | (x == 1)).to(x.dtype)  # ndtr of the farthest noise rounds to 1

    def log_prob(self, module: Any, raw: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """log p(x_d|z) per feature in nats, (..., D)."""
        log_odds = self._log_odds(module, raw)
        return x * log_odds - F.softplus(log_odds)

    def total(
        self, module: Any, raw: torch.Tensor, x: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """`log_prob` (M, n, D) summed with the features' `weight` (M, D); also without M."""
        return (self.log_prob(module, raw, x) @ weight.unsqueeze(-1)).squeeze(-1)

    def vjp(
        self, module: Any, raw: torch.Tensor, x: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, Pullback]:
        """`total` and its pullback, of M models."""

        def pull(g: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
            g_raw = x - self.mean(module, raw)
            return g_raw * weight.unsqueeze(-2) * g.unsqueeze(-1), []

        return self.total(module, raw, x, weight), pull

    def mean(self, module: Any, raw: torch.Tensor) -> torch.Tensor:
        """E[x|z], (..., D)."""
        return torch.sigmoid(self._log_odds(module, raw))

    def sample(self, module: Any, raw: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draws of x, (..., D), zeros and ones."""
        mean = self.mean(module, raw)
        uniform = _uniform(mean.shape, mean.dtype, generator)
        return (uniform.to(mean.device) < mean).to(mean.dtype)


def _mean_between(log_odds: torch.Tensor) -> torch.Tensor:
    """Mean of a continuous Bernoulli: 1 / (1 - exp(-l)) - 1 / l, by its series near 0."""
    near = log_odds.abs() < 0.1
    far = torch.where(near, 1.0, log_odds)
    series = 0.5 + log_odds / 12 - log_odds**3 / 720
    return torch.where(near, series, -1 / torch.expm1(-far) - 1 / far)


@dataclass(frozen=True)
class ContinuousBernoulli(_UnitInterval):
    """Numbers in [0, 1] with a density: what grey values need instead of `Bernoulli`.

    A value that is outside [0, 1] by at most 1e-6 is taken as 0 or 1; further outside, a
    ValueError names it.

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

    def initialise(self, module: Any, columns: Columns, scale: Array) -> None:
        """Start from the mean of each column."""
        mean = to_tensor(columns.mean, "cpu").clamp(0.002, 0.998)
        low, high = torch.full_like(mean, -LOG_ODDS_BOUND), torch.full_like(mean, LOG_ODDS_BOUND)
        for _ in range(60):  # the mean rises with the log-odds: bisection
            middle = (low + high) / 2
            above = _mean_between(middle) > mean
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        module.log_odds.copy_(low)

    def _log_odds(self, module: Any, raw: torch.Tensor) -> torch.Tensor:
        # A density has no upper bound: a column of zeros would drive this one's to infinity.
        return LOG_ODDS_BOUND * torch.tanh(super()._log_odds(module, raw) / LOG_ODDS_BOUND)

    def log_prob(self, module: Any, raw: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """log p(x_d|z) per feature in nats, (..., D)."""
        log_odds = self._log_odds(module, raw)
        half = 0.5 * log_odds.abs()
        near = half < 0.1
        far = torch.where(near, 1.0, half)
        # log(sinh(u) / u), by its series near 0.
        exact = far + torch.log(-torch.expm1(-2 * far) / (2 * far))
        series = half.square() / 6 - half.square().square() / 180
        return (x - 0.5) * log_odds - torch.where(near, series, exact)

    def mean(self, module: Any, raw: torch.Tensor) -> torch.Tensor:
        """E[x|z], (..., D)."""
        return _mean_between(self._log_odds(module, raw))

    def sample(self, module: Any, raw: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draws of x, (..., D)."""
        log_odds = self._log_odds(module, raw)
        uniform = _uniform(log_odds.shape, log_odds.dtype, generator).to(log_odds.device)
        near = log_odds.abs() < 1e-4
        size = torch.where(near, 1.0, log_odds.abs())
        # The inverse of the distribution function, that of -|l| turned around where l > 0.
        low = -torch.log1p(uniform * torch.expm1(-size)) / size
        drawn = torch.where(log_odds > 0, 1 - low, low)
        return torch.where(near, uniform, drawn).clamp(0, 1)


@dataclass(frozen=True)
class DiscretizedLogistic(_Likelihood):
    """Levels of grey: whole numbers from 0 to ``levels - 1``, with a probability each.

    Parameters
    ----------
    levels : int, default=256
        Number of levels, at least 2.

    Raises
    ------
    ValueError
        If `levels` is no such number.

    References
    ----------
    PixelCNN++ (T. Salimans, A. Karpathy, X. Chen & D. P. Kingma, 2017),
    https://arxiv.org/abs/1701.05517, section 2.1.

    Examples
    --------
    >>> from skvae.likelihoods import DiscretizedLogistic
    >>> DiscretizedLogistic(levels=17)  # such as the pixels of scikit-learn's digits
    DiscretizedLogistic(levels=17)
    """

    levels: int = 256

    is_mass: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse what is no number of levels."""
        levels = self.levels
        if not isinstance(levels, Integral) or isinstance(levels, bool) or levels < 2:
            raise ValueError(
                "The levels of a DiscretizedLogistic must be an integer of at least 2. Got "
                f"{levels!r}."
            )

    def check_support(self, X: Array, names: Array | None = None) -> Array:
        """X with what rounding moved put back, or a ValueError naming the value that is no level.

        X itself where nothing moved.
        """
        whole = np.round(X)
        if X.min() >= 0 and X.max() <= self.levels - 1 and (whole == X).all():
            return X
        tolerance = UNIT_TOLERANCE * self.levels
        outside = (whole < 0) | (self.levels - 1 < whole) | (np.abs(X - whole) > tolerance)
        if outside.any():
            raise ValueError(
                f"{self!r} expects whole numbers from 0 to {self.levels - 1}. Got "
                f"{cell(X, outside, names)[0]}. Multiply and round X, give other levels, or use "
                "likelihood='gaussian' for real values."
            )
        return whole + 0.0  # no minus zero

    def units(self, columns: Columns) -> tuple[Array, Array]:
        """Location and scale of the model's units, each (D,): levels are in [-1, 1]."""
        half, varies = (self.levels - 1) / 2, columns.std > 0
        return np.where(varies, half, columns.mean), np.where(varies, half, 0.0)

    def n_outputs(self, n_features: int) -> int:
        """Number of raw decoder outputs: means and logarithms of scales."""
        return 2 * n_features

    def build(self, n_features: int) -> Any:
        """Make the module of what is kept besides the decoder: where to start from."""
        module: Any = nn.Module()
        module.register_buffer("mean", torch.empty(n_features))
        module.register_buffer("log_scale", torch.empty(n_features))
        return module

    def initialise(self, module: Any, columns: Columns, scale: Array) -> None:
        """Start from the mean and the standard deviation of each column."""
        half = (self.levels - 1) / 2
        module.mean.copy_(to_tensor(columns.mean / half - 1, "cpu"))
        # That of a logistic distribution is pi / sqrt(3) times its scale.
        std = np.maximum(columns.std / half, 2 / half)
        module.log_scale.copy_(to_tensor(np.log(std * math.sqrt(3) / math.pi), "cpu"))

    def variance(self, module: Any) -> None:
        """None: the decoder gives it."""

    def _mean_scale(self, module: Any, raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, log_scale = raw.chunk(2, dim=-1)
        log_scale = module.log_scale.unsqueeze(-2) + log_scale
        # The least scale is a tenth of a level: a step to the next would not be seen.
        least = math.log(0.2 / (self.levels - 1))
        bend = torch.tanh(log_scale / LOG_SCALE_BOUND) * LOG_SCALE_BOUND
        return module.mean.unsqueeze(-2) + mean, torch.clamp(bend, min=least).exp()

    def log_prob(self, module: Any, raw: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """log p(x_d|z) per feature in nats, (..., D)."""
        mean, scale = self._mean_scale(module, raw)
        half = 1 / (self.levels - 1)  # of a level
        high, low = (x + half - mean) / scale, (x - half - mean) / scale
        # s(a) - s(b) = s(a) s(-b) (1 - exp(b - a))
        below = torch.where(x > 1 - half, 0.0, F.logsigmoid(high))
        above = torch.where(x < half - 1, 0.0, F.logsigmoid(-low))
        between = torch.log(-torch.expm1(-2 * half / scale))
        edge = (x > 1 - half) | (x < half - 1)
        return below + above + torch.where(edge, 0.0, between)

    def mean(self, module: Any, raw: torch.Tensor) -> torch.Tensor:
        """E[x|z], (..., D): the sum over levels of the probability to reach them."""
        mean, scale = self._mean_scale(module, raw)
        width = 2 / (self.levels - 1)
        total = torch.full_like(mean, -1.0)
        for level in range(1, self.levels):
            edge = -1 + (level - 0.5) * width
            total += width * torch.sigmoid((mean - edge) / scale)
        return total

    def sample(self, module: Any, raw: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draws of x, (..., D), levels."""
        mean, scale = self._mean_scale(module, raw)
        uniform = _uniform(mean.shape, mean.dtype, generator).to(mean.device)
        drawn = mean + scale * torch.logit(uniform, eps=1e-7)
        width = 2 / (self.levels - 1)
        return (((drawn + 1) / width).round() * width - 1).clamp(-1, 1)


Likelihood = Gaussian | Laplace | StudentT | Bernoulli | ContinuousBernoulli | DiscretizedLogistic

LIKELIHOODS: dict[str, Likelihood] = {
    "gaussian": Gaussian(),
    "laplace": Laplace(),
    "student_t": StudentT(),
    "bernoulli": Bernoulli(),
    "continuous_bernoulli": ContinuousBernoulli(),
}
