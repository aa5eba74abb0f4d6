"""Likelihoods of levels of grey.

    DiscretizedLogistic:   p(x_d = k|z) = s((k + 1/2 - m_d) / c_d) - s((k - 1/2 - m_d) / c_d),

with s the logistic function, m the mean and c the scale. The lowest and the highest level also get
the probability of all values beyond them (Salimans et al., PixelCNN++, 2017, arXiv:1701.05517,
section 2.1).
"""

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from skvae._backend.tensors import Array, to_tensor
from skvae._data.statistics import Moments
from skvae._data.words import UNNAMED, Labels, cell
from skvae.likelihoods._base import TOLERANCE, Likelihood, draw_uniform

LOG_SCALE_BOUND = 10.0  # bound on the logarithm of the scale


@dataclass(frozen=True)
class DiscretizedLogistic(Likelihood):
    """Levels of grey: whole numbers from 0 to ``levels - 1``, with a probability each.

    Parameters
    ----------
    levels : int, default=256
        Number of levels, at least 2.

    Raises
    ------
    ValueError
        If `levels` is no integer of at least 2.

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

    # A name for pickles and links that survives when files move.
    __module__ = "skvae.likelihoods"

    levels: int = 256

    is_mass: ClassVar[bool] = True
    initialises_all: ClassVar[bool] = True
    is_foreign: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise an error if `levels` is not valid."""
        levels = self.levels
        if not isinstance(levels, Integral) or isinstance(levels, bool) or levels < 2:
            raise ValueError(
                "The levels of a DiscretizedLogistic must be an integer of at least 2. Got "
                f"{levels!r}."
            )

    def check_support(self, X: Array, labels: Labels = UNNAMED) -> Array:
        """Return X, rounded to levels; a ValueError names a value that is no level.

        X is returned itself if all of its values are levels.
        """
        whole = np.round(X)
        if X.min() >= 0 and X.max() <= self.levels - 1 and (whole == X).all():
            return X
        tolerance = TOLERANCE * self.levels
        outside = (whole < 0) | (self.levels - 1 < whole) | (np.abs(X - whole) > tolerance)
        if outside.any():
            raise ValueError(
                f"{self!r} expects whole numbers from 0 to {self.levels - 1}. Got "
                f"{cell(X, outside, labels)[0]}. Multiply and round X, give other levels, or use "
                "likelihood='gaussian' for real values."
            )
        return whole + 0.0  # no minus zero

    def units(self, columns: Moments) -> tuple[Array, Array]:
        """Return location and scale of the model's units, each (D,): levels are in [-1, 1]."""
        half, varies = (self.levels - 1) / 2, columns.std > 0
        return np.where(varies, half, columns.mean), np.where(varies, half, 0.0)

    def n_outputs(self, n_features: int) -> int:
        """Number of raw decoder outputs: means and logarithms of scales."""
        return 2 * n_features

    def build(self, n_features: int) -> Any:
        """Make the module of the first means and scales, which are kept besides the decoder."""
        module: Any = nn.Module()
        module.register_buffer("mean", torch.empty(n_features))
        module.register_buffer("log_scale", torch.empty(n_features))
        return module

    def initialise(self, module: Any, columns: Moments, scale: Array) -> None:
        """Start from the mean and the standard deviation of each column."""
        half = (self.levels - 1) / 2
        module.mean.copy_(to_tensor(columns.mean / half - 1, "cpu"))
        # The std of a logistic distribution is pi / sqrt(3) times its scale.
        std = np.maximum(columns.std / half, 2 / half)
        module.log_scale.copy_(to_tensor(np.log(std * math.sqrt(3) / math.pi), "cpu"))

    def _mean_scale(self, module: Any, raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, log_scale = raw.chunk(2, dim=-1)
        log_scale = module.log_scale.unsqueeze(-2) + log_scale
        # The least scale is a tenth of a level: smaller scales would make no difference.
        least = math.log(0.2 / (self.levels - 1))
        bend = torch.tanh(log_scale / LOG_SCALE_BOUND) * LOG_SCALE_BOUND
        return module.mean.unsqueeze(-2) + mean, torch.clamp(bend, min=least).exp()

    def log_prob(self, module: Any, raw: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """log p(x_d|z) per feature in nats, (..., D)."""
        mean, scale = self._mean_scale(module, raw)
        half = 1 / (self.levels - 1)  # half a level
        high, low = (x + half - mean) / scale, (x - half - mean) / scale
        # s(a) - s(b) = s(a) s(-b) (1 - exp(b - a))
        below = torch.where(x > 1 - half, 0.0, F.logsigmoid(high))
        above = torch.where(x < half - 1, 0.0, F.logsigmoid(-low))
        between = torch.log(-torch.expm1(-2 * half / scale))
        edge = (x > 1 - half) | (x < half - 1)
        return below + above + torch.where(edge, 0.0, between)

    def mean(self, module: Any, raw: torch.Tensor) -> torch.Tensor:
        """E[x|z], (..., D): a sum over levels of the probability to reach each level."""
        mean, scale = self._mean_scale(module, raw)
        width = 2 / (self.levels - 1)
        total = torch.full_like(mean, -1.0)
        for level in range(1, self.levels):
            edge = -1 + (level - 0.5) * width
            total += width * torch.sigmoid((mean - edge) / scale)
        return total

    def sample(self, module: Any, raw: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw x, (..., D), levels."""
        mean, scale = self._mean_scale(module, raw)
        uniform = draw_uniform(mean.shape, mean.dtype, generator).to(mean.device)
        drawn = mean + scale * torch.logit(uniform, eps=1e-7)
        width = 2 / (self.levels - 1)
        return (((drawn + 1) / width).round() * width - 1).clamp(-1, 1)
