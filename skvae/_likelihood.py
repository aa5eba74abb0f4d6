"""What likelihoods have in common."""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch

from skvae import _vjp
from skvae._arrays import Array, Columns

TOLERANCE = 1e-6  # of values at the edge of what is possible

# Gradient of log p(x|z) of each row (M, n) -> of the decoder's outputs (M, n, P), and of what
# is learned besides them.
Pullback = Callable[[torch.Tensor], tuple[torch.Tensor, list[torch.Tensor]]]


class Likelihood:
    """What likelihoods have in common."""

    # Whether the numbers are probabilities and no densities: these have no units.
    is_mass: ClassVar[bool] = False
    # Standard normals that a row takes to be drawn anew in each epoch, for each feature.
    n_noise: ClassVar[int] = 0
    # Share of the epochs before all that is to be learned is being learned.
    share_held_back: float = 0.0

    def units(self, columns: Columns) -> tuple[Array, Array]:
        """Location and scale of the model's units, each (D,): the data's own."""
        varies = columns.std > 0
        return np.where(varies, 0.0, columns.mean), varies.astype(np.float64)

    def n_outputs(self, n_features: int) -> int:
        """Number of raw decoder outputs."""
        return n_features

    def variance(self, module: Any) -> torch.Tensor | None:
        """Noise variance in the model's units, (1,) or (D,); None where it is not one number."""
        return None

    def at(self, module: Any, shares: torch.Tensor) -> None:
        """Be told, before an epoch, of the share (M,) of all epochs that is behind each model."""

    def seen(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        """What the encoder sees of rows x."""
        return x

    def log_prob(self, module: Any, raw: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """log p(x_d|z) per feature in nats, (..., D)."""
        raise NotImplementedError

    def total(
        self, module: Any, raw: torch.Tensor, x: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """`log_prob` (M, n, D) summed with a `weight` (M, 1|n, D); also without M."""
        return (self.log_prob(module, raw, x) * weight).sum(-1)

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


def draw_uniform(shape: torch.Size, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Uniform numbers in [0, 1)."""
    return torch.rand(shape, generator=generator, dtype=dtype, device=generator.device)
