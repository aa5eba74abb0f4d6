"""The base class of all likelihoods, and of a user's own.

A likelihood turns the columns of X, which are numbers, into the features of the model: one feature
for each column, or several, as for categories. `check_support`, `give_back` and the methods under
"columns and features" see columns; all other methods see features only.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from skvae._backend import autograd
from skvae._backend.part import Part
from skvae._backend.tensors import Array
from skvae._data.statistics import Moments
from skvae._data.words import UNNAMED, Labels

TOLERANCE = 1e-6  # largest distance from the support that counts as rounding

# From the gradient of log p(x|z) of each row (M, n) to the gradients of the decoder's outputs
# (M, n, P) and of the other learned parameters.
Pullback = Callable[[torch.Tensor], tuple[torch.Tensor, list[torch.Tensor]]]


class Likelihood(Part, ABC):
    """The base class of a likelihood of your own: p(x|z) of a row, given the decoder's outputs.

    A likelihood is a value, such as a frozen dataclass, with pure functions of tensors. It must
    define `log_prob`, `mean` and `sample`; all other methods have defaults. `build` makes a module
    for values that are learned besides the decoder, such as a noise variance, or kept of the data,
    and `initialise` fills it. Autograd computes derivatives of several models at once, so the
    functions must work elementwise, or over the last dimension.

    Attributes
    ----------
    is_mass : bool
        A class attribute: whether the numbers are probabilities, which have no units, instead of
        densities.

    Examples
    --------
    Waiting times are exponential, with a mean in units of their column's mean. The decoder may give
    any number, so the logarithm of the mean is bounded:

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

    # Whether the numbers are probabilities, which have no units, instead of densities.
    is_mass: ClassVar[bool] = False
    # Standard normals per feature that draw a row anew in each epoch; 0: rows are not redrawn.
    n_noise: ClassVar[int] = 0
    not_inherited = (*Part.not_inherited, "can_begin", "total", "vjp")
    # Whether `begin` can set the noise variances, such as those of factor analysis.
    can_begin: ClassVar[bool] = False
    # Share of the epochs, the first ones, in which some parameters are not learned yet.
    share_held_back: float = 0.0

    # --- columns and features ---

    def check_support(self, X: Array, labels: Labels = UNNAMED) -> Array:
        """Return the features of columns X if all values are possible; by default X itself.

        Parameters
        ----------
        X : ndarray of shape (n_rows, n_columns)
            Numbers; NaN where a value is missing, which must not raise an error.
        labels : value, default=Labels(names=None, indices=None)
            Names for messages: ``labels.of(i)`` is "column 3 ('age')" or the like.

        Returns
        -------
        X : ndarray of shape (n_rows, n_features)
            The features. Values that rounding moved may be corrected.

        Raises
        ------
        ValueError
            If there is an impossible value, which the message should name.
        """
        return X

    def give_back(self, X: Array, *, drawn: bool) -> Array:
        """Return the columns of features X; `drawn` ones may be rounded to possible values."""
        return self.check_support(X) if drawn else X

    def columns_of(self, n_columns: int) -> Array:
        """Return the index of each feature's column."""
        return np.arange(n_columns)

    def categorical(self, n_columns: int) -> Mapping[int, Any]:
        """Return the columns whose values are categories, each with its likelihood."""
        return {}

    def with_categories(self, n_categories: Mapping[int, int]) -> Any:
        """Return the same likelihood, for columns with these numbers of categories."""
        return self

    # --- features ---

    def has_units(self, n_features: int) -> Array:
        """Return, for each feature, whether it has a density, which has units."""
        return np.full(n_features, not self.is_mass)

    def n_redrawn(self, n_features: int) -> int:
        """Number of standard normals that draw a row anew."""
        return self.n_noise * n_features

    def redraw(self, x: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        """Draw rows x (..., D) anew by standard normal noise (..., n_redrawn)."""
        raise NotImplementedError

    def held_back(self, n_features: int) -> Sequence[int]:
        """Return the indices of decoder outputs that start as 0 for all rows."""
        return range(n_features, self.n_outputs(n_features)) if self.share_held_back else ()

    def units(self, columns: Moments) -> tuple[Array, Array]:
        """Return location and scale of the model's units; by default the units of the data.

        The model's x is (X - location) / scale. Its density is given back in the units of X.

        Parameters
        ----------
        columns : value
            Facts about the columns of X: ``columns.mean`` and ``columns.std``, arrays of shape
            (n_features,) in float64, and ``columns.has_holes``, whether values are missing. A
            constant column has a std of 0, and its mean is the constant.

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
        """Make the module of values learned or kept besides the decoder; by default an empty one.

        Parameters
        ----------
        n_features : int
            Number of features.

        Returns
        -------
        module : torch.nn.Module
            Its parameters are learned, its buffers kept. Tensors that `initialise` fills may be
            made by ``torch.empty``. If several models are trained at once, each tensor has one more
            dimension in front. To broadcast over rows, use ``module.own.unsqueeze(-2)``.
        """
        return nn.Module()

    def initialise(self, module: Any, columns: Moments, scale: Array) -> None:
        """Fill the module with its first values; by default it does nothing.

        Parameters
        ----------
        module : torch.nn.Module
            The module that `build` made.
        columns : value
            Facts about the columns of X, in units of X, as in `units`.
        scale : ndarray of shape (n_features,)
            The scale that `units` returned.
        """

    @property
    def noise_kind(self) -> str | None:
        """The kind of a learned noise variance, "per_feature" or "shared"; None: not learned."""
        return None

    def begin(self, module: Any, variance: torch.Tensor) -> None:
        """Set the noise variance of each column, (M, D), on the CPU, if the noise `can_begin`."""
        raise NotImplementedError

    def variance(self, module: Any) -> torch.Tensor | None:
        """Noise variance in the model's units, (1,) or (D,); None if it is no fixed number."""
        return None

    def begin_epoch(self, module: Any, progress: torch.Tensor) -> None:
        """Called before each epoch with the fraction of the epochs that is done, (M,)."""

    def seen(self, module: Any, x: torch.Tensor) -> torch.Tensor:
        """Return the encoder's inputs for rows; by default the rows.

        Parameters
        ----------
        module : torch.nn.Module
            The values that are learned or kept besides the decoder.
        x : tensor of shape (..., n_rows, n_features)
            Rows in the model's units.

        Returns
        -------
        seen : tensor of shape (..., n_rows, n_features)
            A mean of about 0 and a variance of about 1 are best.
        """
        return x

    def log_levels(self, module: Any, raw: torch.Tensor, n_features: int) -> torch.Tensor:
        """log p of the category that each feature stands for, (..., D); 0 for other features.

        The score uses it for the cost of a category that `fit` has not seen.
        """
        return raw.new_zeros(*raw.shape[:-1], n_features)

    @abstractmethod
    def log_prob(self, module: Any, raw: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return log p(x_d|z) of each feature in nats, with every constant.

        Parameters
        ----------
        module : torch.nn.Module
            The values that are learned or kept besides the decoder.
        raw : tensor of shape (..., n_rows, n_outputs)
            The decoder's outputs, which may be any numbers, and large early in training. Dimensions
            before the rows are draws or models.
        x : tensor of shape (..., n_rows, n_features)
            Rows in the model's units. Missing values are replaced by the mean of their column.

        Returns
        -------
        log_prob : tensor of shape (..., n_rows, n_features)
            A log-density is that of x in the model's units.
        """

    @abstractmethod
    def mean(self, module: Any, raw: torch.Tensor) -> torch.Tensor:
        """Return E[x|z].

        Parameters
        ----------
        module : torch.nn.Module
            The values that are learned or kept besides the decoder.
        raw : tensor of shape (..., n_rows, n_outputs)
            The decoder's outputs.

        Returns
        -------
        mean : tensor of shape (..., n_rows, n_features)
            In the model's units.
        """

    @abstractmethod
    def sample(self, module: Any, raw: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw x; the generator must be the only source of randomness.

        Parameters
        ----------
        module : torch.nn.Module
            The values that are learned or kept besides the decoder.
        raw : tensor of shape (..., n_rows, n_outputs)
            The decoder's outputs.
        generator : torch.Generator
            It may be on another device than `raw`: draw on ``generator.device``.

        Returns
        -------
        x : tensor of shape (..., n_rows, n_features)
            In the model's units, on the device of `raw`.
        """

    def total(
        self, module: Any, raw: torch.Tensor, x: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """Sum `log_prob` (M, n, D) over features with a `weight` (M, 1|n, D); M may be absent."""
        return (self.log_prob(module, raw, x) * weight).sum(-1)

    def vjp(
        self, module: Any, raw: torch.Tensor, x: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, Pullback]:
        """Return `total` of M models, and its pullback."""

        def total(module: Any, *tensors: torch.Tensor) -> list[torch.Tensor]:
            return [self.total(module, *tensors)]

        at_once = not autograd.is_nested(module)
        (result,), backward = autograd.module_vjp(
            total, module, [raw], [x, weight], all_at_once=at_once
        )

        def pull(g: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
            (g_raw,), gradients = backward([g])
            return g_raw, gradients

        return result, pull


def draw_uniform(shape: torch.Size, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Draw uniform numbers in [0, 1)."""
    return torch.rand(shape, generator=generator, dtype=dtype, device=generator.device)
