"""What likelihoods have in common, and what a new one has to say.

A likelihood turns the columns of X, which are numbers, into the features of the model: one for
each column, or more, as for categories. All but `check_support`, `give_back` and what speaks of
columns knows features only.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from skvae._backend import autograd
from skvae._backend.tensors import Array
from skvae._data.statistics import Moments
from skvae._data.words import UNNAMED, Labels

TOLERANCE = 1e-6  # of values at the edge of what is possible

# Gradient of log p(x|z) of each row (M, n) -> of the decoder's outputs (M, n, P), and of what
# is learned besides them.
Pullback = Callable[[torch.Tensor], tuple[torch.Tensor, list[torch.Tensor]]]


class Likelihood(ABC):
    """What a likelihood of your own inherits from: p(x|z) of a row, by the decoder's outputs.

    A likelihood is a value, such as a frozen dataclass, with pure functions of tensors. It has to
    say `log_prob`, `mean` and `sample`; the rest has defaults. What is learned besides the decoder,
    such as a noise variance, or kept of the data, is in the module that `build` makes and
    `initialise` fills. Derivatives come by autograd, of several models at once, so functions work
    elementwise, or over the last dimension.

    Attributes
    ----------
    is_mass : bool
        Of the class: whether the numbers are probabilities and no densities. These have no units.

    Examples
    --------
    Waiting times, exponential with a mean in units of that of their column. The decoder may give
    any number, so its logarithm is bounded:

    >>> from dataclasses import dataclass
    >>> import numpy as np
    >>> import torch
    >>> from skvae import VAETransformer
    >>> from skvae.likelihoods import Likelihood
    >>> @dataclass(frozen=True)
    ... class Exponential(Likelihood):
    ...     def units(self, columns):
    ...         varies = columns.std > 0
    ...         return np.where(varies, 0.0, columns.mean), np.where(varies, columns.mean, 0.0)
    ...
    ...     def mean(self, module, raw):
    ...         return torch.exp(20 * torch.tanh(raw / 20))
    ...
    ...     def log_prob(self, module, raw, x):
    ...         mean = self.mean(module, raw)
    ...         return -torch.log(mean) - x / mean
    ...
    ...     def sample(self, module, raw, generator):
    ...         noise = torch.empty(raw.shape, dtype=raw.dtype, device=generator.device)
    ...         noise.exponential_(generator=generator)
    ...         return self.mean(module, raw) * noise.to(raw.device)
    >>> X = np.random.default_rng(0).exponential(3.0, (200, 2))
    >>> vae = VAETransformer(1, likelihood=Exponential(), max_iter=5, random_state=0).fit(X)
    >>> bool((vae.sample(100, random_state=0) > 0).all())
    True
    """

    # A name for links that survives when files move.
    __module__ = "skvae.likelihoods"

    # Whether the numbers are probabilities and no densities: these have no units.
    is_mass: ClassVar[bool] = False
    # Standard normals that a row takes to be drawn anew in each epoch, for each feature.
    n_noise: ClassVar[int] = 0
    # Whether `initialise` sets every value of the module, which may then be made without values.
    initialises_all: ClassVar[bool] = False
    # Whether the noise can begin at given variances, by `begin`, as that of factor analysis.
    can_begin: ClassVar[bool] = False
    # Share of the epochs before all that is to be learned is being learned.
    share_held_back: float = 0.0

    # --- columns and features ---

    def check_support(self, X: Array, labels: Labels = UNNAMED) -> Array:
        """The features of columns X, where all values can be; by default X as it is.

        Parameters
        ----------
        X : ndarray of shape (n_rows, n_columns)
            Numbers; NaN where a value is missing, which is no reason to raise.
        labels : value, default=Labels(names=None, indices=None)
            Names for messages: ``labels.of(i)`` is "column 3 ('age')" or the like.

        Returns
        -------
        X : ndarray of shape (n_rows, n_features)
            The same values, or those that they were meant to be.

        Raises
        ------
        ValueError
            If there is a value that cannot be, which the message should name.
        """
        return X

    def give_back(self, X: Array, *, drawn: bool) -> Array:
        """The columns of features X; `drawn` ones may be rounded to what can be."""
        return self.check_support(X) if drawn else X

    def columns_of(self, n_columns: int) -> Array:
        """The column of each feature."""
        return np.arange(n_columns)

    def categorical(self, n_columns: int) -> Mapping[int, Any]:
        """The columns whose values are categories, each with what it is modelled by."""
        return {}

    def with_categories(self, n_categories: Mapping[int, int]) -> Any:
        """The same for columns of so many categories."""
        return self

    # --- features ---

    def has_units(self, n_features: int) -> Array:
        """Whether each feature has a density, which has units, and no probability."""
        return np.full(n_features, not self.is_mass)

    def n_redrawn(self, n_features: int) -> int:
        """Standard normals that a row takes to be drawn anew."""
        return self.n_noise * n_features

    def redraw(self, x: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """Rows x (..., D) drawn anew by standard normal noise (..., n_redrawn)."""
        raise NotImplementedError

    def held_back(self, n_features: int) -> Sequence[int]:
        """Decoder outputs that are to be 0 for all rows at first."""
        return range(n_features, self.n_outputs(n_features)) if self.share_held_back else ()

    def units(self, columns: Moments) -> tuple[Array, Array]:
        """Location and scale of the model's units; by default the data's own.

        The model's x is (X - location) / scale. Its density is given back in the units of X.

        Parameters
        ----------
        columns : value
            What is known of the columns of X: ``columns.mean`` and ``columns.std``, arrays of shape
            (n_features,) in float64, and ``columns.has_holes``, whether values are missing. A
            constant column has a std of 0, and its constant as the mean.

        Returns
        -------
        location : ndarray of shape (n_features,)
            In units of X; of a constant column, the constant.
        scale : ndarray of shape (n_features,)
            In units of X; 0 for a constant column, which is then no part of the density.
        """
        varies = columns.std > 0
        return np.where(varies, 0.0, columns.mean), varies.astype(np.float64)

    def n_outputs(self, n_features: int) -> int:
        """Return the number of the decoder's outputs for a row; by default one a feature.

        Parameters
        ----------
        n_features : int
            Number of features.

        Returns
        -------
        n_outputs : int
            Length of the last dimension of `raw`.
        """
        return n_features

    def build(self, n_features: int) -> Any:
        """Make the module of what is learned or kept besides the decoder; by default of nothing.

        Parameters
        ----------
        n_features : int
            Number of features.

        Returns
        -------
        module : torch.nn.Module
            Its parameters are learned, its buffers kept. Those that `initialise` fills may be
            empty. Where several models are trained at once, each tensor has one more dimension in
            front: where rows are to follow, take ``module.own.unsqueeze(-2)``.
        """
        return nn.Module()

    def initialise(  # noqa: B027, it may do nothing
        self, module: Any, columns: Moments, scale: Array
    ) -> None:
        """Fill the module with where its values start; by default nothing.

        Parameters
        ----------
        module : torch.nn.Module
            What `build` made.
        columns : value
            What is known of the columns of X, in units of X, as in `units`.
        scale : ndarray of shape (n_features,)
            What `units` gave as the scale.
        """

    @property
    def noise_kind(self) -> str | None:
        """Of a noise variance that is learned: "per_feature" or "shared"; None where it is not."""
        return None

    def begin(self, module: Any, variance: torch.Tensor) -> None:
        """Give each column a noise variance (M, D), on the CPU, where the noise `can_begin`."""
        raise NotImplementedError

    def variance(self, module: Any) -> torch.Tensor | None:
        """Noise variance in the model's units, (1,) or (D,); None where it is not one number."""
        return None

    def begin_epoch(self, module: Any, progress: torch.Tensor) -> None:  # noqa: B027
        """Called before each epoch with the fraction of the epochs that is done, (M,)."""

    def seen(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        """What the encoder sees of rows; by default the rows.

        Parameters
        ----------
        module : torch.nn.Module
            What is learned or kept besides the decoder.
        x : tensor of shape (..., n_rows, n_features)
            Rows in the model's units.

        Returns
        -------
        seen : tensor of shape (..., n_rows, n_features)
            Numbers of about mean 0 and variance 1 are best.
        """
        return x

    def log_levels(self, module: Any, raw: torch.Tensor, n_features: int) -> torch.Tensor:
        """log p of the category that each feature stands for, (..., D); 0 where it is none.

        The score asks it what a category that `fit` has not seen is to cost.
        """
        return raw.new_zeros(*raw.shape[:-1], n_features)

    @abstractmethod
    def log_prob(self, module: Any, raw: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return log p(x_d|z) of each feature in nats, with every constant.

        Parameters
        ----------
        module : torch.nn.Module
            What is learned or kept besides the decoder.
        raw : tensor of shape (..., n_rows, n_outputs)
            The decoder's outputs, any numbers: early in training, large ones. What precedes the
            rows are draws or models.
        x : tensor of shape (..., n_rows, n_features)
            Rows in the model's units. The mean of its column stands where a value is missing.

        Returns
        -------
        log_prob : tensor of shape (..., n_rows, n_features)
            Of a density, that of x in the model's units.
        """

    @abstractmethod
    def mean(self, module: Any, raw: torch.Tensor) -> torch.Tensor:
        """E[x|z].

        Parameters
        ----------
        module : torch.nn.Module
            What is learned or kept besides the decoder.
        raw : tensor of shape (..., n_rows, n_outputs)
            The decoder's outputs.

        Returns
        -------
        mean : tensor of shape (..., n_rows, n_features)
            In the model's units.
        """

    @abstractmethod
    def sample(self, module: Any, raw: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw x by a generator, and by nothing else that is random.

        Parameters
        ----------
        module : torch.nn.Module
            What is learned or kept besides the decoder.
        raw : tensor of shape (..., n_rows, n_outputs)
            The decoder's outputs.
        generator : torch.Generator
            Perhaps on another device than `raw`: draw on ``generator.device``.

        Returns
        -------
        x : tensor of shape (..., n_rows, n_features)
            In the model's units, on the device of `raw`.
        """

    def total(
        self, module: Any, raw: torch.Tensor, x: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """`log_prob` (M, n, D) summed with a `weight` (M, 1|n, D); also without M."""
        return (self.log_prob(module, raw, x) * weight).sum(-1)

    def vjp(
        self, module: Any, raw: torch.Tensor, x: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, Pullback]:
        """`total` and its pullback, of M models."""
        parameters, buffers = autograd.values(module)

        def of_one(
            raw: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, learned: Any, kept: Any
        ) -> list[torch.Tensor]:
            return [self.total(autograd.holder(module, learned, kept), raw, x, weight)]

        def total(inputs: Any, constants: Any) -> list[torch.Tensor]:
            *learned, raw = inputs
            *kept, x, weight = constants
            if autograd.is_nested(module):
                return list(autograd.each(of_one, raw, x, weight, learned, kept))
            return of_one(raw, x, weight, learned, kept)  # all models at once

        (result,), backward = autograd.vjp(total, [*parameters, raw], [*buffers, x, weight])

        def pull(g: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
            *gradients, g_raw = backward([g])
            return g_raw, gradients

        return result, pull


def draw_uniform(shape: torch.Size, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Uniform numbers in [0, 1)."""
    return torch.rand(shape, generator=generator, dtype=dtype, device=generator.device)
